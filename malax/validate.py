"""Physics checks of a model: what must hold, and what DFT says where there are data.

- equation of state: free energies at several volumes, equilibrium volume and bulk modulus
- vacancy: F(N-1 atoms) - (N-1)/N F(N atoms)
- a rigid shift or rotation of a structure changes nothing
- finite differences of F against DFT's forces and stress
- -TS against the temperature
- errors against the size of the cell

Where DFT's data are missing the model is
shown alone. All energies here are per atom, in eV, unless said otherwise. Everything is collective.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk

from malax.checks import ModelDomainWarning
from malax.comm import Comm
from malax.emulator import Emulator
from malax.errors import InputError
from malax.evaluate import SnapshotErrors, evaluate_snapshot
from malax.finite_differences import Forces, forces_of
from malax.grid import Grid
from malax.io.snapshot import Snapshot
from malax.validate_data import same_but_temperature, vacancy_pairs, volume_series, with_forces
from malax.volume_curve import Curve, curve_alone, curve_of

SEED = 20261120
Shape = tuple[int, int, int]


@dataclass(eq=False)
class Vacancy:
    """Formation energies of a vacancy, eV, of unchanged positions; ``n_atoms`` of the perfect cell."""

    n_atoms: int
    model: float
    dft: float | None


@dataclass(eq=False)
class Invariance:
    """Largest change of F in eV/atom by rigid shifts and by rotations of a structure."""

    title: str
    shift: float
    rotation: float


@dataclass(eq=False)
class Entropy:
    """-TS in eV/atom of one structure at temperatures in K."""

    title: str
    temperatures: np.ndarray
    model: np.ndarray
    dft: list[tuple[float, float]] = field(default_factory=list)
    """(K, eV/atom) of DFT on the same positions."""


@dataclass(eq=False)
class Validation:
    """All checks of a model."""

    elements: tuple[str, ...]
    n_snapshots: int
    curves: list[Curve]
    vacancies: list[Vacancy]
    invariance: Invariance
    forces: list[Forces]
    entropy: Entropy
    errors: list[SnapshotErrors]
    notes: list[str]


class Predictions:
    """Free energies of an emulator, each structure once."""

    def __init__(self, emulator: Emulator, comm: Comm) -> None:
        self.emulator, self.comm = emulator, comm
        self.known: dict[bytes, float] = {}

    def __call__(self, atoms: Atoms, temperature: float, shape: Shape) -> float:
        """F in eV per cell."""
        parts = (atoms.numbers, atoms.positions, atoms.cell.array)
        key = b"".join([*(p.tobytes() for p in parts), repr((temperature, shape)).encode()])
        if key not in self.known:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ModelDomainWarning)
                result = self.emulator.predict(atoms, temperature, shape, self.comm)
            if result.energies.total_free is None:
                raise InputError("the model has no pseudopotentials, so it gives no total free energy")
            self.known[key] = float(result.energies.total_free)
        return self.known[key]


def validate(
    emulator: Emulator,
    snapshots: Sequence[Snapshot],
    comm: Comm,
    crystal: Atoms | None = None,
    n_forces: int = 4,
    say: Callable[[str], None] = lambda line: None,
) -> Validation:
    """All checks; ``snapshots`` may be empty.

    Parameters
    ----------
    crystal : what stands for missing data; None: the element's own structure
    n_forces : snapshots whose forces and stress are compared
    say : is called with what is done next

    Raises
    ------
    InputError
        a model of several elements without a crystal; no pseudopotentials.
    """
    predict = Predictions(emulator, comm)
    crystal = default_crystal(emulator) if crystal is None else crystal
    temperature = min(emulator.info.training_temperatures)
    fine = partial(_shape, emulator)
    notes: list[str] = []
    say("equation of state")
    groups = volume_series(snapshots)
    curves = [curve_of(predict, group) for group in groups]
    if not curves:
        notes.append("no DFT data for an equation of state (one structure at five volumes)")
        curves = [curve_alone(predict, crystal, temperature, fine(crystal))]
    say("vacancy")
    vacancies = [_vacancy_of(predict, *pair) for pair in vacancy_pairs(snapshots)]
    if not vacancies:
        notes.append("no DFT data for a vacancy (a structure, and the same without one atom)")
        vacancies = [_vacancy_alone(predict, crystal, temperature, fine)]
    say("shift and rotation")
    rattled = _rattled(crystal)
    invariance = check_invariance(predict, rattled, temperature, fine(rattled))
    say("forces and stress")
    chosen = with_forces(emulator.info, snapshots, n_forces)
    forces = [forces_of(predict, s.atoms, s.temperature, s.density_grid.shape, s) for s in chosen]
    if not forces:
        notes.append("no DFT data for forces and stress (snapshots that hold them)")
        forces = [forces_of(predict, rattled, temperature, fine(rattled), None)]
    say("entropy")
    entropy = _entropy(emulator, snapshots, rattled, comm)
    if not entropy.dft:
        notes.append("no DFT data for -TS against the temperature (one structure at two temperatures)")
    errors = []
    for snapshot in snapshots:
        say(f"errors of {snapshot.name}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ModelDomainWarning)
            one = evaluate_snapshot(emulator, snapshot, comm)
        if one is not None:
            errors.append(one)
    if not snapshots:
        notes.append("no DFT data for the error against the size of the cell")
    return Validation(
        emulator.info.elements, len(snapshots), curves, vacancies, invariance, forces, entropy, errors, notes
    )


def default_crystal(emulator: Emulator) -> Atoms:
    """The element's own crystal at the middle of the training volumes; a cubic cell where there is one."""
    elements = emulator.info.elements
    if len(elements) != 1:
        raise InputError(f"the model knows {', '.join(elements)}: name a crystal with --structure")
    try:
        atoms = bulk(elements[0], cubic=True)
    except (ValueError, RuntimeError, KeyError):
        try:
            atoms = bulk(elements[0])
        except (ValueError, RuntimeError, KeyError) as error:
            raise InputError(f"ASE knows no crystal of {elements[0]}: name one with --structure") from error
    volumes = emulator.info.training_volumes
    middle = (min(volumes) + max(volumes)) / 2
    factor = (middle * len(atoms) / atoms.get_volume()) ** (1 / 3)
    atoms.set_cell(atoms.cell.array * factor, scale_atoms=True)
    return atoms


