"""Which structures to compute next: those of which a model knows least, and which differ from each other.

The measure of an ensemble is the standard deviation of the free energy per atom (of the band energy, without
pseudopotentials); that of one network how far the surroundings are from the training points, in units of the
distance that 99.9 % of those keep (`malax.domain`). The most uncertain structures of a trajectory are often
neighbours in time; computing one of them settles the others. So they are taken one by one, each with the
largest product of its uncertainty and its distance from those taken before (cf. farthest-point sampling).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from scipy.spatial.distance import pdist, squareform

from malax.checks import ModelDomainWarning
from malax.comm import Comm, SerialComm
from malax.emulator import Emulator
from malax.ensemble import members_of
from malax.errors import InputError
from malax.grid import Grid
from malax.selection import PROBES, fingerprint

COARSE = 2.0
"""Grid spacing of the predictions, in that of the training: the spread needs no finer one."""


@dataclass(frozen=True)
class Candidate:
    """A structure that could be computed, at an electronic temperature in K."""

    name: str
    atoms: Atoms
    temperature: float


@dataclass(frozen=True)
class Choice:
    """A structure to compute; ``uncertainty`` in meV/atom, or relative to the training points."""

    name: str
    uncertainty: float
    unit: str

    def __str__(self) -> str:
        return f"{self.name}: {self.uncertainty:.2f} {self.unit}"


def pick(
    emulator: Emulator,
    candidates: Sequence[Candidate],
    number: int,
    say: Callable[[str], None],
    comm: Comm | None = None,
) -> list[Choice]:
    """The ``number`` structures to compute next, the most wanted first; collective.

    Structures that the model refuses (other elements, overlapping atoms) are left out, which is said.

    Raises
    ------
    InputError
        no such number of structures is left, or one network without a domain, which knows no uncertainty.
    """
    comm = SerialComm() if comm is None else comm
    known, values = [], []
    for candidate in candidates:
        try:
            values.append(uncertainty(emulator, candidate, comm))
        except InputError as error:
            if len(members_of(emulator.network)) == 1 and emulator.domain is None:
                raise
            say(f"{candidate.name} is left out: {error}")
            continue
        known.append(candidate)
    if not 1 <= number <= len(known):
        raise InputError(f"{number} structures are to be picked, {len(known)} are left to choose from")
    unit = "meV/atom" if len(members_of(emulator.network)) > 1 else "x the training's range"
    order = spread_out(np.array(values), np.array([fingerprint(c.atoms) for c in known]), number)
    return [Choice(known[i].name, values[i], unit) for i in order]


def uncertainty(emulator: Emulator, candidate: Candidate, comm: Comm) -> float:
    """Of a structure: see the module's text. InputError if the model cannot say."""
    if len(members_of(emulator.network)) > 1:
        return _energy_spread(emulator, candidate, comm)
    if emulator.domain is None:
        raise InputError("one network without a domain knows no uncertainty: train an ensemble (members: 4)")
    grid = Grid(candidate.atoms.cell.array, (PROBES,) * 3)
    features = emulator.info.descriptor.compute(candidate.atoms, grid, dtype="float32")
    distances = emulator.domain.distances(features.reshape(-1, features.shape[-1]))
    return float(np.quantile(distances, 0.95)) / emulator.domain.limit


def _energy_spread(emulator: Emulator, candidate: Candidate, comm: Comm) -> float:
    """Standard deviation of the free energy in meV/atom."""
    atoms = candidate.atoms
    grid = Grid.from_spacing(atoms.cell.array, COARSE * emulator.info.grid_spacing)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ModelDomainWarning)
        result = emulator.predict(atoms, candidate.temperature, grid, comm)
    assert result.spread is not None  # an ensemble
    std = result.spread.std
    return 1e3 * std.get("total_free", std["band"]) / len(atoms)


def spread_out(values: np.ndarray, points: np.ndarray, number: int) -> list[int]:
    """Indices by the largest values (n,) times distance from what is taken already; points (n, F).

    The distance counts in units of the median of all distances, up to 1: what is far enough is far enough.
    """
    spread = points.std(axis=0)
    scaled = points / np.where(spread > 1e-9 * np.abs(points).max(), spread, np.inf)
    pairs = pdist(scaled)  # n (n - 1) / 2: never n^2 F numbers
    typical = float(np.median(pairs)) if len(pairs) else 0.0
    nearness = squareform(np.minimum(pairs / typical, 1.0) if typical > 0 else np.ones_like(pairs))
    left = np.array(values, dtype=np.float64)
    order: list[int] = []
    while len(order) < number:
        score = np.where(np.isin(np.arange(len(left)), order), -np.inf, left)
        order.append(int(score.argmax()))
        left = np.minimum(left, values * nearness[order[-1]])
    return order
