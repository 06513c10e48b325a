"""Forces and stress of a model by finite differences of its free energy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ase import Atoms

from malax.io.snapshot import Snapshot

STEP = 0.02
"""Displacement in A: the error of a central difference is below 1 meV/A, that of rounding, too."""
STRAIN = 0.004
COMPONENTS = 6
"""Coordinates of a structure that are moved (all, if it has no more than twice as many)."""
FreeEnergy = Callable[[Atoms, float, tuple[int, int, int]], float]


@dataclass(eq=False)
class Forces:
    """Forces (n,) in eV/A along some coordinates and stress (6,) in eV/A^3, of the model and of DFT."""

    title: str
    coordinates: list[tuple[int, int]]
    model: np.ndarray
    dft: np.ndarray | None
    stress: np.ndarray
    dft_stress: np.ndarray | None

    @property
    def rms(self) -> float | None:
        """Root mean square difference of the forces in eV/A."""
        return None if self.dft is None else float(np.sqrt(np.mean((self.model - self.dft) ** 2)))

    @property
    def stress_rms(self) -> float | None:
        """The same of the stress, in eV/A^3."""
        if self.dft_stress is None:
            return None
        return float(np.sqrt(np.mean((self.stress - self.dft_stress) ** 2)))


def forces_of(
    energy: FreeEnergy,
    atoms: Atoms,
    temperature: float,
    shape: tuple[int, int, int],
    snapshot: Snapshot | None,
) -> Forces:
    """Central differences along some coordinates, always the same, and along the six strains.

    ``energy`` gives F in eV per cell; ``snapshot`` holds DFT's values for this structure.
    """
    every = [(i, axis) for i in range(len(atoms)) for axis in range(3)]
    chosen = every
    if len(every) > 2 * COMPONENTS:
        picked = np.random.default_rng(len(atoms)).choice(len(every), COMPONENTS, replace=False)
        chosen = [every[i] for i in sorted(picked)]
    forces = []
    for i, axis in chosen:
        pair = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[i, axis] += sign * STEP
            pair.append(energy(moved, temperature, shape))
        forces.append(-(pair[0] - pair[1]) / (2 * STEP))
    has_forces = snapshot is not None and snapshot.forces is not None
    return Forces(
        title=atoms.get_chemical_formula() if snapshot is None else snapshot.name,
        coordinates=chosen,
        model=np.array(forces),
        dft=np.array([snapshot.forces[c] for c in chosen]) if has_forces else None,  # type: ignore[union-attr, index]
        stress=stress_of(energy, atoms, temperature, shape),
        dft_stress=None if snapshot is None else snapshot.stress,
    )


def stress_of(
    energy: FreeEnergy, atoms: Atoms, temperature: float, shape: tuple[int, int, int]
) -> np.ndarray:
    """(6,) eV/A^3 in ASE's sign and Voigt order: dF / d(strain) / V, the grid moving with the cell."""
    stress = np.empty(6)
    for k, (i, j) in enumerate([(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]):
        pair = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[i, j] += sign * STRAIN / (1 if i == j else 2)
            strain[j, i] = strain[i, j]
            strained = atoms.copy()
            strained.set_cell(atoms.cell.array @ strain, scale_atoms=True)
            pair.append(energy(strained, temperature, shape))
        stress[k] = (pair[0] - pair[1]) / (2 * STRAIN) / atoms.get_volume()
    return stress