def _shape(emulator: Emulator, atoms: Atoms) -> Shape:
    return Grid.from_spacing(atoms.cell.array, emulator.info.grid_spacing).shape


def _rattled(crystal: Atoms) -> Atoms:
    atoms = crystal.copy()
    atoms.positions += np.random.default_rng(SEED).normal(0.0, 0.1, atoms.positions.shape)
    return atoms


# Vacancy


def _formation(energies: Sequence[float], n_atoms: int) -> float:
    """Of F with the vacancy and without (eV per cell)."""
    defect, perfect = energies
    return defect - (n_atoms - 1) / n_atoms * perfect


def _vacancy_of(predict: Predictions, perfect: Snapshot, defect: Snapshot) -> Vacancy:
    n = len(perfect.atoms)
    model = [predict(s.atoms, s.temperature, s.density_grid.shape) for s in (defect, perfect)]
    dft = [s.energies["total_free"] for s in (defect, perfect)]
    return Vacancy(n, _formation(model, n), _formation(dft, n))


def _vacancy_alone(
    predict: Predictions, crystal: Atoms, temperature: float, fine: Callable[[Atoms], Shape]
) -> Vacancy:
    """In about 32 atoms."""
    times = max(1, round((32 / len(crystal)) ** (1 / 3)))
    perfect = crystal.repeat(times)
    defect = perfect[1:]
    shape = fine(perfect)
    energies = [predict(atoms, temperature, shape) for atoms in (defect, perfect)]
    return Vacancy(len(perfect), _formation(energies, len(perfect)), None)


# Shift and rotation


def check_invariance(predict: Predictions, atoms: Atoms, temperature: float, shape: Shape) -> Invariance:
    """Three random shifts (the grid stays) and three random rotations (it turns with the cell)."""
    rng = np.random.default_rng(SEED)
    at_rest = predict(atoms, temperature, shape)

    def largest(changed: Sequence[Atoms]) -> float:
        return max(abs(predict(one, temperature, shape) - at_rest) for one in changed) / len(atoms)

    shifted, turned = [], []
    for _ in range(3):
        one = atoms.copy()
        one.positions += rng.uniform(0, 1, 3) @ atoms.cell.array
        shifted.append(one)
        other = atoms.copy()
        other.rotate(float(rng.uniform(0, 360)), rng.normal(size=3), rotate_cell=True)
        turned.append(other)
    return Invariance(atoms.get_chemical_formula(), largest(shifted), largest(turned))


# Forces, entropy


def _entropy(emulator: Emulator, snapshots: Sequence[Snapshot], rattled: Atoms, comm: Comm) -> Entropy:
    """Of a structure at several temperatures, that with most DFT data; in one pass."""
    atoms, shape = rattled, _shape(emulator, rattled)
    dft: list[tuple[float, float]] = []
    for one in snapshots:
        same = [s for s in snapshots if same_but_temperature(one, s)]
        if len(same) > max(1, len(dft)):
            atoms, shape = one.atoms, one.density_grid.shape
            dft = [(s.temperature, s.energies["entropy_term"] / len(s.atoms)) for s in same]
    known = [*emulator.info.training_temperatures, *(kelvin for kelvin, _ in dft)]
    kelvins = np.unique([*np.linspace(min(known), max(max(known), 1.5 * min(known)), 7), *known])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ModelDomainWarning)
        results = emulator.predict_many(atoms, kelvins.tolist(), shape, comm)
    model = np.array([r.energies.entropy_term for r in results], dtype=np.float64) / len(atoms)
    return Entropy(atoms.get_chemical_formula(), kelvins, model, sorted(dft))


def sizes(errors: Sequence[SnapshotErrors]) -> list[dict[str, Any]]:
    """Per number of atoms: how many snapshots, and the mean and mean absolute error of F in meV/atom."""
    table = []
    for n_atoms in sorted({one.n_atoms for one in errors}):
        found = [one for one in errors if one.n_atoms == n_atoms]
        free = np.array([one.errors["total_free"] for one in found])
        mapes = [one.density_mape for one in found if one.density_mape is not None]
        table.append(
            {
                "n_atoms": n_atoms,
                "snapshots": len(found),
                "unseen": sum(one.seen is None for one in found),
                "total_free_mean": float(free.mean()),
                "total_free_mae": float(np.abs(free).mean()),
                "density_mape": float(np.mean(mapes)) if mapes else None,
            }
        )
    return table
