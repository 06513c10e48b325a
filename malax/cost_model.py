"""What a prediction costs on many ranks: the work that is divided, and what is not.

The work per tile and per wave is that of `malax.probe`, measured on one process. To it come what every rank
does alone whatever their number (all atoms, all costs of tiles, all sums of the DOS) and what ranks tell each
other, by a network of given latency and bandwidth.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from malax import estimate, probe
from malax.comm import SerialComm
from malax.emulator import Emulator
from malax.energies.structure_factor import mesh_shape
from malax.ensemble import members_of
from malax.estimate import Job
from malax.fft import rounds_for
from malax.grid import Grid
from malax.probe import Rates
from malax.tiles import PairwiseSum, Tiles, tile_costs


@dataclass(frozen=True)
class Fabric:
    """What lies between the ranks, in s and bytes/s.

    latency : of one message
    bandwidth : of one rank, when all of them send
    disk : of the file system, for all ranks together
    """

    latency: float = 2e-6
    bandwidth: float = 1e9
    disk: float = 1e10


@dataclass(frozen=True)
class Serial:
    """Seconds of what is not divided.

    tree : adding one subtree of tiles to the sum of the DOS
    tile : counting the neighbours of one tile, to deal the tiles out
    """

    tree: float
    tile: float


def measure_serial(emulator: Emulator, job: Job) -> Serial:
    """Measure `Serial` with the atoms of a job."""
    assert job.atoms is not None
    sums = PairwiseSum(len(members_of(emulator.network)) * len(emulator.energy_grid) + 1)
    row, n = np.ones(len(emulator.energy_grid) * len(members_of(emulator.network)) + 1), 512
    start = time.perf_counter()
    for i in range(n):
        sums.add(i, row)
    sums.total(SerialComm())
    tree = (time.perf_counter() - start) / n
    # as many tiles as a large structure has: a call has a price of its own
    finer = Grid(job.grid.cell, tuple(8 * n for n in job.grid.shape))  # type: ignore[arg-type]
    tiles = Tiles.of(finer)
    start = time.perf_counter()
    tile_costs(tiles, finer, job.atoms, emulator.info.descriptor.cutoff)
    return Serial(tree, (time.perf_counter() - start) / len(tiles))


def stages(emulator: Emulator, job: Job, rates: Rates, serial: Serial, fabric: Fabric) -> dict[str, float]:
    """Seconds of the slowest rank, by what they go to.

    tiles : descriptors, network, reduction, first pass: divided by tiles
    transforms : FFTs, XC, Ewald: divided by planes, so no faster with more ranks than planes
    exchange : all-to-alls of the transforms: bytes at the bandwidth, and a latency for each other rank
    atoms : what every rank does with all atoms, and their broadcast
    balance : counting neighbours of all tiles, on every rank
    dos : the sums of all ranks, on every rank
    output : the density (and the LDOS) through the file system
    """
    found = probe.times(emulator, job, rates, {})
    divided = ("first pass", *probe.STAGES, "exact pass")
    members = len(members_of(emulator.network))
    densities = job.n_temperatures * (1 + (members if members > 1 else 0))
    n_tiles = len(Tiles.of(job.grid))
    hops = math.ceil(math.log2(job.ranks))
    per_rank = max(1, n_tiles // job.ranks)
    trees = job.ranks * min(per_rank, 2 * math.log2(per_rank) + 1)
    row = estimate.REAL * (members * len(emulator.energy_grid) + 3)
    atom_bytes = 4 * estimate.REAL * job.n_atoms
    point_bytes = estimate.REAL * (1 if members == 1 else 2)
    point_bytes += estimate.SINGLE * len(emulator.energy_grid) if job.ldos else 0
    messages = densities * all_to_alls(emulator, job) * (job.ranks - 1)
    sent = densities * estimate.exchanged(emulator, job)
    return {
        "tiles": sum(found.get(stage, 0.0) for stage in divided),
        "transforms": found["energies"],
        "exchange": sent / fabric.bandwidth + messages * fabric.latency,
        "atoms": found["set-up"] + hops * (atom_bytes / fabric.bandwidth + fabric.latency),
        "balance": n_tiles * serial.tile,
        "dos": trees * serial.tree + (trees * row / fabric.bandwidth if job.ranks > 1 else 0.0),
        "output": job.n_temperatures * point_bytes * job.grid.n_points / fabric.disk,
    }


def all_to_alls(emulator: Emulator, job: Job) -> int:
    """How often all ranks exchange with all others for the energies of one density."""
    dense, waves = estimate.density_sphere(emulator, job)
    count = 2  # to planes, and to columns
    meshes = [estimate.ewald_sphere(job)[1]] + ([waves] if estimate.has_core(emulator, job) else [])
    count += sum(rounds_for(mesh_shape(mesh.m_max)[0], job.ranks) for mesh in meshes)
    if estimate.has_total(emulator, job):
        count += rounds_for(dense.shape[0], job.ranks) * (4 if estimate.has_core(emulator, job) else 2)
    return count
