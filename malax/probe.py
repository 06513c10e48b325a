"""What a prediction costs on this machine, measured in a few seconds on pieces of the very thing.

Tiles of the structure are predicted as in the run, with its threads, on all ranks at the same time (they
share a memory bus). Hartree, XC and Ewald are done for a small cell with as many atoms and grid points per
volume.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms

from malax import estimate
from malax.checks import check_atoms
from malax.comm import Comm, SerialComm
from malax.emulator import Emulator
from malax.energies.core import form_factor
from malax.energies.functionals import find_functional
from malax.energies.slab_ewald import ewald_energy_of
from malax.energies.slab_factors import structure_factors
from malax.energies.slab_terms import Part, coefficients_of, exchange_correlation, hartree
from malax.energies.sphere import cutoff_g2, refined_grid
from malax.ensemble import members_of
from malax.errors import InputError
from malax.estimate import Job
from malax.fft import Waves
from malax.grid import Grid, fft_friendly
from malax.precision import as_precision
from malax.predict import N_NODES, Physics, chebyshev, coarse_grid, interpolate
from malax.streaming import Chain, Clock
from malax.tiles import Tiles, tile_costs

STAGES = ("descriptors", "network", "domain")

_SIDE = 54
"""Grid points along an axis of the cell on which the energies are timed."""

_LAMMPS_SIDE = 12
_MANY_ATOMS = 8000
_MOST_TILES = 12
_EXCHANGED = 1 << 20
_CALLS = 0.3
"""Seconds for repeated calls of one part of the energies."""

DISK = 5e8
"""Bytes that a disk takes in a second: assumed, since nothing is written to measure it."""


class Alone(SerialComm):
    """One rank of many, without the others: what it computes for itself can be timed."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size  # type: ignore[misc]


@dataclass(frozen=True)
class Rates:
    """Seconds of this process with its threads, the slowest of all ranks.

    Attributes
    ----------
    main, coarse : per stage and unit of `malax.tiles.tile_costs`, on the grid and on that of the first pass
    fields, core : Hartree and XC, core charge, for the ``points`` of the small cell's dense grid
    ewald : per atom
    setup : of checking and sorting, per atom (every rank does all of them)
    text : per number in a cube file
    exchange : per byte that a rank sends when all send to all; 0 for one rank, which tells nothing of others
    exact : whether the members' Fermi levels need another pass
    cost_per_point : mean of `malax.tiles.tile_costs` per point, where the structure is a sample
    """

    main: dict[str, float]
    coarse: dict[str, float]
    fields: float
    core: float
    points: int
    ewald: float
    setup: float
    text: float
    exchange: float = 0.0
    exact: bool = False
    cost_per_point: float = 1.0
    samples: int = 0
    threads: int = field(default_factory=torch.get_num_threads)


def measure(
    emulator: Emulator,
    job: Job,
    temperatures: list[float],
    comm: Comm | None = None,
    seconds: float = 1.5,
) -> Rates:
    """Measure for about ``seconds`` and the time of the energies of a small cell; collective.

    Raises
    ------
    InputError
        a structure that the model cannot be asked about.
    """
    comm = comm or SerialComm()
    assert job.atoms is not None  # a sample, if not the structure
    check_atoms(job.atoms, emulator.info.elements)
    comm.barrier()
    # LAMMPS does whole grids with all ranks: it is timed on a small one, and the rest with our features
    precision = as_precision(job.precision)
    chain = Chain(emulator, job.atoms, SerialComm(), "native", Clock(), precision=precision)
    weights = np.ones((len(temperatures) * N_NODES, emulator.network.n_energies))
    grid = _countable(job.grid)
    coarse = _tiles(chain, coarse_grid(grid), weights[:0], seconds / 3)
    main = _tiles(chain, grid, weights, seconds, job.ldos)
    if job.backend == "lammps":
        each = _lammps(emulator, job.atoms, grid) / main.cost_per_point
        main.rates["descriptors"] = coarse.rates["descriptors"] = each
    fields, core, points = _fields(emulator, job)
    mine = Rates(
        main=main.rates,
        coarse=coarse.rates,
        fields=fields,
        core=core,
        points=points,
        ewald=_ewald(emulator, job),
        setup=_setup(emulator, job.atoms),
        text=_text(),
        exchange=_exchange(comm),
        exact=_needs_exact(emulator, job, coarse.dos, temperatures),
        cost_per_point=main.cost_per_point,
        samples=main.tiles,
    )
    return _slowest(mine, comm)


