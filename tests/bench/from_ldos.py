"""observables.from_ldos, its kernel, and the same sums by NumPy: ms per call, over numbers of points.

python tests/bench/from_ldos.py --points 10000 100000 --threads 1 2
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from timing import best, table

from malax.kernels import ldos_moments
from malax.observables import from_ldos


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, nargs="+", default=[13824, 110592])
    parser.add_argument("--energies", type=int, default=181)
    parser.add_argument("--weights", type=int, default=7, help="numbers per point that the kernel makes")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--seconds", type=float, default=1.0, help="time spent on each entry")
    options = parser.parse_args()
    energy_grid = -6.0 + 0.1 * np.arange(options.energies)
    rng = np.random.default_rng(0)
    weights = rng.random((options.weights, options.energies))
    rows = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        for n_points in options.points:
            step = 0.04 / (1 + np.exp(-(energy_grid + 3.0) / 0.5))
            ldos = (step * (1 + 0.1 * rng.random((n_points, 1)))).astype(np.float32)
            volume = n_points * 4.8e-3
            n_electrons = 0.4 * float(ldos.sum(dtype=np.float64)) * 4.8e-3 * 0.1

            def observables() -> None:
                from_ldos(ldos, energy_grid, volume, 933.0, n_electrons, 0.02)  # noqa: B023

            def kernel() -> None:
                ldos_moments(ldos, weights)  # noqa: B023

            def numpy() -> None:
                wide = ldos.astype(np.float64)  # noqa: B023
                wide @ weights.T
                wide.sum(axis=0)

            times = [best(call, options.seconds) for call in (observables, kernel, numpy)]
            speed = ldos.nbytes / times[1] / 1e9
            rows.append([threads, n_points, *(f"{1e3 * t:.2f}" for t in times), f"{speed:.1f}"])
    print(
        f"{options.energies} energies, float32; kernel, NumPy: {options.weights} sums a point and the DOS; ms"
    )
    table(["threads", "points", "from_ldos", "kernel", "NumPy", "kernel GB/s"], rows)


if __name__ == "__main__":
    main()
