"""Whether a prediction can be done here, asked before it starts: memory of every node, room on the disk."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ase import Atoms

from malax import estimate, machine
from malax.comm import Comm
from malax.emulator import Emulator
from malax.ensemble import members_of
from malax.errors import InputError
from malax.estimate import Job
from malax.io.cube import header
from malax.io.cube_parts import body_bytes
from malax.preview import preview_shape

_SMALL = 1 << 15
"""Bytes of what HDF5 keeps besides the arrays, and of the numbers of a result."""

_XYZ_ATOM, _XYZ_HEADER, _DOS_LINE, _XSF_VALUE, _XSF_ATOM = 54, 600, 40, 16, 55
"""Characters of a line or a value in the files of other programs."""

OVERRIDE = "--no-fit-check"


@dataclass(frozen=True)
class Node:
    """What the processes on one node may take in addition, in bytes (None: not known), and how many they
    are."""

    ranks: int
    available: int | None


def nodes(comm: Comm, available: int | None = None, addresses: int | None = None) -> list[Node]:
    """The nodes of a run, the same on all ranks; collective.

    ``available`` bytes of the node and ``addresses`` of this process stand for what `malax.machine` finds.
    """
    available = machine.available_memory() if available is None else available
    addresses = machine.address_space() if addresses is None else addresses
    every = comm.bcast(comm.gather((available, addresses)))
    found = []
    for ranks in machine.ranks_per_node(comm):
        limits = [every[rank][0] for rank in ranks if every[rank][0] is not None]
        # a limit of one process is that of all, times their number: all need the same
        limits += [len(ranks) * every[rank][1] for rank in ranks if every[rank][1] is not None]
        found.append(Node(len(ranks), min(limits, default=None)))
    return found


_WHOLE = {"xsf": 2 * estimate.REAL, "qe-save": 2 * estimate.REAL + 2 * estimate.COMPLEX}
"""Bytes per point of the whole grid that rank 0 needs for files that it writes alone: the density and a copy
of it, plane waves."""


def gathered_bytes(job: Job, names: Collection[str]) -> float:
    """Bytes that rank 0 needs to write these files (see `file_sizes`)."""
    return job.grid.n_points * float(max((_WHOLE.get(name, 0) for name in names), default=0))


def check_memory(
    emulator: Emulator, job: Job, label: str, there: Sequence[Node], gathered: float = 0.0
) -> None:
    """InputError if a node has less memory than its ranks of a job need.

    Rank 0, on the first node, needs ``gathered`` bytes besides its density when the others are finished.
    """
    needed = estimate.peak(emulator, job)
    for i, node in enumerate(there):
        rank_0 = gathered if i == 0 else 0.0
        total = estimate.node_bytes(emulator, job, node.ranks, rank_0)
        if node.available is None or total <= node.available:
            continue
        each = f"{gigabytes(needed)} per rank" if node.ranks > 1 else "one rank"
        ranks = estimate.fitting_ranks(emulator, job, node.ranks, node.available, rank_0)
        grid = estimate.fitting_grid(emulator, job, node.ranks, node.available, rank_0)
        ways = [] if ranks is None else [f"{ranks} ranks on {ranks // node.ranks} such nodes"]
        ways += [] if grid is None else [f"--grid {' '.join(map(str, grid))}"]
        if node.ranks * needed <= node.available:  # only what rank 0 gathers is too much
            ways.append("leaving out --xsf and --qe-save")
        raise InputError(
            f"{label} on the grid {' x '.join(map(str, job.grid.shape))} needs "
            f"{gigabytes(total)} of memory on a node ({each}), {gigabytes(node.available)} are "
            f"available; {' or '.join(ways) + ' would fit' if ways else 'no number of ranks would do'} "
            f"({OVERRIDE} starts it all the same)"
        )


def check_disk(sizes: Mapping[Path, float], free: int | None = None) -> None:
    """InputError if files of these sizes do not fit where they are to be; ``free`` bytes stand for what the
    disk says. Of files that are there already the largest counts: they are replaced one after the other."""
    folders: dict[Path, float] = {}
    replaced: dict[Path, float] = {}
    for path, size in sizes.items():
        if path.exists():
            replaced[path.parent] = max(size, replaced.get(path.parent, 0.0))
        else:
            folders[path.parent] = folders.get(path.parent, 0.0) + size
    for folder, size in replaced.items():
        folders[folder] = folders.get(folder, 0.0) + size
    for folder, needed in folders.items():
        if not folder.is_dir():
            continue  # refused with its own words
        left = shutil.disk_usage(folder).free if free is None else free
        if needed > left:
            raise InputError(
                f"the outputs in {folder} need {gigabytes(needed)}, {gigabytes(left)} are free on that disk; "
                f"write less, or elsewhere ({OVERRIDE} starts it all the same)"
            )


def file_sizes(emulator: Emulator, job: Job, names: Collection[str]) -> dict[str, float]:
    """Bytes of the outputs of one result; ``names`` of those wanted.

    h5, cube, preview, xsf, dos, extxyz, qe-save: the files of these options; tiles: the LDOS beside them,
    which goes when it is in the result.
    """
    n, n_energies = job.grid.n_points, len(emulator.energy_grid)
    ldos = estimate.SINGLE * n * n_energies if job.ldos else 0
    fields = 1 if len(members_of(emulator.network)) == 1 else 2  # density, and its standard deviation
    nx, ny, nz = job.grid.shape
    sizes = {
        "h5": estimate.REAL * n * fields + ldos + 32 * job.n_atoms + 16 * n_energies + _SMALL,
        "cube": body_bytes(job.grid.shape) + _header(job),
        "preview": body_bytes(preview_shape(job.grid.shape)) + _header(job),
        "xsf": _XSF_VALUE * (nx + 1) * (ny + 1) * (nz + 1) + _XSF_ATOM * job.n_atoms,
        "dos": _DOS_LINE * n_energies,
        "extxyz": _XYZ_HEADER + _XYZ_ATOM * job.n_atoms,
        "qe-save": _density_file(emulator, job) if "qe-save" in names else 0.0,
        "tiles": ldos,
    }
    return {name: float(size) for name, size in sizes.items() if name in names and size}


def kept_ldos(folder: Path | None, ranks: int) -> float:
    """Bytes on the disk of the LDOS in a folder of tiles that a run on so many ranks uses: an ended run took
    all of them at its start. 0 without such a folder."""
    if folder is None or not folder.is_dir():
        return 0.0
    used = {f".{rank}.ldos" for rank in range(ranks)}
    files = [path for path in folder.iterdir() if "".join(path.suffixes) in used]
    return float(sum(512 * path.stat().st_blocks for path in files))


def kept_bytes(emulator: Emulator, job: Job) -> float:
    """Bytes of the tiles that a run of more than `malax.long_run.INTERVAL` seconds keeps, to be taken up
    again."""
    members = len(members_of(emulator.network))
    return float(estimate.REAL * estimate.N_NODES * members * job.n_temperatures * job.grid.n_points)


def _header(job: Job) -> int:
    """Bytes of the header of a cube file."""
    lengths = []
    for n in (0, 1):
        atoms = Atoms(job.elements[:1] * n, positions=[[0.0, 0.0, 0.0]] * n, cell=job.grid.cell)
        lengths.append(len(header(atoms, job.grid.shape, "electron density in 1/bohr^3")))
    return lengths[0] + job.n_atoms * (lengths[1] - lengths[0])


def _density_file(emulator: Emulator, job: Job) -> float:
    """Bytes of charge-density.dat: coefficient and three integers of all waves, twice (also for scf.in)."""
    waves = estimate.density_sphere(emulator, job)[1]
    return 2 * (estimate.COMPLEX + 3 * 4) * 2 * waves.waves


def gigabytes(value: float) -> str:
    """A size for people."""
    return f"{value / 1e9:.3g} GB" if value >= 1e8 else f"{value / 1e6:.3g} MB"
