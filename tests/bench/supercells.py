"""Do supercells of one cell have the same energy per atom?

    mpiexec -n 2 python tests/bench/supercells.py [--repeats 1 2 4 8] [--points 16]

A displaced cell of 4 fcc Al atoms, slightly triclinic, repeated along all axes with as many grid points per
cell; the shipped model. Any difference is that of rounding, of the Ewald sum and of the FFT grids.
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np
from ase.build import bulk
from prediction import take_random_network
from timing import table

from malax import shipped
from malax.comm import world
from malax.emulator import Emulator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--points", type=int, default=16)
    parser.add_argument("--random", type=int, nargs="+", help="hidden layers of a network of random weights")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # a coarse grid is what is asked for
    comm = world()
    emulator = Emulator.load(shipped.model())
    if options.random:
        take_random_network(emulator, options.random)
    cell = bulk("Al", "fcc", a=4.05, cubic=True)
    cell.set_cell(cell.cell.array @ [[1.0, 0.01, 0.0], [0.0, 1.0, 0.02], [0.0, 0.0, 0.99]], scale_atoms=True)
    cell.positions += np.random.default_rng(0).normal(0.0, 0.1, cell.positions.shape)
    rows: list[list[str]] = []
    first: float | None = None
    for n in options.repeats:
        atoms = cell.repeat(n)
        result = emulator.predict(atoms, 298.0, (n * options.points,) * 3, comm)
        total = float(result.energies.total_free) / len(atoms)
        first = total if first is None else first
        rows.append(
            [str(len(atoms)), f"{total:.9f}", f"{1e3 * (total - first):+.6f}", f"{result.fermi_level:.9f}"]
        )
    if comm.rank == 0:
        table(["atoms", "F, eV per atom", "change, meV per atom", "Fermi level, eV"], rows)


if __name__ == "__main__":
    main()
