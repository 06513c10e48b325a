"""What a prediction needs, before it is made: memory of each rank, and files. Arithmetic only.

This is the one place that counts bytes; it takes sizes from what will be run (tiles, network, transforms).
`malax.probe` measures the times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms

from malax.emulator import Emulator
from malax.energies.ewald import CONVERGENCE, balanced_cutoff
from malax.energies.sphere import cutoff_g2, refined_grid
from malax.energies.structure_factor import direct_cost, mesh_cost, mesh_shape
from malax.energies.xc import CHUNK
from malax.ensemble import members_of
from malax.errors import InputError
from malax.fft import block_columns, block_planes, rounds_for
from malax.grid import Grid, fft_friendly
from malax.long_run import LDOS_ROWS
from malax.predict import N_NODES
from malax.tiles import Tiles, tile_costs

REAL, COMPLEX, SINGLE = 8, 16, 4
"""Bytes of a number."""

LATER = 40e6
"""Bytes of libraries that load with the first use, and of what the allocator keeps: measured."""

ATOM = 200.0
"""Bytes that every rank has of every atom: positions, sorted copies, boxes, what is checked. Measured."""

MOST_TILES = 10_000_000
"""Beyond this, tiles are taken to cost the same: counting neighbours would take minutes."""

XC_ARRAYS, COLUMN_ARRAYS = 40, 5
"""Temporaries of `CHUNK` points in the functional, and of a block of columns in a transform."""


@dataclass(frozen=True)
class Job:
    """A prediction of one structure.

    Attributes
    ----------
    n_atoms, elements : of the structure
    grid : of the density
    ranks : among which it is divided
    n_temperatures : reductions of one pass
    ldos : whether the LDOS is kept; in_file: tile by tile in a file, not in memory
    backend : of the descriptors
    precision : of the products between hidden layers
    atoms : the structure, for the work of each tile; None: all tiles cost the same
    """

    n_atoms: int
    elements: tuple[str, ...]
    grid: Grid
    ranks: int = 1
    n_temperatures: int = 1
    ldos: bool = False
    in_file: bool = True
    backend: str = "native"
    precision: str = "float32"
    atoms: Atoms | None = None

    @classmethod
    def of(cls, atoms: Atoms, grid: Grid, **options: int | bool | str) -> Job:
        """The prediction of a structure on a grid of its cell."""
        elements = tuple(sorted(set(atoms.get_chemical_symbols())))
        return cls(len(atoms), elements, grid, atoms=atoms, **options)  # type: ignore[arg-type]


class Share(NamedTuple):
    """The tiles of a grid, and the most of them that one rank gets.

    n_tiles, tile_points : number of tiles and their size
    points, cost : the most points of a rank, and the largest sum of `malax.tiles.tile_costs`
    """

    n_tiles: int
    tile_points: int
    points: int
    cost: float


def share(job: Job, cutoff: float, grid: Grid | None = None, cost_per_point: float = 1.0) -> Share:
    """How the tiles of ``grid`` (default: the job's) fall on the ranks; ``cutoff`` (A) of the descriptor.

    Without atoms every point costs ``cost_per_point``.
    """
    grid = grid or job.grid
    tiles = Tiles.of(grid)
    n = len(tiles)
    if job.atoms is None or n > MOST_TILES:
        points = min(-(-n // job.ranks) * tiles.size, grid.n_points)
        return Share(n, tiles.size, points, points * cost_per_point)
    costs = tile_costs(tiles, grid, job.atoms, cutoff)
    cuts = tiles.cuts(job.ranks, costs)
    ends = np.minimum(cuts * tiles.size, grid.n_points)
    sums = np.concatenate([[0.0], np.cumsum(costs)])[cuts]
    return Share(n, tiles.size, int(np.diff(ends).max()), float(np.diff(sums).max()))


def memory(emulator: Emulator, job: Job) -> dict[str, float]:
    """Bytes that the largest rank needs above what it has with the model loaded, per stage.

    The stages do not coincide: the peak is the largest of them. Each holds what stays through it.
    """
    found = share(job, emulator.info.descriptor.cutoff)
    n, k, kelvins = found.points, len(members_of(emulator.network)), job.n_temperatures
    always = LATER + ATOM * job.n_atoms
    densities = REAL * n * kelvins * (k + 1 if k > 1 else 1)
    rows = tile_bytes(emulator, min(found.tile_points, job.grid.n_points), kelvins)
    kept = _kept_ldos(emulator, job, n)
    features = SINGLE * n * emulator.network.n_features if job.backend == "lammps" else 0
    stages = {
        # LAMMPS has its own array: double, with six columns of its own
        "descriptors": always + features * (1 + REAL / SINGLE) if features else 0.0,
        "main pass": always + rows + features + kept + REAL * n * k * kelvins * N_NODES + densities,
        "energies": always + kept + densities + energies_bytes(emulator, job),
        # the members' densities together, and their deviations from the mean
        "spread": always + kept + densities + 2 * REAL * n * k if k > 1 else 0.0,
    }
    return {stage: value for stage, value in stages.items() if value}


def peak(emulator: Emulator, job: Job) -> float:
    """Bytes that a rank needs at the worst moment above what it has with the model loaded."""
    return max(memory(emulator, job).values())


def _kept_ldos(emulator: Emulator, job: Job, n: int) -> float:
    """Bytes of the LDOS in memory: all rows of a rank, or those of a file that may stay."""
    if not job.ldos:
        return 0.0
    return SINGLE * emulator.network.n_energies * (min(n, LDOS_ROWS) if job.in_file else n)


def tile_bytes(emulator: Emulator, rows: int, n_temperatures: int = 1) -> float:
    """Bytes of work for a tile of ``rows`` points: features, a layer, the LDOS where one is made, sums."""
    n_features, n_energies = emulator.network.n_features, emulator.network.n_energies
    networks = members_of(emulator.network)
    hidden = max(
        (layer.in_features for network in networks for layer in network.linear_layers[1:]), default=0
    )
    numbers = 2 * n_features + hidden + n_energies * (2 if any(n.non_negative for n in networks) else 0)
    values = REAL * (len(networks) * N_NODES * n_temperatures + 3)
    domain = 0 if emulator.domain is None else REAL * (2 * n_features + emulator.domain.axes.shape[1])
    return rows * (SINGLE * numbers + values + domain)


class Sphere(NamedTuple):
    """Numbers of plane waves with mz >= 0 inside |G|^2 <= g2_max, of their columns, and their extents.

    Of a sphere that is large beside the reciprocal cell.
    """

    waves: float
    columns: float
    m_max: list[int]


def sphere(grid: Grid, g2_max: float) -> Sphere:
    """The waves of a cell (half of a sphere) and the columns along b1 (half of a disc)."""
    lengths = np.linalg.norm(grid.cell, axis=1)
    waves = 2 / 3 * math.pi * g2_max**1.5 * grid.volume / (2 * math.pi) ** 3
    across = (2 * math.pi) ** 3 / grid.volume / float(np.linalg.norm(grid.reciprocal[0]))
    columns = math.pi / 2 * g2_max / across
    m_max = [int(math.sqrt(g2_max) * a / (2 * math.pi)) for a in lengths]
    return Sphere(max(waves, 1.0), max(columns, 1.0), m_max)


def density_sphere(emulator: Emulator, job: Job) -> tuple[Grid, Sphere]:
    """The grid on which Hartree and XC are done, and its waves."""
    ecutrho = emulator.info.ecutrho if has_total(emulator, job) else None
    dense = job.grid if ecutrho is None else refined_grid(job.grid, ecutrho)
    return dense, sphere(dense, cutoff_g2(dense, ecutrho))


def ewald_sphere(job: Job) -> tuple[float, Sphere]:
    """The real-space cutoff (A) of the Ewald sum, and the waves of its other half."""
    cutoff = balanced_cutoff(job.n_atoms, torch.from_numpy(job.grid.cell), CONVERGENCE)
    return cutoff, sphere(job.grid, (2 * CONVERGENCE**2 / cutoff) ** 2)


def has_total(emulator: Emulator, job: Job) -> bool:
    """Whether the model can say a total free energy of these elements."""
    return set(job.elements) <= set(emulator.pseudopotentials)


def has_core(emulator: Emulator, job: Job) -> bool:
    """Whether some element has a core charge."""
    pseudo = emulator.pseudopotentials
    return has_total(emulator, job) and any(pseudo[e].core_density is not None for e in job.elements)


def energies_bytes(emulator: Emulator, job: Job) -> float:
    """Bytes that Hartree, XC, core charge and Ewald take besides the density, at the worst moment."""
    dense, waves = density_sphere(emulator, job)
    ranks, coefficients = job.ranks, COMPLEX * waves.waves / job.ranks
    slab = REAL * _planes(job.grid, 1, ranks) * math.prod(job.grid.shape[1:]) if ranks > 1 else 0.0
    moments = [slab + _to_columns(job.grid, 1, waves, ranks) + coefficients, _mesh(job.n_atoms, job)]
    if has_core(emulator, job):
        moments.append(coefficients + _mesh(job.n_atoms, job, waves))
    if has_total(emulator, job):
        fields = 2 if has_core(emulator, job) else 1
        moments.append(fields * coefficients + _xc(dense, waves, ranks, fields))
    return max(moments)


def _planes(grid: Grid, rounds: int, ranks: int) -> int:
    """The most planes of a round that a rank has."""
    return -(-grid.shape[0] // rounds // ranks)


def plane_share(grid: Grid, ranks: int) -> float:
    """The largest part of a grid's planes that one rank has: 1 / ranks, but no less than a plane a round."""
    rounds = rounds_for(grid.shape[0], ranks)
    return rounds * _planes(grid, rounds, ranks) / grid.shape[0]


def _to_columns(grid: Grid, rounds: int, waves: Sphere, ranks: int) -> float:
    """Planes sent and columns received of one transform, with a block of spectra."""
    _, ny, nz = grid.shape
    used = min(waves.columns, ny * (nz // 2 + 1))
    sent = COMPLEX * used * _planes(grid, rounds, ranks)
    block = 2 * COMPLEX * min(_planes(grid, rounds, ranks), block_planes(grid.shape)) * ny * (nz // 2 + 1)
    return sent * (1 if ranks == 1 else 2) + block


def _mesh(n_atoms: int, job: Job, waves: Sphere | None = None) -> float:
    """Structure factors: their waves, and a mesh with its transform. ``waves`` None: those of Ewald's."""
    waves = waves or ewald_sphere(job)[1]
    factors = COMPLEX * waves.waves / job.ranks
    if direct_cost(n_atoms, 2 * waves.waves) <= mesh_cost(n_atoms, waves.m_max):
        return factors
    mesh = Grid(job.grid.cell, tuple(mesh_shape(waves.m_max)))  # type: ignore[arg-type]
    rounds = rounds_for(mesh.shape[0], job.ranks)
    points = _planes(mesh, rounds, job.ranks) * math.prod(mesh.shape[1:])
    return factors + REAL * points + _to_columns(mesh, rounds, waves, job.ranks)


def _xc(dense: Grid, waves: Sphere, ranks: int, fields: int) -> float:
    """Sheets of one round, and the fields of some planes."""
    rounds = rounds_for(dense.shape[0], ranks)
    planes = _planes(dense, rounds, ranks)
    sheet = COMPLEX * waves.columns * planes
    sheets = 2 * fields * sheet + (sheet if ranks > 1 else 0)
    some = min(planes, block_planes(dense.shape)) * math.prod(dense.shape[1:])
    # spectra (half as many numbers, complex) of all sheets and of a slope; then slopes, products, fields
    work = REAL * (some * (2 * fields + 3 + 2 * fields + 3) + XC_ARRAYS * CHUNK)
    # the last sheet is made of columns: some at a time, with their waves, phases and transforms
    length = 2 * waves.m_max[0] + 1
    lines = COLUMN_ARRAYS * COMPLEX * length * min(block_columns(length), waves.columns / ranks)
    return sheets + max(work, lines)


def exchanged(emulator: Emulator, job: Job) -> float:
    """Bytes that a rank sends in the transforms of one density's energies."""
    if job.ranks == 1:
        return 0.0
    dense, waves = density_sphere(emulator, job)
    columns = waves.columns * dense.shape[0]
    meshes = [ewald_sphere(job)[1]] + ([waves] if has_core(emulator, job) else [])
    total = columns * (1 + 4 * has_core(emulator, job) or 2 * has_total(emulator, job))
    total += sum(mesh.columns * mesh_shape(mesh.m_max)[0] for mesh in meshes)
    return (COMPLEX * total + REAL * job.grid.n_points) / job.ranks


def node_bytes(emulator: Emulator, job: Job, per_node: int, gathered: float = 0.0) -> float:
    """Bytes that a node with ``per_node`` of a job's ranks needs.

    One of them, rank 0, needs ``gathered`` bytes besides its density when the others are finished.
    """
    needed = peak(emulator, job)
    own = REAL * share(job, emulator.info.descriptor.cutoff).points
    return per_node * needed + (max(0.0, gathered + own - needed) if gathered else 0.0)


def fitting_ranks(
    emulator: Emulator, job: Job, per_node: int, available: float, gathered: float = 0.0
) -> int | None:
    """The fewest ranks, ``per_node`` to a node with ``available`` bytes, that can do it; None: no number.

    ``gathered`` : as in `node_bytes`.
    """
    nodes = 1
    while nodes <= 1 << 20:
        more = replace(job, ranks=per_node * nodes, atoms=None)
        if node_bytes(emulator, more, per_node, gathered) <= available:
            return per_node * nodes
        nodes = nodes + 1 if nodes < 64 else 2 * nodes
    return None


def fitting_grid(
    emulator: Emulator, job: Job, per_node: int, available: float, gathered: float = 0.0
) -> tuple[int, int, int] | None:
    """The finest coarser grid of the same shape that fits; None: not even one of a hundredth of the points.

    ``gathered`` : as in `node_bytes`, of the job's own grid.
    """
    for step in range(1, 60):
        shape = tuple(max(1, fft_friendly(int(n * 0.98**step))) for n in job.grid.shape)
        if math.prod(shape) < 0.01 * job.grid.n_points:
            break
        smaller = replace(job, grid=Grid(job.grid.cell, shape), atoms=None)  # type: ignore[arg-type]
        rank_0 = gathered * math.prod(shape) / job.grid.n_points
        try:
            fits = node_bytes(emulator, smaller, per_node, rank_0) <= available
        except InputError:  # too coarse for the model's ecutrho, and so are all that follow
            break
        if fits and math.prod(shape) < job.grid.n_points:
            return shape  # type: ignore[return-value]
    return None
