"""Electrostatic energy of point ions in a neutralising background, by Ewald summation.

The sum is split so that its two halves take about the same time. The structure factors of the reciprocal half
come from a mesh for more than a few hundred atoms, so that the work grows as the number of atoms; what the
mesh adds to the error is 1e-11 of the energy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import vesin
from ase import Atoms
from torch.utils.checkpoint import checkpoint

from malax.energies.structure_factor import direct_cost, mesh_cost, structure_factors
from malax.errors import InputError
from malax.grid import Grid
from malax.units import COULOMB

CONVERGENCE = 5.3
"""Both sums end at exp(-CONVERGENCE^2) = 6e-13 of their first term."""

OVERLAP = 0.1
"""Ions nearer than this (A) are a mistake in the structure."""

_PAIR_COST = 50.0
"""Time of one pair of ions in ns, as the times in structure_factor.py."""

_CHUNK = 1 << 18


def ewald_energy(atoms: Atoms, charges: Sequence[float] | np.ndarray) -> float:
    """Energy in eV of point charges in a periodic cell with a uniform neutralising background.

    Parameters
    ----------
    atoms : the structure, periodic in three directions
    charges : (N,) in elementary charges; their sum need not be zero

    Raises
    ------
    InputError
        no atoms, a cell that is empty or not periodic, positions that are not finite, overlapping atoms,
        or another number of charges than atoms.
    """
    check_structure(atoms)
    q = np.asarray(charges, dtype=np.float64)
    if q.shape != (len(atoms),) or not np.isfinite(q).all():
        raise InputError(f"one finite charge per atom is needed, got {q.shape} for {len(atoms)} atoms")
    return float(ewald(torch.tensor(atoms.positions), torch.tensor(atoms.cell.array), torch.tensor(q)))


def check_structure(atoms: Atoms) -> None:
    """InputError for a structure that is not a periodic crystal of finite positions."""
    if len(atoms) == 0:
        raise InputError("the structure holds no atoms")
    if not atoms.pbc.all():
        raise InputError(
            f"the structure must be periodic in all three directions, pbc is {atoms.pbc.tolist()}"
        )
    Grid(atoms.cell.array, (1, 1, 1))  # raises for an empty or degenerate cell
    if not np.isfinite(atoms.positions).all():
        raise InputError("the structure has positions that are not finite")


def ewald(
    positions: torch.Tensor,
    cell: torch.Tensor,
    charges: torch.Tensor,
    convergence: float = CONVERGENCE,
    cutoff: float | None = None,
    method: str = "auto",
) -> torch.Tensor:
    """The same as a 0-d tensor in eV, differentiable with respect to positions and cell (and charges).

    Parameters
    ----------
    positions : (N, 3) in A
    cell : (3, 3) rows in A, right- or left-handed
    charges : (N,)
    convergence : both sums end where their terms are exp(-convergence^2)
    cutoff : real-space cutoff in A; None balances the two sums. The energy does not depend on it.
    method : of the structure factors: "direct", "mesh", or "auto"
    """
    volume = torch.abs(torch.linalg.det(cell))
    if cutoff is None:
        cutoff = balanced_cutoff(len(positions), cell, convergence)
    alpha = convergence / cutoff
    total = charges.sum()
    short = _real_space(positions, cell, charges, cutoff, alpha)
    long = _reciprocal_space(positions, cell, charges, alpha, 2 * alpha * convergence, method)
    itself = alpha / math.sqrt(math.pi) * (charges**2).sum()
    background = math.pi / (2 * alpha**2) * total**2 / volume
    return COULOMB * (short + long - itself - background)


def balanced_cutoff(n_atoms: int, cell: torch.Tensor, convergence: float) -> float:
    """The real-space cutoff (A) for which both sums together should take the least time."""
    volume = float(torch.abs(torch.linalg.det(cell)))
    lengths = torch.linalg.norm(cell, dim=1).tolist()
    spacing = (volume / n_atoms) ** (1 / 3)
    best, least = spacing, math.inf
    for cutoff in np.geomspace(spacing, 8 * spacing, 40).tolist():
        pairs = n_atoms**2 / volume * 2 * math.pi / 3 * cutoff**3
        extents = [int(convergence**2 / cutoff * a / math.pi) for a in lengths]
        waves = math.pi / 4 * math.prod(2 * m + 1 for m in extents) / 2
        long = min(direct_cost(n_atoms, waves), mesh_cost(n_atoms, extents))
        if _PAIR_COST * pairs + long < least:
            best, least = cutoff, _PAIR_COST * pairs + long
    return best


def _real_space(
    positions: torch.Tensor, cell: torch.Tensor, charges: torch.Tensor, cutoff: float, alpha: float
) -> torch.Tensor:
    """sum over pairs of q_i q_j erfc(alpha r) / r."""
    differentiable = torch.is_grad_enabled() and (positions.requires_grad or cell.requires_grad)
    neighbours = vesin.NeighborList(cutoff=cutoff, full_list=False)
    points, box = positions.detach().cpu().numpy(), cell.detach().cpu().numpy()
    found = neighbours.compute(
        points=points, box=box, periodic=True, quantities="PdS" if differentiable else "Pd"
    )
    pairs, distances = found[:2]
    refuse_overlap(pairs, distances)
    index = torch.as_tensor(pairs.astype(np.int64), device=positions.device)
    length = torch.as_tensor(distances, device=positions.device)
    if differentiable:
        shifts = torch.as_tensor(found[2], dtype=torch.float64, device=positions.device)
    energy = torch.zeros((), dtype=torch.float64, device=positions.device)
    for start in range(0, len(index), _CHUNK):
        part = slice(start, start + _CHUNK)
        if differentiable:
            energy = energy + checkpoint(
                _pairs_of, positions, cell, charges, index[part], shifts[part], alpha, use_reentrant=False
            )
        else:
            energy = energy + _pair_energy(charges, index[part], length[part], alpha)
    return energy


def refuse_overlap(pairs: np.ndarray, distances: np.ndarray) -> None:
    if len(distances) and distances.min() < OVERLAP:
        i, j = pairs[int(distances.argmin())]
        raise InputError(f"atoms {i} and {j} (from 0) overlap: they are {distances.min():.3g} A apart")


def _pairs_of(
    positions: torch.Tensor,
    cell: torch.Tensor,
    charges: torch.Tensor,
    index: torch.Tensor,
    shifts: torch.Tensor,
    alpha: float,
) -> torch.Tensor:
    vectors = positions[index[:, 1]] - positions[index[:, 0]] + shifts @ cell
    return _pair_energy(charges, index, torch.linalg.norm(vectors, dim=1), alpha)


def _pair_energy(
    charges: torch.Tensor, index: torch.Tensor, distances: torch.Tensor, alpha: float
) -> torch.Tensor:
    products = charges[index[:, 0]] * charges[index[:, 1]]
    return (products * torch.erfc(alpha * distances) / distances).sum()


def _reciprocal_space(
    positions: torch.Tensor,
    cell: torch.Tensor,
    charges: torch.Tensor,
    alpha: float,
    k_max: float,
    method: str,
) -> torch.Tensor:
    """2 pi / V sum_{k != 0} exp(-k^2 / 4 alpha^2) / k^2 |S(k)|^2."""
    inverse = torch.linalg.inv(cell)
    lengths = torch.linalg.norm(cell.detach(), dim=1)
    m_max = torch.floor(k_max * lengths / (2 * math.pi)).long().tolist()
    # k and -k give the same: only mz >= 0
    mx, my, mz = (
        torch.arange(low, m + 1, dtype=torch.float64, device=positions.device)
        for m, low in zip(m_max, (-m_max[0], -m_max[1], 0), strict=True)
    )
    b = 2 * math.pi * inverse.T
    k2 = torch.zeros((), dtype=torch.float64, device=positions.device)
    for axis in range(3):
        x, y, z = (m * component for m, component in zip((mx, my, mz), b[:, axis], strict=True))
        k2 = k2 + (x[:, None, None] + y[None, :, None] + z) ** 2
    inside = (k2 <= k_max**2) & (k2 > 0)
    columns = inside.any(dim=2).nonzero()
    if len(columns) == 0:
        return k2.sum() * 0
    rows = (columns[:, 0], columns[:, 1])
    inside, k2 = inside[rows], k2[rows]
    safe = torch.where(inside, k2, 1.0)
    kernel = torch.where(inside, torch.exp(-safe / (4 * alpha**2)) / safe, 0.0)
    weights = torch.where(mz > 0, 2.0, 1.0) * kernel
    factors = structure_factors(positions @ inverse, charges, (mx, my, mz), columns, method)
    power = factors.real**2 + factors.imag**2
    return 2 * math.pi / torch.abs(torch.linalg.det(cell)) * (power * weights).sum()
