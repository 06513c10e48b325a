"""Hartree, XC, core charge, Ewald and the total free energy: ms per call, over sizes of an Al supercell.

python tests/bench/energies.py --repeat 1 2 4
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from ase.build import bulk
from timing import best, table

from malax.energies import core_density, ewald_energy, hartree_energy, total_free_energy, xc_energy
from malax.grid import Grid
from malax.io.upf import read_upf

UPF = Path(__file__).resolve().parents[2] / "malax" / "data" / "Al.pbe-nc.UPF"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--repeat", type=int, nargs="+", default=[1, 2, 4], help="supercells n x n x n of 4 atoms"
    )
    parser.add_argument("--spacing", type=float, default=0.17, help="grid spacing in A")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0, help="time spent on each entry")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    upf = {"Al": read_upf(UPF)}
    rows = []
    for n in options.repeat:
        atoms = bulk("Al", "fcc", a=4.05, cubic=True).repeat(n)
        rng = np.random.default_rng(0)
        atoms.positions += rng.normal(0.0, 0.1, atoms.positions.shape)
        grid = Grid.from_spacing(atoms.cell.array, options.spacing)
        density = 1 + 0.1 * rng.random(grid.shape)
        density *= 3.0 * len(atoms) / (density.sum() * grid.point_volume)
        core = core_density(atoms, grid, upf)
        charges = np.full(len(atoms), 3.0)
        calls = (
            lambda: hartree_energy(density, grid),  # noqa: B023 - called in this turn of the loop only
            lambda: xc_energy(density, core, grid, "PBE"),  # noqa: B023
            lambda: core_density(atoms, grid, upf),  # noqa: B023
            lambda: ewald_energy(atoms, charges),  # noqa: B023
            lambda: total_free_energy(atoms, density, 0.0, 0.0, {**upf}),  # noqa: B023
        )
        times = [best(call, options.seconds) for call in calls]
        shape = " x ".join(map(str, grid.shape))
        rows.append(
            [shape, len(atoms), *(f"{1e3 * t:.2f}" for t in times), f"{1e6 * times[-1] / grid.n_points:.2f}"]
        )
    print(f"{options.threads} threads, PBE; ms")
    table(["grid", "atoms", "Hartree", "XC", "core", "Ewald", "total F", "us/point"], rows)


if __name__ == "__main__":
    main()
