"""Does the cost of the bispectrum per point depend on the number of atoms?

    python tests/bench/atoms.py [--points 4096] [--atoms 100 1000 10000 100000 1000000]

A block of points in displaced fcc Al of growing size, one thread, the best of several calls that alternate.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from ase.build import bulk
from timing import table

from malax.descriptors import Descriptor
from malax.descriptors.snap import Prepared


def prepared(n_atoms: int) -> tuple[int, float, Prepared]:
    """Number of atoms, seconds to prepare them, and the prepared structure."""
    atoms = bulk("Al", "fcc", a=4.05, cubic=True).repeat(max(1, round((n_atoms / 4) ** (1 / 3))))
    atoms.positions += np.random.default_rng(0).normal(0.0, 0.1, atoms.positions.shape)
    start = time.perf_counter()
    found = Descriptor().prepared(atoms)  # type: ignore[call-arg]
    return len(atoms), time.perf_counter() - start, found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=4096)
    parser.add_argument("--atoms", type=int, nargs="+", default=[100, 1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    side = round(options.points ** (1 / 3))
    points = 2.0 + 0.17 * np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    systems = [prepared(n) for n in options.atoms]
    stages: list[list[dict[str, float]]] = [[] for _ in systems]
    for _ in range(options.repeats):
        for (_, _, system), found in zip(systems, stages, strict=True):
            found.append(system.stages(points, "float32"))
    rows = []
    for (n, seconds, _), found in zip(systems, stages, strict=True):
        best = min(found, key=lambda one: sum(one.values()))
        search = best["sorting"] + best["neighbour lists"]
        micro = 1e6 / len(points)
        rows.append([str(n), f"{sum(best.values()) * micro:.2f}", f"{search * micro:.3f}", f"{seconds:.2f}"])
    print(f"{len(points)} points, float32, one thread")
    table(["atoms", "us per point", "of it search", "s to prepare once"], rows)


if __name__ == "__main__":
    main()
