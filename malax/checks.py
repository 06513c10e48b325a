"""Is this something that a model can be asked? Refusals, defaults, and what deserves a warning."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from ase import Atoms

from malax.descriptors.structure import check_finite, nearest_pair
from malax.errors import InputError
from malax.grid import Grid, same_cell
from malax.model_file import ModelInfo

CLOSEST = 0.5
"""Atoms nearer than this (A) overlap: no bond is as short, and no model is trained there."""


VOLUME_MARGIN = 0.01
SPACING_MARGIN = 0.05
"""How far beyond the training (relative) goes without a warning."""


class ModelDomainWarning(UserWarning):
    """A prediction far from what the model was trained on."""


def check_atoms(atoms: Atoms, elements: Iterable[str] | None = None) -> None:
    """Refuse what has no meaning here.

    Raises
    ------
    InputError
        no atoms, NaN, an empty cell, not periodic, overlapping atoms, or elements that are not among
        ``elements`` (those of the model).
    """
    check_finite(atoms)
    cell = atoms.cell.array
    lengths = np.linalg.norm(cell, axis=1)
    if (lengths == 0).any() or abs(np.linalg.det(cell)) < 1e-8 * lengths.prod():
        raise InputError("the cell is empty or degenerate: three independent lattice vectors are needed")
    if not atoms.pbc.all():
        open_axes = ", ".join("abc"[i] for i in np.flatnonzero(~atoms.pbc))
        raise InputError(
            f"the structure is not periodic along {open_axes}; malax needs a cell periodic in all three "
            "directions (surfaces: vacuum inside the cell and pbc=True)"
        )
    if elements is not None:
        known = list(elements)
        unknown = sorted(set(atoms.get_chemical_symbols()) - set(known))
        if unknown:
            raise InputError(
                f"the model knows {', '.join(known)} only, but the structure holds {', '.join(unknown)}"
            )
    _check_overlap(atoms)


def _check_overlap(atoms: Atoms) -> None:
    pair = nearest_pair(atoms, CLOSEST)
    if pair is not None:
        i, j, distance = pair
        names = f"{atoms.symbols[i]}, {atoms.symbols[j]}"
        raise InputError(
            f"atoms {i} and {j} ({names}) overlap: they are {distance:.3f} A apart, at least "
            f"{CLOSEST} A are needed"
        )


def choose_grid(info: ModelInfo, atoms: Atoms, grid: Grid | Sequence[int] | None) -> Grid:
    """The grid that was asked for, or that of the training spacing; InputError for one of another cell."""
    if grid is None:
        return Grid.from_spacing(atoms.cell.array, info.grid_spacing)
    if not isinstance(grid, Grid):
        return Grid(atoms.cell.array, grid)  # type: ignore[arg-type]
    if not same_cell(grid.cell, atoms.cell.array):
        raise InputError("the grid is of another cell than the structure; give its three numbers instead")
    return grid


def choose_temperatures(
    info: ModelInfo, temperatures: Sequence[float] | None
) -> tuple[list[float], list[str]]:
    """Checked temperatures (K), by default the lowest of the training, and the note that says so."""
    if temperatures is None:
        lowest = min(info.training_temperatures)
        return [lowest], [f"temperature not given: {lowest:g} K, the lowest training temperature"]
    kelvins = [float(t) for t in temperatures]
    for kelvin in kelvins:
        if not (np.isfinite(kelvin) and kelvin >= 0):
            raise InputError(f"the electronic temperature must be finite and >= 0 K, got {kelvin:g}")
    if not kelvins:
        raise InputError("at least one temperature is needed")
    return kelvins, []


def concerns_about(info: ModelInfo, atoms: Atoms, grid: Grid, temperatures: Sequence[float]) -> list[str]:
    """What takes the model away from what it was trained on, one line each."""
    found = []
    coldest, hottest = min(info.training_temperatures), max(info.training_temperatures)
    for kelvin in temperatures:
        if not coldest - 0.5 <= kelvin <= hottest + 0.5:
            found.append(f"{kelvin:g} K is outside the training temperatures, {coldest:g} to {hottest:g} K")
    volume = grid.volume / len(atoms)
    smallest, largest = min(info.training_volumes), max(info.training_volumes)
    if not smallest * (1 - VOLUME_MARGIN) <= volume <= largest * (1 + VOLUME_MARGIN):
        found.append(
            f"{volume:.2f} A^3 per atom is outside the training volumes, {smallest:.2f} to {largest:.2f} A^3"
        )
    spacing = max(grid.spacing)
    if spacing > info.grid_spacing * (1 + SPACING_MARGIN):
        found.append(
            f"a grid spacing of {spacing:.3f} A is coarser than the training's {info.grid_spacing:.3f} A: "
            "energies lose accuracy"
        )
    return found
