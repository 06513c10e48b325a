"""Structure factors by Gaussians on a mesh (kernel) beside the mesh of energies/structure_factor.py (torch).

    python tests/bench/charges.py [--repeat 4 8]

Both spread the atoms over a mesh 1.5 times finer than the waves need and divide its Fourier transform by that
of the spread function. Processor time of one thread in us per atom; errors per atom against the direct sum.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from ase.build import bulk
from timing import table

from malax import kernels_gaussian, shipped
from malax.energies import core_density, structure_factor
from malax.energies.sphere import GSphere
from malax.grid import Grid
from malax.io.upf import read_upf


def shortest(function: Callable[[], Any], seconds: float = 1.0) -> float:
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < 2 or time.perf_counter() - begin < seconds:
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


class Gaussians:
    """S(G) of a rectangular cell by Gaussians that reach ``reach`` mesh points to each side.

    sigma^2 = reach ratio / (2 pi (ratio - 1/2)) in mesh steps balances what the cutoff drops with what folds
    back: L. Greengard, J.-Y. Lee, SIAM Rev. 46, 443 (2004), section 2.
    """

    def __init__(self, positions: np.ndarray, sphere: GSphere, reach: int) -> None:
        extents = [int(m.abs().max()) for m in sphere.waves]
        self.shape = structure_factor._mesh_shape(extents)
        self.sphere, self.cell = sphere, sphere.grid.cell
        step = max(np.linalg.norm(self.cell, axis=1) / self.shape)
        ratio = min(n / (2 * m + 1) for n, m in zip(self.shape, extents, strict=True))
        self.sigma = step * math.sqrt(reach * ratio / (2 * math.pi * (ratio - 0.5)))
        fixed = ([self.sigma], [(reach + 0.5) * step], [1.0])
        self.sources = kernels_gaussian.Sources(
            positions, np.zeros(len(positions), int), self.cell, [True] * 3, *fixed
        )

    def spread(self) -> np.ndarray:
        n = math.prod(self.shape)
        return kernels_gaussian.on_grid(self.sources, self.shape, 0, n, threads=1).reshape(self.shape)

    def factors(self, columns: torch.Tensor) -> torch.Tensor:
        """(C, nz) for the columns (C, 2) of waves."""
        waves = torch.fft.rfftn(torch.from_numpy(self.spread())) * (
            abs(np.linalg.det(self.cell)) / math.prod(self.shape)
        )
        for axis, (m, n) in enumerate(zip(self.sphere.waves, self.shape, strict=True)):
            waves = waves.index_select(axis, torch.remainder(m.long(), n))
        g2 = self.sphere.g2[columns[:, 0], columns[:, 1]]
        return waves[columns[:, 0], columns[:, 1]] * torch.exp(g2 * self.sigma**2 / 2)


def torch_spread(scaled: torch.Tensor, shape: list[int]) -> torch.Tensor:
    """The first half of ``structure_factor._mesh``."""
    mesh = torch.zeros(math.prod(shape), dtype=torch.float64)
    for some in scaled.split(structure_factor._ELEMENTS // structure_factor.WIDTH**3):
        first = torch.ceil(some * torch.tensor(shape) - structure_factor.WIDTH / 2)
        ones = torch.ones(len(some), dtype=torch.float64)
        values = structure_factor._spread_values(some, ones, first, shape)
        mesh.index_add_(0, structure_factor._mesh_indices(first, shape), values)
    return mesh


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, nargs="+", default=[4, 8], help="supercells n x n x n of Al4")
    parser.add_argument("--spacing", type=float, default=0.2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    upf = {"Al": read_upf(shipped.snapshot().parent / "Al.pbe-nc.UPF")}
    rows = []
    for n in options.repeat:
        atoms = bulk("Al", "fcc", a=4.05, cubic=True).repeat(n)
        atoms.positions += np.random.default_rng(0).normal(0.0, 0.1, atoms.positions.shape)
        grid, count = Grid.from_spacing(atoms.cell.array, options.spacing), len(atoms)
        sphere = GSphere(grid)
        scaled = torch.from_numpy(atoms.get_scaled_positions(wrap=False))
        ones = torch.ones(count, dtype=torch.float64)
        columns = sphere.inside.any(dim=2).nonzero()
        some = columns[:: max(1, len(columns) // 200)]
        inside = sphere.inside[some[:, 0], some[:, 1]]
        exact = structure_factor.structure_factors(scaled, ones, sphere.waves, some, "direct")
        waves = sphere.waves
        shape = structure_factor._mesh_shape([int(m.abs().max()) for m in waves])
        whole = 1e6 / count * shortest(lambda: core_density(atoms, grid, upf))  # noqa: B023
        found = structure_factor.structure_factors(scaled, ones, waves, some, "mesh")
        error = float(((found - exact).abs() * inside).max()) / count
        spread = 1e6 / count * shortest(lambda: torch_spread(scaled, shape))  # noqa: B023
        mesh = " x ".join(map(str, shape))
        rows.append([f"{count}, mesh {mesh}", "torch", f"{whole:.0f}", f"{spread:.1f}", f"{error:.0e}"])
        for reach in (10, 12, 14, 16):
            gaussians = Gaussians(atoms.positions, sphere, reach)
            error = float(((gaussians.factors(some) - exact).abs() * inside).max()) / count
            spread = 1e6 / count * shortest(gaussians.spread)
            rows.append(["", f"Gaussians, reach {reach}", "", f"{spread:.1f}", f"{error:.0e}"])
    table(["atoms", "", "core charge", "spread", "error"], rows)


if __name__ == "__main__":
    main()
