"""The bispectrum on this machine, stage by stage, beside LAMMPS."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk

from malax import library
from malax.descriptors import Descriptor, lammps
from malax.descriptors.structure import numbered_species
from malax.errors import MissingPeerError
from malax.grid import Grid

NATIVE_GRID, LAMMPS_GRID = (36, 36, 36), (10, 10, 10)
"""LAMMPS' cost per point does not depend on the grid, ours does a little: near points share neighbours."""


@dataclass(frozen=True)
class BispectrumCosts:
    """Microseconds per grid point on one core, the smallest of ``repeats`` alternating measurements.

    ``native[dtype][stage]``; ``two_threads``: speed of two threads over one, float32; ``lammps`` is the time
    inside its own ``run 0``, None where it is not installed.
    """

    system: str
    neighbours: float
    isa: str
    native: dict[str, dict[str, float]]
    two_threads: float
    lammps: float | None
    lammps_build: str | None
    repeats: int

    def total(self, dtype: str) -> float:
        """All stages together."""
        return sum(self.native[dtype].values())

    def ratio(self, dtype: str) -> float | None:
        """How many times faster than LAMMPS."""
        return None if self.lammps is None else self.lammps / self.total(dtype)

    def as_json(self) -> dict[str, Any]:
        totals = {dtype: self.total(dtype) for dtype in self.native}
        ratios = {dtype: self.ratio(dtype) for dtype in self.native}
        return {**asdict(self), "total": totals, "ratio": ratios, "unit": "microseconds per grid point"}


def beryllium() -> Atoms:
    """The structure of the comparison: 36 rattled atoms of hcp Be, 53 of them within 4.68 A of a point."""
    atoms = bulk("Be", "hcp", a=2.27, c=3.58).repeat((3, 3, 2))
    atoms.positions += np.random.default_rng(0).normal(0.0, 0.05, atoms.positions.shape)
    return atoms


def measure(descriptor: Descriptor | None = None, repeats: int = 5) -> BispectrumCosts:
    """Native and LAMMPS in turn, ``repeats`` times, so that other work on the machine falls on both."""
    descriptor = descriptor or Descriptor()  # type: ignore[call-arg]
    atoms = beryllium()
    prepared = descriptor.prepared(atoms)
    points = Grid(atoms.cell.array, NATIVE_GRID).points(0, int(np.prod(NATIVE_GRID)))[: 8 * 4096]
    found: dict[str, list[dict[str, float]]] = {"float32": [], "float64": []}
    one, two, reference = [], [], []
    build = _lammps_build()
    for _ in range(repeats):
        for dtype, list_ in found.items():
            list_.append(prepared.stages(points, dtype))
        one.append(_seconds(lambda: prepared.at_points(points, threads=1)))
        two.append(_seconds(lambda: prepared.at_points(points, threads=2)))
        if build is not None:
            reference.append(_lammps_seconds(descriptor, atoms))
    native = {
        dtype: {stage: 1e6 * value / len(points) for stage, value in min(list_, key=_sum).items()}
        for dtype, list_ in found.items()
    }
    volume = 4 / 3 * np.pi * descriptor.cutoff**3
    return BispectrumCosts(
        system=f"{atoms.get_chemical_formula()}, twojmax {descriptor.twojmax}",
        neighbours=float(len(atoms) / atoms.get_volume() * volume),
        isa=library.build_info()["isa"],
        native=native,
        two_threads=min(one) / min(two),
        lammps=1e6 * min(reference) / float(np.prod(LAMMPS_GRID)) if reference else None,
        lammps_build=build,
        repeats=repeats,
    )


def _sum(stages: dict[str, float]) -> float:
    return sum(stages.values())


def _seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _lammps_build() -> str | None:
    try:
        return lammps.build()
    except MissingPeerError:
        return None


def _lammps_seconds(descriptor: Descriptor, atoms: Atoms) -> float:
    types, weights = numbered_species(atoms, descriptor.weights)
    settings = descriptor.model_dump(exclude={"kind", "weights", "atomic_volume"})
    return lammps.run_seconds(atoms, types, weights, Grid(atoms.cell.array, LAMMPS_GRID), settings)
