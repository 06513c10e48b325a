"""What this machine needs per grid point, stage by stage; a structure of any size for `malax.probe`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk

from malax import library
from malax.emulator import Emulator
from malax.energies import hartree_energy, total_free_energy
from malax.ensemble import members_of
from malax.errors import MissingPeerError
from malax.estimate import Job
from malax.grid import Grid
from malax.inference import Inference
from malax.predict import N_NODES

TRIAL_SECONDS = 1.0
_ROWS = 4096
_SAMPLE_CELLS = 4


@dataclass(frozen=True)
class Costs:
    """Microseconds per grid point of this process with its threads; ``lammps`` is None where it is not
    installed; ``network`` is up to density and DOS, of all members."""

    system: str
    n_features: int
    n_energies: int
    threads: int
    native: float
    lammps: float | None
    network: float
    energies: float
    points_per_atom: float
    kernels: dict[str, Any]

    @property
    def total(self) -> float:
        """Native descriptors and network together."""
        return self.native + self.network

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "total": self.total, "unit": "microseconds per grid point"}


def measure(emulator: Emulator, atoms: Atoms | None = None) -> Costs:
    """Time each stage on a block of ``atoms`` (default: a rattled cell of the model's first element)."""
    atoms = atoms if atoms is not None else sample(emulator)
    grid = Grid.from_spacing(atoms.cell.array, emulator.info.grid_spacing)
    descriptor, energies = emulator.info.descriptor, emulator.energy_grid
    stop = min(grid.n_points, _ROWS)

    def native() -> Any:
        return descriptor.compute(atoms, grid, 0, stop, backend="native", dtype="float32")

    rows = np.random.default_rng(0).random((_ROWS, descriptor.n_features), dtype=np.float32)
    members = [Inference(one, _ROWS) for one in members_of(emulator.network)]
    reducers = [one.reducer(np.ones((N_NODES, len(energies)))) for one in members]

    def network() -> Any:
        return [reduce(rows) for reduce in reducers]

    return Costs(
        system=f"{atoms.get_chemical_formula()}, grid {grid.shape}",
        n_features=descriptor.n_features,
        n_energies=len(energies),
        threads=torch.get_num_threads(),
        native=_microseconds(native, stop),
        lammps=_lammps(emulator, atoms, grid),
        network=_microseconds(network, _ROWS),
        energies=_energies(emulator, atoms, grid),
        points_per_atom=grid.n_points / len(atoms),
        kernels=library.build_info(),
    )


def _energies(emulator: Emulator, atoms: Atoms, grid: Grid) -> float:
    """Hartree, XC and Ewald of a density that is one electron cloud per atom, roughly."""
    info = emulator.info
    n_electrons = sum(info.valence[symbol] for symbol in atoms.get_chemical_symbols())
    noise = 1 + 0.1 * np.random.default_rng(0).random(grid.shape)
    density = noise * (n_electrons / (noise.sum() * grid.point_volume))

    def compute() -> Any:
        if set(atoms.get_chemical_symbols()) <= set(emulator.pseudopotentials):
            return total_free_energy(
                atoms, density, 0.0, 0.0, emulator.pseudopotentials, xc=info.xc, ecutrho=info.ecutrho
            )
        return hartree_energy(density, grid)

    return _microseconds(compute, grid.n_points)


def sample(emulator: Emulator, cells: int = 2) -> Atoms:
    """Rattled fcc atoms of the model's first element at its mean training volume: ``cells``^3 cubes of 4."""
    volume = float(np.mean(emulator.info.training_volumes))
    atoms = bulk(emulator.info.elements[0], "fcc", a=(4 * volume) ** (1 / 3), cubic=True).repeat(cells)
    atoms.positions += np.random.default_rng(0).normal(0.0, 0.1, atoms.positions.shape)
    return atoms


def jobs(emulator: Emulator, n_atoms: int, ranks: int) -> tuple[Job, Job]:
    """``n_atoms`` of the model's first element in a cube on ``ranks``, and a sample of them to be timed."""
    atoms = sample(emulator, _SAMPLE_CELLS)
    spacing = emulator.info.grid_spacing
    side = (n_atoms * atoms.get_volume() / len(atoms)) ** (1 / 3)
    timed = Job.of(atoms, Grid.from_spacing(atoms.cell.array, spacing))
    return Job(n_atoms, timed.elements, Grid.from_spacing(side * np.eye(3), spacing), ranks), timed


def _microseconds(function: Callable[[], Any], points: int) -> float:
    """The best of repeated calls within `TRIAL_SECONDS`, per point."""
    function()
    best, begin = np.inf, time.perf_counter()
    while time.perf_counter() - begin < TRIAL_SECONDS or best == np.inf:
        start = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start)
    return float(1e6 * best / points)


def _lammps(emulator: Emulator, atoms: Atoms, grid: Grid) -> float | None:
    """LAMMPS computes whole grids: a smaller grid of the same cell has the same cost per point."""
    small = Grid(grid.cell, tuple(min(n, 12) for n in grid.shape))  # type: ignore[arg-type]
    descriptor = emulator.info.descriptor

    def compute() -> Any:
        return descriptor.compute(atoms, small, backend="lammps", dtype="float32")

    try:
        return _microseconds(compute, small.n_points)
    except MissingPeerError:
        return None
