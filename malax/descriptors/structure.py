"""Is this a structure that has descriptors?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from ase.geometry import complete_cell

from malax.errors import InputError

CLOSEST = 1e-3
"""Atoms nearer than this (A) are one atom entered twice."""

_sound: list[np.ndarray] = []
"""Positions, cell and pbc of the last structure found sound: tile after tile asks for the same one."""


def check_structure(atoms: Atoms) -> None:
    """Refuse a structure without atoms, with NaN, an empty or degenerate cell, or overlapping atoms.

    Raises
    ------
    InputError
        which says what is wrong and which atoms it concerns.
    """
    positions, cell, pbc = atoms.positions, atoms.cell.array, np.asarray(atoms.pbc)
    if _sound and all(map(np.array_equal, _sound, (positions, cell, pbc))):
        return
    check_finite(atoms)
    periodic = cell[pbc]
    lengths = np.linalg.norm(periodic, axis=1)
    if (lengths == 0).any() or np.prod(_singular_values(periodic)) < 1e-8 * lengths.prod():
        raise InputError("the cell is empty or degenerate: its periodic lattice vectors must be independent")
    _check_overlap(atoms)
    _sound[:] = [positions.copy(), cell.copy(), pbc.copy()]


def check_finite(atoms: Atoms) -> None:
    """InputError for a structure without atoms, or with NaN or infinity."""
    if len(atoms) == 0:
        raise InputError("the structure has no atoms")
    bad = np.flatnonzero(~np.isfinite(atoms.positions).all(axis=1))
    if len(bad):
        raise InputError(f"the position of atom {bad[0]} ({atoms.symbols[bad[0]]}) is NaN or infinity")
    if not np.isfinite(atoms.cell.array).all():
        raise InputError("the cell of the structure holds NaN or infinity")


def nearest_pair(atoms: Atoms, cutoff: float) -> tuple[int, int, float] | None:
    """The two atoms nearest to each other and their distance (A); None if none are within ``cutoff`` (A)."""
    # a tree: lists in boxes of a short cutoff are slow in thin cells, and with all atoms in a corner
    from scipy.spatial import cKDTree

    points, owners = _with_images(atoms, cutoff)
    pairs = cKDTree(points).query_pairs(cutoff, output_type="ndarray")
    if not len(pairs):
        return None
    distances = np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=1)
    nearest = int(np.argmin(distances))
    i, j = sorted(owners[pairs[nearest]])
    return int(i), int(j), float(distances[nearest])


def _with_images(atoms: Atoms, cutoff: float) -> tuple[np.ndarray, np.ndarray]:
    """Positions (M, 3) of all atoms, and of those images that are within ``cutoff`` (A) of an upper face of
    the cell; whose each is, (M,). Every pair nearer than ``cutoff`` is there once at least."""
    cell = complete_cell(atoms.cell.array)
    inverse = np.linalg.inv(cell)
    scaled = atoms.positions @ inverse
    periodic = np.flatnonzero(atoms.pbc)
    scaled[:, periodic] %= 1.0
    owners = np.arange(len(atoms))
    # one direction after the other, so that edges and corners have theirs
    for axis in periodic:
        width = cutoff * np.linalg.norm(inverse[:, axis]) * (1 + 1e-9) + 1e-12
        shifts = np.arange(1, int(np.ceil(width)) + 1)
        images = [np.flatnonzero(scaled[:, axis] + shift <= 1 + width) for shift in shifts]
        moved = [scaled[some] + shift * np.eye(3)[axis] for some, shift in zip(images, shifts, strict=True)]
        scaled = np.concatenate([scaled, *moved])
        owners = np.concatenate([owners, *(owners[some] for some in images)])
    return scaled @ cell, owners


def numbered_species(atoms: Atoms, weights: Mapping[str, float] | None) -> tuple[np.ndarray, np.ndarray]:
    """Elements as numbers: types (N,) int32 in order of the atomic number, and the weight of each type.

    Raises
    ------
    InputError
        an element of the structure has no weight.
    """
    # called for every tile: nothing here is slow for 100 000 atoms
    numbers = np.flatnonzero(np.bincount(atoms.numbers))
    place = np.zeros(numbers[-1] + 1, dtype=np.int32)
    place[numbers] = np.arange(len(numbers))
    types = place[atoms.numbers]
    present = [chemical_symbols[n] for n in numbers]
    if weights is None:
        return types, np.ones(len(present))
    missing = [symbol for symbol in present if symbol not in weights]
    if missing:
        raise InputError(
            f"no weight for {', '.join(missing)}: the structure holds {', '.join(present)}, "
            f"weights are given for {', '.join(weights) or 'no element'}"
        )
    return types, np.array([weights[symbol] for symbol in present], dtype=np.float64)


def _singular_values(rows: np.ndarray) -> np.ndarray:
    return np.linalg.svd(rows, compute_uv=False) if len(rows) else np.ones(0)


def _check_overlap(atoms: Atoms) -> None:
    pair = nearest_pair(atoms, CLOSEST)
    if pair is not None:
        i, j, distance = pair
        images = "" if i != j else " (periodic images of one atom)"
        raise InputError(
            f"atoms {i} and {j} ({atoms.symbols[i]}, {atoms.symbols[j]}) overlap: they are {distance:.2g} A "
            f"apart{images}"
        )
