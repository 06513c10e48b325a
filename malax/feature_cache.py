"""Features and LDOS of a snapshot, side by side on disk, in an order that makes every block a random sample.

A file holds one float32 array (P, F + E): per row the features of a grid point, then its LDOS. The rows
stand in a fixed random order, so that reading a contiguous block, which disks and the network like, is
drawing a random sample of the snapshot, which training likes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np

from malax.descriptors import Descriptor
from malax.errors import FileError, MachineError
from malax.io.files import atomic_path
from malax.io.snapshot import Snapshot

FORMAT = 1
"""Part of every key: what an older malax wrote in another layout is not read."""

TILE_POINTS = 8192
"""Points whose features are held at once while a file is made (whole planes of the grid, one at least)."""


def random_order(n: int, *key: int) -> np.ndarray:
    """A random permutation (n,) int64 that depends on ``n`` and ``key`` only.

    Sorts raw numbers of PCG64, which NumPy promises not to change (its ``permutation`` may change).
    """
    raw = np.random.PCG64(np.random.SeedSequence([n, *key])).random_raw(n)
    return np.argsort(raw, kind="stable")


@dataclass(frozen=True)
class Rows:
    """The cached rows of one snapshot.

    Attributes
    ----------
    path : the file
    n_points, n_features, n_energies : P, F, E
    """

    path: Path
    n_points: int
    n_features: int
    n_energies: int

    @property
    def width(self) -> int:
        """Numbers per row, F + E."""
        return self.n_features + self.n_energies

    @cached_property
    def order(self) -> np.ndarray:
        """(P,) flat grid index of every row."""
        return random_order(self.n_points)

    @cached_property
    def _offset(self) -> int:
        with open(self.path, "rb") as file:
            return _read_header(file, (self.n_points, self.width))

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows start..stop-1 as (stop - start, F + E) float32.

        Raises
        ------
        FileError
            the file was removed or cut since it was opened.
        """
        count = (stop - start) * self.width
        try:
            offset = self._offset + 4 * start * self.width
            block = np.fromfile(self.path, dtype="<f4", count=count, offset=offset)
        except (OSError, ValueError) as error:
            raise FileError(f"cannot read the cached features {self.path}: {error}") from error
        if len(block) != count:
            raise FileError(f"the cached features {self.path} are truncated; remove the file and start again")
        return block.reshape(-1, self.width)


def cached_rows(snapshot: Snapshot, descriptor: Descriptor, folder: Path, threads: int | None = None) -> Rows:
    """The rows of a snapshot, from the cache folder if they are there, computed otherwise.

    Only a tile of ``TILE_POINTS`` is held in memory. The file's name carries a hash of the snapshot file and
    of the descriptor's settings; it appears when it is whole.

    Raises
    ------
    FileError
        features or LDOS that are not finite.
    MachineError
        the disk is full or the folder cannot be written.
    """
    rows = _rows(snapshot, descriptor, folder)
    if is_cached(rows):
        return rows
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"cannot make the cache folder {folder}: {error.strerror}") from error
    with atomic_path(rows.path) as temporary:
        _write(temporary, rows, snapshot, descriptor, threads)
    return rows


def is_cached(rows: Rows) -> bool:
    """Whether the file is there and whole."""
    try:
        with open(rows.path, "rb") as file:
            offset = _read_header(file, (rows.n_points, rows.width))
            return os.fstat(file.fileno()).st_size == offset + 4 * rows.n_points * rows.width
    except (OSError, ValueError):
        return False


def cache_key(snapshot: Snapshot, descriptor: Descriptor) -> str:
    """Hexadecimal hash of what the rows depend on."""
    parts = {"format": FORMAT, "snapshot": snapshot.sha256, "descriptor": descriptor.model_dump(mode="json")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _rows(snapshot: Snapshot, descriptor: Descriptor, folder: Path) -> Rows:
    path = folder / f"{snapshot.name}-{cache_key(snapshot, descriptor)[:16]}.npy"
    return Rows(path, snapshot.grid.n_points, descriptor.n_features, len(snapshot.energy_grid))


def _read_header(file: BinaryIO, shape: tuple[int, int]) -> int:
    """Offset of the numbers in a .npy file of this shape; ValueError for any other file."""
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError("another version of .npy")
    found, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if found != shape or fortran or dtype != np.dtype("<f4"):
        raise ValueError("another array")
    return file.tell()


def _write(path: Path, rows: Rows, snapshot: Snapshot, descriptor: Descriptor, threads: int | None) -> None:
    grid = snapshot.grid
    plane = grid.shape[1] * grid.shape[2]
    step = max(1, TILE_POINTS // plane) * plane
    place = np.empty(grid.n_points, dtype=np.int64)
    place[rows.order] = np.arange(grid.n_points)
    with open(path, "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows.n_points, rows.width)}
        np.lib.format.write_array_header_1_0(file, header)  # type: ignore[arg-type]
        file.flush()
        offset = file.tell()
        for start in range(0, grid.n_points, step):
            stop = min(start + step, grid.n_points)
            tile = _tile(rows, snapshot, descriptor, start, stop, threads)
            _scatter(file.fileno(), offset, tile, place[start:stop])


def _tile(
    rows: Rows, snapshot: Snapshot, descriptor: Descriptor, start: int, stop: int, threads: int | None
) -> np.ndarray:
    """Features and LDOS (stop - start, F + E) of a range of grid points, checked."""
    tile = np.empty((stop - start, rows.width), dtype="<f4")
    tile[:, : rows.n_features] = descriptor.compute(
        snapshot.atoms, snapshot.grid, start, stop, dtype="float32", threads=threads
    )
    tile[:, rows.n_features :] = snapshot.read_ldos(start, stop)
    if not np.isfinite(tile).all():
        what = "descriptors" if not np.isfinite(tile[:, : rows.n_features]).all() else "LDOS"
        raise FileError(f"{snapshot.path}: the {what} of grid points {start} to {stop - 1} are not finite")
    return tile


def _scatter(descriptor: int, offset: int, tile: np.ndarray, place: np.ndarray) -> None:
    """Write row i of the tile as row place[i] of the file.

    Plain writes, in the order of the file: through a memory map a full disk would kill the process.
    """
    size = tile[0].nbytes
    for i in np.argsort(place):
        if os.pwrite(descriptor, tile[i].data, offset + int(place[i]) * size) != size:
            raise OSError(errno.ENOSPC, "short write")
