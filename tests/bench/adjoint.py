"""Cost of the bispectrum's adjoint and of its forward-mode product, relative to the bispectrum itself.

    python tests/bench/adjoint.py [--twojmax 10] [--points 2000] [--levels v4 v3]

A rattled hcp Be cell with about 60 neighbours per point, one thread. Times are those of this thread alone,
the best of calls that alternate, so that other work on the machine falls on all of them.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import numpy as np
from ase import Atoms
from ase.build import bulk
from timing import table

from malax import kernels, library
from malax.grid import Grid
from malax.kernels_adjoint import bispectrum_adjoint, bispectrum_jvp


def sample() -> Atoms:
    atoms = bulk("Be", "hcp", a=2.29, c=3.58).repeat((3, 3, 2))
    atoms.positions += np.random.default_rng(0).normal(0.0, 0.1, atoms.positions.shape)
    return atoms


def alternating(calls: list[Callable[[], object]], repeats: int) -> list[float]:
    """The shortest thread time of each call, in s."""
    best = [np.inf] * len(calls)
    for _ in range(repeats):
        for i, call in enumerate(calls):
            start = time.thread_time()
            call()
            best[i] = min(best[i], time.thread_time() - start)
    return best


def measure(twojmax: int, n_points: int, dtype: str, repeats: int) -> list[float]:
    """Microseconds per point of bispectrum, adjoint and product."""
    atoms = sample()
    grid = Grid.from_spacing(atoms.cell.array, 0.25)
    points = grid.points(0, min(grid.n_points, n_points))
    structure = (atoms.positions, np.zeros(len(atoms), int), atoms.cell.array, atoms.pbc, points)
    snap = {"twojmax": twojmax, "cutoff": 4.67637, "rfac0": 0.99363, "rmin0": 0.0}
    snap |= {"switchflag": True, "bzeroflag": False, "weights": [1.0], "threads": 1}
    rng = np.random.default_rng(0)
    gradient = rng.normal(size=(len(points), kernels.bispectrum_size(twojmax))).astype(dtype)
    change = rng.normal(size=(len(atoms), 3))
    calls: list[Callable[[], object]] = [
        lambda: kernels.bispectrum(*structure, dtype=dtype, **snap),
        lambda: bispectrum_adjoint(*structure, gradient, **snap),
        lambda: bispectrum_jvp(*structure, positions_change=change, dtype=dtype, **snap),
    ]
    return [1e6 * seconds / len(points) for seconds in alternating(calls, repeats)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--twojmax", type=int, default=10)
    parser.add_argument("--points", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--levels", nargs="*", default=library.build_info()["isa_levels"])
    options = parser.parse_args()
    rows = []
    for level in options.levels:
        os.environ["MALAX_ISA"] = level
        for dtype in ("float32", "float64"):
            forward, adjoint, jvp = measure(options.twojmax, options.points, dtype, options.repeats)
            times = (f"{t:.2f}" for t in (forward, adjoint, jvp))
            rows.append([f"{level} {dtype}", *times, f"{adjoint / forward:.2f}", f"{jvp / forward:.2f}"])
    print(f"twojmax {options.twojmax}, us per point of one thread")
    table(["", "bispectrum", "adjoint", "product", "adjoint ratio", "product ratio"], rows)


if __name__ == "__main__":
    main()
