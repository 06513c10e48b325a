"""Free energies against the volume, with their equation of state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms

from malax import equation_of_state
from malax.equation_of_state import EquationOfState
from malax.errors import InputError
from malax.finite_differences import FreeEnergy
from malax.io.snapshot import Snapshot

VOLUMES = (0.955, 0.97, 0.985, 1.0, 1.015, 1.03, 1.045)
"""Volumes of the equation of state without data, relative to the middle of the training."""


@dataclass(eq=False)
class Curve:
    """Free energies (eV/atom) at volumes (A^3/atom); ``dft`` is None where there are no data.

    ``length`` : (A) of the first lattice vector per cube root of the volume per atom
    ``why`` : what hinders a fit, else None
    """

    title: str
    volumes: np.ndarray
    model: np.ndarray
    dft: np.ndarray | None
    length: float
    fit: EquationOfState | None = None
    dft_fit: EquationOfState | None = None
    why: str | None = None

    def lattice_constant(self, fit: EquationOfState) -> float:
        """Length in A of the first lattice vector at the minimum."""
        return self.length * fit.volume ** (1 / 3)


def curve_of(energy: FreeEnergy, group: Sequence[Snapshot]) -> Curve:
    """Snapshots of one structure at several volumes; ``energy`` gives F in eV per cell."""
    n_atoms = len(group[0].atoms)
    volumes = np.array([s.grid.volume / n_atoms for s in group])
    model = [energy(s.atoms, s.temperature, s.density_grid.shape) / n_atoms for s in group]
    dft = np.array([s.energies["total_free"] / n_atoms for s in group])
    length = float(np.linalg.norm(group[0].atoms.cell.array[0]) / volumes[0] ** (1 / 3))
    title = f"{group[0].atoms.get_chemical_formula()}, {group[0].temperature:g} K"
    curve = Curve(title, volumes, np.array(model), dft, length)
    return _fitted(curve)


def curve_alone(energy: FreeEnergy, crystal: Atoms, temperature: float, shape: tuple[int, int, int]) -> Curve:
    """A crystal at the volumes `VOLUMES`; ``energy`` gives F in eV per cell."""
    n_atoms = len(crystal)
    volumes, energies = [], []
    for factor in VOLUMES:
        atoms = crystal.copy()
        atoms.set_cell(crystal.cell.array * factor ** (1 / 3), scale_atoms=True)
        volumes.append(atoms.get_volume() / n_atoms)
        energies.append(energy(atoms, temperature, shape) / n_atoms)
    length = float(np.linalg.norm(crystal.cell.array[0]) / (crystal.get_volume() / n_atoms) ** (1 / 3))
    title = f"{crystal.get_chemical_formula()}, {temperature:g} K"
    return _fitted(Curve(title, np.array(volumes), np.array(energies), None, length))


def _fitted(curve: Curve) -> Curve:
    try:
        curve.fit = equation_of_state.fit(curve.volumes, curve.model)
        if curve.dft is not None:
            curve.dft_fit = equation_of_state.fit(curve.volumes, curve.dft)
    except InputError as error:
        curve.why = str(error) if curve.fit is None else f"DFT: {error}"
    return curve
