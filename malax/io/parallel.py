"""One file written by all ranks, without parallel HDF5 and without anything passing through rank 0.

Rank 0 makes the file with all its space and learns where in it each part of an array will stand; then every
rank opens it and writes its own bytes there, at the same time as the others (they do not overlap); then rank
0 renames it. HDF5 is not needed for that: a chunk without a filter is its bytes in the file. So the result is
one ordinary file, no rank needs more memory than its part, and all use a parallel file system.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import h5py
import numpy as np

from malax.comm import Comm, on_root
from malax.errors import MachineError, MalaxError
from malax.io.files import check_output, temporary_beside

Plan = TypeVar("Plan")
Pieces = Iterator[tuple[int, "bytes | memoryview"]]

_BLOCK = 1 << 26
_LARGEST_CHUNK = 1 << 32
"""Bytes; HDF5 takes chunks below this."""


def write_together(
    comm: Comm,
    path: str | os.PathLike[str],
    overwrite: bool,
    prepare: Callable[[Path], Plan],
    pieces: Callable[[Plan], Pieces],
) -> Path:
    """Write one file from all ranks; it appears under its name when it is whole. Collective.

    Parameters
    ----------
    prepare : called on rank 0 with a temporary path: makes that file, returns what ranks need to know
    pieces : called on every rank with what ``prepare`` returned: (offset in bytes, bytes) of what it has

    Raises
    ------
    FileError
        the folder does not exist, or the file exists and ``overwrite`` is false.
    MachineError
        the disk is full, or a rank cannot write there: all ranks raise it, and nothing is left behind.
    """
    final = Path(path)
    temporary = on_root(comm, lambda: _checked(final, overwrite))
    try:
        plan = on_root(comm, lambda: _translated(final, lambda: prepare(temporary)))
        problem = _write(comm, temporary, final, pieces(plan))
        problems = [found for found in _everybodys(comm, problem) if found]
        if problems:
            raise MachineError(problems[0])
        on_root(comm, lambda: _translated(final, lambda: os.replace(temporary, final)))
    finally:
        if comm.rank == 0:
            temporary.unlink(missing_ok=True)
    return final


def _checked(final: Path, overwrite: bool) -> Path:
    check_output(final, overwrite)
    return temporary_beside(final)


def _translated(final: Path, action: Callable[[], Plan]) -> Plan:
    try:
        return action()
    except MalaxError:
        raise
    except OSError as error:
        raise MachineError(f"cannot write {final}: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    return "the disk is full" if error.errno == errno.ENOSPC else (error.strerror or str(error))


def _write(comm: Comm, temporary: Path, final: Path, pieces: Pieces) -> str:
    """Write this rank's pieces; what went wrong, or nothing."""
    try:
        file = os.open(temporary, os.O_WRONLY)
        try:
            for offset, data in pieces:
                view = memoryview(data).cast("B")
                for start in range(0, len(view), _BLOCK):
                    part = view[start : start + _BLOCK]
                    done = 0
                    while done < len(part):
                        done += os.pwrite(file, part[done:], offset + start + done)
            os.fsync(file)
        finally:
            os.close(file)
    except OSError as error:
        where = f" (rank {comm.rank}; all ranks need this folder)" if comm.size > 1 else ""
        return f"cannot write {final}: {_reason(error)}{where}"
    return ""


def _everybodys(comm: Comm, text: str) -> list[str]:
    every = comm.gather(text)
    return comm.bcast(every)


def allocate(file: h5py.File, name: str, shape: tuple[int, ...], dtype: str, unit: str) -> np.ndarray:
    """Make a dataset (nx, ny, nz, ...) whose space is there but not filled.

    Its chunks are planes of x, or as many whole lines of one as HDF5 takes in a chunk. Returns the place
    (chunks,) in bytes of each chunk in the file; chunks follow each other as the points of the grid do.
    """
    line = int(np.prod(shape[2:])) * np.dtype(dtype).itemsize
    ny = next(
        n for n in range(shape[1], 0, -1) if shape[1] % n == 0 and (n * line < _LARGEST_CHUNK or n == 1)
    )
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_chunk((1, ny, *shape[2:]))
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    identifier = h5py.h5d.create(
        file.id, name.encode(), h5py.h5t.py_create(np.dtype(dtype)), h5py.h5s.create_simple(shape), layout
    )
    h5py.Dataset(identifier).attrs["unit"] = unit
    rest = (0,) * (len(shape) - 2)
    corners = [(x, y, *rest) for x in range(shape[0]) for y in range(0, shape[1], ny)]
    places = [identifier.get_chunk_info_by_coord(corner).byte_offset for corner in corners]
    return np.array(places, dtype=np.int64)


def field_pieces(values: np.ndarray, start: int, n_points: int, places: np.ndarray) -> Pieces:
    """Where the flat points start, start + 1, ... of a field of ``n_points`` stand in a file.

    ``values`` (n, ...) are those points; ``places`` of `allocate`.
    """
    mapped = values._mmap if isinstance(values, np.memmap) else None  # type: ignore[attr-defined]
    seen = 0
    values = np.ascontiguousarray(values)
    row, per_chunk = values[:1].nbytes, n_points // len(places)
    point, stop = start, start + len(values)
    while point < stop:
        chunk, within = divmod(point, per_chunk)
        n = min(stop - point, per_chunk - within)
        part = values[point - start : point - start + n]
        yield int(places[chunk]) + within * row, part.reshape(-1).view(np.uint8).data
        point, seen = point + n, seen + part.nbytes
        if mapped is not None and seen > _BLOCK:
            # what was written need not stay in this process: the pages are a file's
            mapped.madvise(mmap.MADV_DONTNEED)
            seen = 0
