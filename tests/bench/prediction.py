"""Time and peak memory per rank of a whole prediction: displaced fcc Al, the shipped model.

    mpiexec -n 2 python tests/bench/prediction.py --cells 8 --points 16 [--log]

``--cells`` cubes of 4 atoms along each axis (8 8 4: 1 024 atoms), ``--points`` grid points per cube and axis.
``start_GB`` is what the process has when libraries and model are loaded and four atoms were predicted, which
touches all code; ``bytes_per_point`` is the peak above it per grid point of the rank's part, ``peak_GB`` the
whole (VmHWM).
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk

from malax import shipped
from malax.comm import world
from malax.descriptors import lammps
from malax.descriptors.structure import numbered_species
from malax.emulator import Emulator
from malax.grid import Grid
from malax.network import LDOSNetwork, NetworkConfig


def status(name: str) -> float:
    """An entry of /proc/self/status in GB: VmHWM (peak) or VmRSS (now)."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1]) * 1024 / 1e9


def take_random_network(emulator: Emulator, hidden: list[int]) -> None:
    """Give the model a network of these hidden layers with random weights (always the same ones), scaled so
    that its LDOS holds about as many electrons."""
    config, old = NetworkConfig(hidden=tuple(hidden), activation="silu"), emulator.network
    generator = torch.Generator().manual_seed(0)
    network = LDOSNetwork.from_config(config, old.n_features, old.n_energies, generator)
    step = torch.from_numpy(0.06 / (1 + np.exp(-(emulator.energy_grid + 3.0) / 0.5)))
    network.set_scalers(old.feature_mean, 1e3 * old.feature_scale, old.ldos_scale, step)
    emulator.network = network.eval()


def beside(atoms: Atoms, shape: tuple[int, ...], emulator: Emulator, ours: float) -> dict[str, float]:
    """LAMMPS' own time for the descriptors on the same grid, and how many whole predictions fit into it."""
    descriptor = emulator.info.descriptor
    types, weights = numbered_species(atoms, descriptor.weights)
    seconds = lammps.run_seconds(atoms, types, weights, Grid(atoms.cell.array, shape), descriptor._snap())
    return {"seconds": round(seconds, 2), "ratio": round(seconds / ours, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, nargs="+", default=[8, 8, 4])
    parser.add_argument("--points", type=int, default=16)
    parser.add_argument("--random", type=int, nargs="+", help="hidden layers of a network of random weights")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--lammps", action="store_true", help="LAMMPS' descriptors beside it, on one rank")
    parser.add_argument("--log", action="store_true", help="progress on stderr")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # a coarse grid is what is asked for
    comm = world()
    emulator = Emulator.load(shipped.model())
    if options.random:
        take_random_network(emulator, options.random)
    cells = (options.cells * 3)[:3] if len(options.cells) == 1 else options.cells
    atoms = bulk("Al", "fcc", a=4.05, cubic=True).repeat(cells)
    atoms.positions += np.random.default_rng(0).normal(0.0, 0.1, atoms.positions.shape)
    grid = tuple(options.points * n for n in cells)
    begin, last = time.perf_counter(), [0.0]

    def progress(done: int, total: int) -> None:
        now = time.perf_counter() - begin
        if options.log and comm.rank == 0 and now - last[0] > 30:
            last[0] = now
            print(f"{now:.0f} s: {done} of {total} tiles, {status('VmRSS'):.2f} GB", flush=True)

    emulator.predict(bulk("Al", "fcc", a=4.05, cubic=True), 298.0, (16, 16, 16), comm)
    start, cpu = status("VmRSS"), time.process_time()
    result = emulator.predict(atoms, 298.0, grid, comm, precision=options.precision, progress=progress)
    points = result.part[1] - result.part[0]
    mine = {
        "rank": comm.rank,
        "points": points,
        "start_GB": round(start, 3),
        "peak_GB": round(status("VmHWM"), 3),
        "bytes_per_point": round((status("VmHWM") - start) * 1e9 / max(points, 1), 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }
    every = comm.gather(mine)
    if every is not None:
        found = {
            "atoms": len(atoms),
            "grid": grid,
            "ranks": every,
            "seconds": {stage: round(value, 2) for stage, value in result.timings.items()},
            "total_free_per_atom": result.energies.total_free / len(atoms),
        }
        if options.lammps:
            found["lammps"] = beside(atoms, grid, emulator, result.timings["total"])
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
