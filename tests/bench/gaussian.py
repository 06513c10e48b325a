"""Gaussian descriptors: us per grid point of LAMMPS' compute gaussian/grid/local and of our kernels.

    python tests/bench/gaussian.py [--repeat 2 4] [--sigma 0.5] [--cutoff 4.67637] [--threads 1]

LAMMPS' time is that of its compute alone, in double, after `run 0` has made ghosts and neighbour lists; ours
is that of the whole call. All are processor time of one thread (--threads: wall time), so that other programs
disturb little; the shortest of several calls.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk
from timing import table

from malax import kernels_gaussian, library
from malax.comm import as_comm
from malax.descriptors import lammps, lammps_gaussian
from malax.descriptors.gaussian import Columns, _sources
from malax.grid import Grid


def shortest(function: Callable[[], Any], clock: Callable[[], float], seconds: float) -> float:
    """The shortest of at least two calls, and as many as ``seconds`` of wall time allow."""
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < 2 or time.perf_counter() - begin < seconds:
        start = clock()
        function()
        times.append(clock() - start)
    return min(times)


def by_lammps(atoms: Atoms, columns: Columns, grid: Grid, clock: Callable[[], float]) -> float:
    """Time of LAMMPS' compute in s; it runs once per instance, so the shorter of two."""
    times = []
    for _ in range(2):
        with lammps._instance(as_comm(None)) as lmp:
            lammps_gaussian.set_up(lmp, atoms, columns.types(atoms), columns, grid)
            start = clock()
            lammps_gaussian.compute(lmp)
            times.append(clock() - start)
    return min(times)


def structures(repeat: list[int]) -> dict[str, Atoms]:
    """Rattled Be (as `malax bench` has it) and Al: third axis normal to the others, and not."""
    cells = {f"Be {2 * n**3}": bulk("Be").repeat(n) for n in repeat}
    cells |= {f"Al {4 * n**3}": bulk("Al", cubic=True).repeat(n) for n in repeat}
    cells |= {f"Al {n**3}, sheared": bulk("Al").repeat(n) for n in [max(repeat)]}
    for atoms in cells.values():
        atoms.positions += np.random.default_rng(0).normal(0.0, 0.05, atoms.positions.shape)
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, nargs="+", default=[2, 4], help="supercells n x n x n")
    parser.add_argument("--sigma", type=float, default=0.5)
    parser.add_argument("--cutoff", type=float, default=4.67637)
    parser.add_argument("--spacing", type=float, default=0.2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.5, help="time spent on each entry")
    options = parser.parse_args()
    clock = time.process_time if options.threads == 1 else time.perf_counter
    rows = []
    for name, atoms in structures(options.repeat).items():
        grid = Grid.from_spacing(atoms.cell.array, options.spacing)
        columns = Columns.of(atoms, options.sigma, options.cutoff, 1.0, None)
        reference = by_lammps(atoms, columns, grid, clock)
        sources, n = _sources(atoms, columns), grid.n_points
        pairs = len(atoms) / grid.volume * 4 / 3 * np.pi * options.cutoff**3
        rows.append([name, "LAMMPS", n, f"{pairs:.0f}", f"{1e6 * reference / n:.3f}", "1", ""])
        for level in library.build_info()["isa_levels"]:
            os.environ["MALAX_ISA"] = level
            for dtype in ("float32", "float64"):
                out = np.empty((n, 1), dtype)
                some = grid.points(0, min(n, 20_000))
                settings = {"dtype": dtype, "threads": options.threads}

                def on_grid(out=out, settings=settings, sources=sources, grid=grid, n=n) -> Any:
                    return kernels_gaussian.on_grid(sources, grid.shape, 0, n, out=out, **settings)

                def listed(some=some, settings=settings, sources=sources) -> Any:
                    return kernels_gaussian.at_points(sources, some, **settings)

                def adjoint(out=out, settings=settings, sources=sources, grid=grid, n=n) -> Any:
                    threads = settings["threads"]
                    return kernels_gaussian.adjoint_on_grid(sources, grid.shape, 0, n, out, threads=threads)

                calls = ((on_grid, "grid", n), (listed, "points", len(some)), (adjoint, "grid, adjoint", n))
                for call, what, points in calls:
                    time_ = shortest(call, clock, options.seconds) / points
                    ratio = f"{reference / n / time_:.0f}"
                    rows.append(["", f"{what}, {level} {dtype}", "", "", f"{1e6 * time_:.4f}", ratio, ""])
                    rows[-1][-1] = f"{1e9 * time_ / pairs:.2f}"
            del os.environ["MALAX_ISA"]
    print(f"sigma {options.sigma} A, cutoff {options.cutoff} A, {options.threads} threads")
    table(["", "", "points", "pairs/point", "us/point", "times LAMMPS", "ns/pair"], rows)


if __name__ == "__main__":
    main()
