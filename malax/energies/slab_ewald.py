"""The Ewald energy of `ewald`, divided over ranks: each has some atoms' pairs and some of the waves."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from ase import Atoms
from scipy.spatial import cKDTree

from malax.comm import Comm
from malax.energies.ewald import CONVERGENCE, balanced_cutoff, refuse_overlap
from malax.energies.slab_factors import structure_factors
from malax.fft import Waves
from malax.grid import Grid, split
from malax.units import COULOMB

_ATOMS = 1 << 6
"""Atoms whose neighbours are listed at a time."""


def ewald_energy_of(
    atoms: Atoms,
    charges: np.ndarray,
    comm: Comm,
    cutoff: float | None = None,
    method: str = "auto",
) -> float:
    """The energy in eV of point charges (N,) in a neutralising background, the same on all ranks; collective.

    ``cutoff`` (A) and ``method`` as of :func:`malax.energies.ewald.ewald`. InputError for overlapping atoms.
    """
    grid = Grid(atoms.cell.array, (1, 1, 1))
    if cutoff is None:
        cutoff = balanced_cutoff(len(atoms), torch.from_numpy(grid.cell), CONVERGENCE)
    alpha = CONVERGENCE / cutoff
    scaled = atoms.positions @ np.linalg.inv(grid.cell)
    sums = np.array(
        [
            _real_space(scaled, grid.cell, charges, cutoff, comm),
            _reciprocal_space(scaled, grid, charges, alpha, comm, method),
        ]
    )
    short, long = comm.allgatherv(sums[None]).sum(axis=0)
    itself = alpha / math.sqrt(math.pi) * (charges**2).sum()
    background = math.pi / (2 * alpha**2) * charges.sum() ** 2 / grid.volume
    return float(COULOMB * (short + long - itself - background))


def _real_space(
    scaled: np.ndarray, cell: np.ndarray, charges: np.ndarray, cutoff: float, comm: Comm
) -> float:
    """This rank's share of the sum over pairs of q_i q_j erfc(alpha r) / r."""
    heights = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    axis = int(np.argmax(heights))
    wrapped = scaled - np.floor(scaled)
    start, stop = split(len(charges), comm.size, comm.rank)
    mine = np.argsort(wrapped[:, axis], kind="stable")[start:stop]
    if len(mine) == 0:
        return 0.0
    low, high = np.zeros(3), np.ones(3)
    low[axis], high[axis] = wrapped[mine, axis].min(), wrapped[mine, axis].max()
    # a hair more than the cutoff: an atom at its edge must not be lost to rounding
    margin = cutoff / heights * (1 + 1e-9) + 1e-9
    index, images = _images(wrapped, low - margin, high + margin)
    tree = cKDTree(images @ cell)
    alpha, energy = CONVERGENCE / cutoff, 0.0
    for i, j, distance in _pairs(tree, wrapped[mine] @ cell, cutoff):
        home, other = mine[i], index[j]
        # an atom is no neighbour of itself; its images are farther than rounding
        true = (home != other) | (distance > 1e-6)
        home, other, distance = home[true], other[true], distance[true]
        refuse_overlap(np.stack([home, other], axis=1), distance)
        screened = torch.erfc(torch.from_numpy(alpha * distance)).numpy() / distance
        energy += 0.5 * float((charges[home] * charges[other] * screened).sum())
    return energy


def _images(wrapped: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which atom, and where (n, 3) in lattice vectors: all atoms and images between two corners."""
    index, points = np.arange(len(wrapped)), wrapped
    for axis in range(3):
        shifts = range(math.floor(low[axis]) - 1, math.ceil(high[axis]) + 1)
        parts = []
        for shift in shifts:
            moved = points[:, axis] + shift
            inside = np.flatnonzero((moved >= low[axis]) & (moved <= high[axis]))
            image = points[inside]
            image[:, axis] += shift
            parts.append((index[inside], image))
        index = np.concatenate([part[0] for part in parts])
        points = np.concatenate([part[1] for part in parts])
    return index, points


def _pairs(
    tree: cKDTree, centers: np.ndarray, cutoff: float
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Index of center and of point, and distance (A), for some centers at a time."""
    for start in range(0, len(centers), _ATOMS):
        found = cKDTree(centers[start : start + _ATOMS]).sparse_distance_matrix(
            tree, cutoff, output_type="ndarray"
        )
        yield found["i"] + start, found["j"], found["v"]


def _reciprocal_space(
    scaled: np.ndarray, grid: Grid, charges: np.ndarray, alpha: float, comm: Comm, method: str
) -> float:
    """This rank's share of 2 pi / V sum_{k != 0} exp(-k^2 / 4 alpha^2) / k^2 |S(k)|^2."""
    waves = Waves(grid.reciprocal, (2 * alpha * CONVERGENCE) ** 2, comm)
    factors = structure_factors(scaled, charges, waves, method)
    energy = 0.0
    for block in waves.blocks():
        some = factors[block.place]
        there = block.g2 > 0
        g2 = np.where(there, block.g2, 1.0)
        # k and -k give the same: those with mz > 0 stand for both
        weight = np.where(there, np.where(block.mz > 0, 2.0, 1.0), 0.0)
        power = some.real**2 + some.imag**2
        energy += float((weight * np.exp(-g2 / (4 * alpha**2)) / g2 * power).sum())
    return 2 * math.pi / grid.volume * energy
