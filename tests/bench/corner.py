"""10^6 displaced fcc Al atoms in one corner (1/8) of a cell: ``python tests/bench/corner.py``.

Seconds and memory of what is done once per structure, and how evenly its tiles are dealt out: the largest
cost of a rank over the mean, by the costs that malax assumes and by the time that tiles take (descriptors and
network of the shipped model, a sample of the tiles).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from ase.build import bulk

from malax import shipped
from malax.checks import check_atoms
from malax.comm import SerialComm
from malax.emulator import Emulator
from malax.energies.slab_ewald import ewald_energy_of
from malax.grid import Grid
from malax.tiles import Tiles, tile_costs


def peak() -> float:
    """VmHWM in GB."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e9


@contextmanager
def timed(what: str) -> Iterator[None]:
    start, cpu = time.perf_counter(), time.process_time()
    yield
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(f"{what:34s} {wall:7.2f} s ({cpu:.2f} s of processor), peak {peak():.2f} GB", flush=True)


class Rank(SerialComm):
    """One rank of many, for who owns which tiles."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


def share(measured: np.ndarray, part: range) -> float:
    """Seconds of a rank's tiles, from those of them that were computed (the others are zero)."""
    known = measured[part.start : part.stop]
    return float(known[known > 0].mean()) * len(part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=63, help="cubes of 4 atoms along an axis")
    parser.add_argument("--grid", type=int, default=1600)
    parser.add_argument("--vacuum", type=float, default=2.0, help="the cell's length over the crystal's")
    parser.add_argument("--sample", type=int, default=4001, help="every which tile is computed")
    parser.add_argument("--ewald", action="store_true", help="the Ewald energy, too (two minutes)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    atoms = bulk("Al", "fcc", a=4.05, cubic=True).repeat(options.cells)
    atoms.positions += np.random.default_rng(0).normal(0.0, 0.1, atoms.positions.shape)
    atoms.set_cell(atoms.cell.array * options.vacuum)
    grid = Grid(atoms.cell.array, (options.grid,) * 3)
    emulator = Emulator.load(shipped.model())
    descriptor = emulator.info.descriptor
    print(
        f"{len(atoms)} atoms in {1 / options.vacuum**3:.4f} of the cell, grid {grid.shape}, "
        f"at start {peak():.2f} GB"
    )
    with timed("checks (overlap)"):
        check_atoms(atoms, ("Al",))
    with timed("descriptors: sorting the atoms"):
        prepared = descriptor.prepared(atoms)
    tiles = Tiles.of(grid)
    with timed("costs of the tiles"):
        costs = tile_costs(tiles, grid, atoms, descriptor.cutoff)
    measured = np.zeros(len(tiles))
    with timed(f"every {options.sample}th of {len(tiles)} tiles"), torch.inference_mode():
        for tile in range(0, len(tiles), options.sample):
            start = time.process_time()
            features = prepared.at_points(grid.points(*tiles.points(range(tile, tile + 1))), dtype="float32")
            emulator.network(torch.from_numpy(features)).sum()
            measured[tile] = time.process_time() - start
    if options.ewald:
        with timed("Ewald energy, one rank"):
            ewald_energy_of(atoms, np.full(len(atoms), 3.0), SerialComm())
    seen = measured[:: options.sample]
    print(
        f"seconds of a tile {seen.min():.4f} to {seen.max():.4f}; "
        f"assumed costs {costs.min():.0f} to {costs.max():.0f}"
    )
    for size in (2, 3, 8, 16):
        parts = [tiles.owned(Rank(rank, size), costs) for rank in range(size)]
        plain = [tiles.owned(Rank(rank, size)) for rank in range(size)]
        rows = {
            "assumed": [costs[part].sum() for part in (slice(p.start, p.stop) for p in parts)],
            "measured": [share(measured, part) for part in parts],
            "measured, equal numbers of tiles": [share(measured, part) for part in plain],
        }
        said = ", ".join(f"{name} {max(row) / np.mean(row):.3f}" for name, row in rows.items())
        print(f"{size:4d} ranks, largest over mean: {said}")


if __name__ == "__main__":
    main()
