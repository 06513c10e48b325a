"""How good is a model? Term by term against DFT, beside the floor and two baselines that know no LDOS.

All errors are predicted minus DFT, per atom, in meV, unless said otherwise.

- *floor*: the same chain started from DFT's own LDOS; no network can be expected to do better.
- *mean*: the mean of the training snapshots at the same temperature.
- *fit*: least squares of the same energy per atom to (1, Ewald energy, volume, T) on the training snapshots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from malax import energies, kernels, observables
from malax.baselines import SAME_TEMPERATURE, baselines
from malax.calibration import Scores
from malax.emulator import Emulator
from malax.energies import Energies
from malax.errors import InputError
from malax.fields import percentage_error, plane, resample
from malax.io.snapshot import Snapshot
from malax.model_file import ModelInfo
from malax.result import Result
from malax.uncertainty import scores_of

TERMS = ("band", "entropy_term", "hartree", "xc", "total_free")
"""The terms that are compared (those of `malax.energies.Energies`)."""

_READ_POINTS = 8192


@dataclass(eq=False)
class SnapshotErrors:
    """One snapshot: what was predicted, what DFT says, and the errors.

    predicted, dft, floor : term -> eV per cell
    errors, floor_errors : term -> meV/atom
    mean_errors, fit_errors : band and total_free -> meV/atom; empty if the model does not hold the
        energies of its training snapshots
    fermi_level_error, floor_fermi_level_error : meV
    density_mape : mean absolute percentage error of the density, (100/n) sum |dn|/|n|
    density_error : 100 int |dn| dr / N, in percent of the electrons; None without a DFT density
    electrons_at_dft_level : electrons of the *uncorrected* predicted DOS at DFT's Fermi level, and
        ``floor_electrons_at_dft_level`` those of DFT's own DOS
    seen : "training" or "validation" if the model saw this snapshot, else None
    """

    name: str
    n_atoms: int
    temperature: float
    volume: float
    n_electrons: float
    seen: str | None
    predicted: dict[str, float]
    dft: dict[str, float]
    floor: dict[str, float]
    errors: dict[str, float]
    floor_errors: dict[str, float]
    mean_errors: dict[str, float]
    fit_errors: dict[str, float]
    fermi_level: float
    dft_fermi_level: float
    fermi_level_error: float
    floor_fermi_level_error: float
    electrons_at_dft_level: float
    floor_electrons_at_dft_level: float
    density_mape: float | None
    density_error: float | None
    floor_density_mape: float | None
    grid: tuple[int, int, int]
    timings: dict[str, float]
    warnings: list[str]
    scores: Scores | None = field(default=None, repr=False)
    """Of an ensemble: the errors beside its error bars."""
    curves: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    """What the plots show: energy_grid, dos, dft_energy_grid, dft_dos, complete_to (up to where the LDOS is
    sound); plane_x, plane_y, plane, dft_plane (the density at z = 0.5)."""

    def as_json(self) -> dict[str, Any]:
        """Everything but the curves, as plain numbers."""
        plain = {name: value for name, value in vars(self).items() if name not in ("curves", "scores")}
        return plain if self.scores is None else {**plain, "error_bars": self.scores.as_json()}


@dataclass(eq=False)
class GroupErrors:
    """Snapshots of one temperature (K) and size: quantity -> signed mean and mean absolute error.

    Quantities: ``<term>``, ``floor_<term>``, ``mean_<term>``, ``fit_<term>`` in meV/atom,
    ``fermi_level`` in meV and ``density_mape`` in percent.
    """

    temperature: float
    n_atoms: int
    n_snapshots: int
    seen: bool
    signed: dict[str, float]
    absolute: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        return dict(vars(self))


def evaluate_snapshot(
    emulator: Emulator,
    snapshot: Snapshot,
    comm: Any = None,
    descriptors: str = "native",
    progress: Callable[[int, int], None] | None = None,
) -> SnapshotErrors | None:
    """Predict a snapshot on its density grid and compare; None on ranks other than 0.

    Raises
    ------
    InputError
        the model is not for this snapshot (elements, temperature, pseudopotentials).
    """
    _check_same_pseudopotentials(emulator, snapshot)
    partial = emulator.predict(
        snapshot.atoms,
        temperature=snapshot.temperature,
        grid=snapshot.density_grid,
        comm=comm,
        descriptors=descriptors,
        progress=progress,
    )
    complete_to = min(emulator.info.complete_to, snapshot.complete_to)
    scores = scores_of(partial, snapshot, complete_to)
    result = partial.gather()
    if result is None:
        return None
    floor, floor_density, floor_level = from_own_ldos(snapshot)
    n_atoms = len(snapshot.atoms)
    predicted = {term: value for term in TERMS if (value := getattr(result.energies, term)) is not None}
    floor_terms = {term: float(getattr(floor, term)) for term in TERMS}
    dft = snapshot.energies
    at = (snapshot.fermi_level, snapshot.temperature)
    mean, fit = baselines(emulator.info, snapshot)
    return SnapshotErrors(
        name=snapshot.name,
        n_atoms=n_atoms,
        temperature=snapshot.temperature,
        volume=snapshot.grid.volume / n_atoms,
        n_electrons=snapshot.n_electrons,
        seen=seen_as(emulator.info, snapshot),
        predicted=predicted,
        dft=dict(dft),
        floor=floor_terms,
        errors=_difference(predicted, dft, n_atoms),
        floor_errors=_difference(floor_terms, dft, n_atoms),
        mean_errors=_difference(mean, dft, n_atoms),
        fit_errors=_difference(fit, dft, n_atoms),
        fermi_level=result.fermi_level,
        dft_fermi_level=snapshot.fermi_level,
        fermi_level_error=1e3 * (result.fermi_level - snapshot.fermi_level),
        floor_fermi_level_error=1e3 * (floor_level - snapshot.fermi_level),
        electrons_at_dft_level=observables.electrons_at(result.dos, result.energy_grid, *at),
        floor_electrons_at_dft_level=observables.electrons_at(_dos(snapshot), snapshot.energy_grid, *at),
        density_mape=_mape(result.density, snapshot.density),
        density_error=_absolute(result.density, snapshot),
        floor_density_mape=_mape(floor_density, snapshot.density),
        grid=result.grid.shape,
        timings=result.timings,
        warnings=result.warnings,
        scores=scores,
        curves=_curves(result, snapshot, complete_to),
    )


def from_own_ldos(snapshot: Snapshot) -> tuple[Energies, np.ndarray, float]:
    """The floor: energies (eV), density on the density grid, and Fermi level (eV) of a snapshot's own LDOS.

    The LDOS is read tile by tile. Where it stands on a coarser grid than DFT's density, the density from
    it is interpolated by FFT.
    """
    variance = snapshot.broadening_variance
    found = observables.from_dos(
        _dos(snapshot), snapshot.energy_grid, snapshot.temperature, snapshot.n_electrons, variance
    )
    weights = observables.number_weights(
        snapshot.energy_grid, np.array([found.fermi_level]), snapshot.temperature, variance
    ).numpy()
    n_points = snapshot.grid.n_points
    density = np.empty(n_points)
    for start in range(0, n_points, _READ_POINTS):
        stop = min(start + _READ_POINTS, n_points)
        density[start:stop] = kernels.ldos_moments(snapshot.read_ldos(start, stop), weights)[0][:, 0]
    density = resample(density.reshape(snapshot.ldos_shape), snapshot.density_grid.shape)
    result = energies.total_free_energy(
        snapshot.atoms,
        density,
        found.band_energy,
        found.entropy_term,
        snapshot.pseudopotentials,
        xc=snapshot.xc,
        ecutrho=snapshot.ecutrho,
    )
    return result, density, float(found.fermi_level)


def seen_as(info: ModelInfo, snapshot: Snapshot) -> str | None:
    """ "training" or "validation" if the model saw this calculation, else None.

    The file's hash tells; a file written anew from the same calculation is known by its energy.
    """
    n_atoms = len(snapshot.atoms)
    mine = snapshot.energies.get("total_free", np.nan) / n_atoms
    for known in info.training_snapshots:
        same_energy = abs(known.energies.get("total_free", np.inf) - mine) < 1e-9 and known.n_atoms == n_atoms
        if known.sha256 == snapshot.sha256 or same_energy:
            return known.role
    return None


def group(snapshots: Sequence[SnapshotErrors]) -> list[GroupErrors]:
    """Statistics per (temperature, number of atoms), in this order; seen and unseen snapshots apart."""
    groups: dict[tuple[float, int, bool], list[SnapshotErrors]] = {}
    for one in snapshots:
        key = (
            round(one.temperature / SAME_TEMPERATURE) * SAME_TEMPERATURE,
            one.n_atoms,
            one.seen is not None,
        )
        groups.setdefault(key, []).append(one)
    summaries = []
    for (temperature, n_atoms, seen), members in sorted(groups.items()):
        every = [_quantities(one) for one in members]
        common = [name for name in every[0] if all(name in one for one in every)]
        signed = {name: float(np.mean([one[name] for one in every])) for name in common}
        absolute = {name: float(np.mean([abs(one[name]) for one in every])) for name in common}
        summaries.append(GroupErrors(temperature, n_atoms, len(members), seen, signed, absolute))
    return summaries


def _quantities(one: SnapshotErrors) -> dict[str, float]:
    found = dict(one.errors)
    for prefix, errors in (("floor", one.floor_errors), ("mean", one.mean_errors), ("fit", one.fit_errors)):
        found.update({f"{prefix}_{term}": value for term, value in errors.items()})
    found["fermi_level"] = one.fermi_level_error
    if one.density_mape is not None:
        found["density_mape"] = one.density_mape
    return found


def _difference(mine: dict[str, float], dft: dict[str, float], n_atoms: int) -> dict[str, float]:
    return {term: 1e3 * (value - dft[term]) / n_atoms for term, value in mine.items() if term in dft}


def _mape(density: np.ndarray, reference: np.ndarray | None) -> float | None:
    return None if reference is None else percentage_error(density, reference)


def _absolute(density: np.ndarray, snapshot: Snapshot) -> float | None:
    if snapshot.density is None:
        return None
    volume = snapshot.density_grid.point_volume
    return float(100 * np.abs(density - snapshot.density).sum() * volume / snapshot.n_electrons)


def _dos(snapshot: Snapshot) -> np.ndarray:
    if snapshot.dos is None:
        raise InputError(f"snapshot {snapshot.name} has no DOS; write it with save_snapshot")
    return snapshot.dos


def _check_same_pseudopotentials(emulator: Emulator, snapshot: Snapshot) -> None:
    for element, theirs in snapshot.pseudopotentials.items():
        ours = emulator.pseudopotentials.get(element)
        if ours is not None and ours.sha256 != theirs.sha256:
            raise InputError(
                f"snapshot {snapshot.name} was made with another pseudopotential of {element} "
                f"({theirs.name}) than the model's ({ours.name}); their energies cannot be compared"
            )


def _curves(result: Result, snapshot: Snapshot, complete_to: float) -> dict[str, np.ndarray]:
    curves = {
        "complete_to": np.array(complete_to),
        "energy_grid": result.energy_grid,
        "dos": result.dos,
        "dft_energy_grid": snapshot.energy_grid,
        "dft_dos": _dos(snapshot),
    }
    if snapshot.density is not None:
        x, y, values = plane(result.density, result.grid.cell, "z", 0.5)
        curves.update(plane_x=x, plane_y=y, plane=values)
        curves["dft_plane"] = plane(snapshot.density, result.grid.cell, "z", 0.5)[2]
    return curves