def _countable(grid: Grid) -> Grid:
    """The grid, or a coarser one of the same cell where tiles are too many to be counted."""
    while len(Tiles.of(grid)) > estimate.MOST_TILES:
        grid = Grid(grid.cell, tuple(-(-n // 2) for n in grid.shape))  # type: ignore[arg-type]
    return grid


class Sampled(NamedTuple):
    """What some tiles of a grid say.

    rates : per stage, seconds per unit of `malax.tiles.tile_costs`
    dos : (k, E) of the members, as if all points were like these
    cost_per_point : mean over the whole grid
    tiles : how many were timed
    """

    rates: dict[str, float]
    dos: np.ndarray
    cost_per_point: float
    tiles: int


def _tiles(chain: Chain, grid: Grid, weights: np.ndarray, seconds: float, keep_ldos: bool = False) -> Sampled:
    """Reduce tiles from all over the grid until ``seconds`` are over; the first warms up."""
    tiles = Tiles.of(grid)
    n = len(tiles)
    costs = tile_costs(tiles, grid, chain.atoms, chain.emulator.info.descriptor.cutoff)
    # multiples of the golden ratio: everywhere, without a period
    picks = [int(n * ((0.5 + i * 0.6180339887498949) % 1.0)) for i in range(4 * _MOST_TILES)]
    cuts = tiles.cuts(n, costs)  # of as many ranks as there are tiles: about one tile each
    chosen = [rank for rank in dict.fromkeys(picks) if cuts[rank + 1] > cuts[rank]][:_MOST_TILES]
    spent, cost, points, done = dict.fromkeys(STAGES, 0.0), 0.0, 0, 0
    dos = np.zeros((len(members_of(chain.emulator.network)), weights.shape[1]))
    begin = 0.0
    for i, rank in enumerate([chosen[0], *chosen]):
        clock = Clock()
        found = replace(chain, comm=Alone(rank, n), clock=clock).reduce(grid, weights, keep_ldos)
        if i == 0:
            begin = time.perf_counter()
            continue
        spent = {stage: spent[stage] + clock.seconds.get(stage, 0.0) for stage in STAGES}
        cost += float(costs[cuts[rank] : cuts[rank + 1]].sum())
        points, done, dos = points + found.part[1] - found.part[0], i, dos + found.member_dos
        if done >= 2 and time.perf_counter() - begin > seconds:
            break
    rates = {stage: value / cost for stage, value in spent.items()}
    return Sampled(rates, dos * (grid.n_points / points), float(costs.sum()) / grid.n_points, done)


def _needs_exact(emulator: Emulator, job: Job, dos: np.ndarray, temperatures: list[float]) -> bool:
    """Whether members of an ensemble have Fermi levels too far from that of their mean, by some tiles."""
    if len(dos) < 2 or job.atoms is None:
        return False
    info = emulator.info
    n_electrons = float(sum(info.valence[symbol] for symbol in job.atoms.get_chemical_symbols()))
    physics = Physics(emulator.energy_grid, n_electrons, info.broadening_variance, info.sigma is not None)
    nothing = np.empty((0, 1, N_NODES))
    try:
        for kelvin in temperatures:
            nodes = chebyshev(physics.from_dos(dos.mean(axis=0), kelvin).fermi_level, kelvin)
            if any(interpolate(physics, one, nothing, nodes, kelvin).interpolation["redo"] for one in dos):
                return True
    except InputError:  # some tiles alone may hold too few electrons
        return True
    return False


def _small_cell(emulator: Emulator, job: Job) -> tuple[Atoms, Grid]:
    """A cell of at most `_SIDE` points along an axis, with as many atoms and points per volume, on sites that
    keep their distance."""
    shape = tuple(n if n <= _SIDE else fft_friendly(_SIDE) for n in job.grid.shape)
    cell = job.grid.cell * (np.array(shape) / job.grid.shape)[:, None]
    n = max(1, round(job.n_atoms * math.prod(shape) / job.grid.n_points))
    side = math.ceil(n ** (1 / 3) - 1e-9)
    sites = np.stack(np.unravel_index(np.arange(side**3), (side,) * 3), axis=1)[:n] / side
    symbols = [job.elements[i % len(job.elements)] for i in range(n)]
    grid = Grid(cell, shape)  # type: ignore[arg-type]
    return Atoms(symbols, scaled_positions=sites, cell=cell, pbc=True), grid


def _fields(emulator: Emulator, job: Job) -> tuple[float, float, int]:
    """Seconds of Hartree and XC, and of the core charge, of a small cell; and its points."""
    atoms, grid = _small_cell(emulator, job)
    info = emulator.info
    total, core = estimate.has_total(emulator, job), estimate.has_core(emulator, job)
    ecutrho = info.ecutrho if total else None
    dense = grid if ecutrho is None else refined_grid(grid, ecutrho)
    alone = SerialComm()
    waves = Waves(dense.reciprocal, cutoff_g2(dense, ecutrho), alone)
    noise = 1 + 0.1 * np.random.default_rng(0).random(grid.shape)
    scaled = atoms.get_scaled_positions()

    def fields() -> None:
        found = coefficients_of(Part.of(noise, grid, alone), waves)
        hartree(found, waves, grid.volume)
        if total:
            exchange_correlation(found, 0.1 * found if core else None, waves, dense, find_functional(info.xc))

    def charges() -> None:
        for element in job.elements:
            if emulator.pseudopotentials[element].core_density is None:
                continue
            mine = scaled[[symbol == element for symbol in atoms.get_chemical_symbols()]]
            method = "auto" if grid.shape == job.grid.shape else "mesh"
            structure_factors(mine, np.ones(len(mine)), waves, method)
            for block in waves.blocks():
                g = torch.from_numpy(np.sqrt(block.g2))
                form_factor(emulator.pseudopotentials[element], g, waves.g2_max**0.5)

    return _best(fields), _best(charges) if core else 0.0, dense.n_points


def _ewald(emulator: Emulator, job: Job) -> float:
    """Seconds per atom of the Ewald sum, with the cutoff of the whole structure."""
    atoms, grid = _small_cell(emulator, job)
    charges = np.array([emulator.info.valence[symbol] for symbol in atoms.get_chemical_symbols()])
    whole = grid.shape == job.grid.shape
    cutoff = None if whole else estimate.ewald_sphere(job)[0]
    method = "auto" if whole else "mesh"
    return _best(lambda: ewald_energy_of(atoms, charges, SerialComm(), cutoff, method)) / len(atoms)


def _setup(emulator: Emulator, atoms: Atoms) -> float:
    """Seconds per atom of checking and sorting, of a supercell if the atoms are few."""
    many = atoms.repeat(math.ceil((_MANY_ATOMS / len(atoms)) ** (1 / 3)))
    start = time.perf_counter()
    check_atoms(many, emulator.info.elements)
    emulator.info.descriptor.prepared(many)
    return (time.perf_counter() - start) / len(many)


def _lammps(emulator: Emulator, atoms: Atoms, grid: Grid) -> float:
    """Seconds per point: LAMMPS does whole grids, and a smaller one costs the same per point."""
    small = Grid(grid.cell, tuple(min(n, _LAMMPS_SIDE) for n in grid.shape))  # type: ignore[arg-type]
    start = time.perf_counter()
    emulator.info.descriptor.compute(atoms, small, backend="lammps", dtype="float32")
    return (time.perf_counter() - start) / small.n_points


def _exchange(comm: Comm) -> float:
    """Seconds per byte of an exchange between all ranks; collective."""
    if comm.size == 1:
        return 0.0
    counts = [_EXCHANGED // comm.size] * comm.size
    send = np.zeros(sum(counts))
    comm.alltoallv(send, counts, counts)
    comm.barrier()
    return _best(lambda: comm.alltoallv(send, counts, counts), 3) / send.nbytes


def _text() -> float:
    """Seconds to write a number into a cube file."""
    values, form = np.random.default_rng(0).random(6 * 1024), "%17.9E" * 6 + "\n"
    return _best(lambda: (form * 1024 % tuple(values.tolist())).encode()) / len(values)


def _best(function: Callable[[], object], calls: int | None = None) -> float:
    """Seconds of the fastest of a few calls, or of ``calls``: what else runs here can only add."""
    times: list[float] = []
    while len(times) < (calls or 2) or (calls is None and len(times) < 5 and sum(times) < _CALLS):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def _slowest(mine: Rates, comm: Comm) -> Rates:
    """The largest of each time over the ranks; collective."""
    every = comm.bcast(comm.gather(mine))
    names = ("fields", "core", "ewald", "setup", "text", "exchange", "exact")
    slowest: dict[str, Any] = {name: max(getattr(one, name) for one in every) for name in names}
    for name in ("main", "coarse"):
        slowest[name] = {stage: max(getattr(one, name)[stage] for one in every) for stage in STAGES}
    return replace(mine, **slowest)


def times(emulator: Emulator, job: Job, rates: Rates, sizes: dict[str, float]) -> dict[str, float]:
    """Seconds per stage of a job, of the slowest rank, and their ``total``; the names of a result's timings.

    ``sizes`` of the files (`malax.fits.file_sizes`) give ``writing``, which a result does not count; nor does
    the total here.
    """
    cutoff, unit = emulator.info.descriptor.cutoff, rates.cost_per_point
    own = estimate.share(job, cutoff, cost_per_point=unit).cost
    first = estimate.share(job, cutoff, coarse_grid(job.grid), unit).cost
    found = {"first pass": first * sum(rates.coarse.values())}
    found |= {stage: own * rates.main[stage] for stage in STAGES if rates.main[stage]}
    if rates.exact:
        found["exact pass"] = own * sum(rates.main.values())
    members = len(members_of(emulator.network))
    densities = job.n_temperatures * (1 + (members if members > 1 else 0))
    dense = estimate.density_sphere(emulator, job)[0]
    points = dense.n_points
    growth = points / rates.points * math.log(points) / math.log(rates.points)
    one = growth * (rates.fields + rates.core) * estimate.plane_share(dense, job.ranks)
    sent = estimate.exchanged(emulator, job) * rates.exchange
    found["energies"] = densities * (one + sent + job.n_atoms * rates.ewald / job.ranks)
    found["set-up"] = rates.setup * job.n_atoms
    total = sum(found.values())
    text = rates.text * job.grid.n_points / job.ranks * ("cube" in sizes) * job.n_temperatures
    # tiles are of all temperatures
    written = sum(size * (1 if name == "tiles" else job.n_temperatures) for name, size in sizes.items())
    writing = text + written / DISK
    return {**found, "total": total, "writing": writing} if sizes else {**found, "total": total}
