"""What malax's HDF5 files have in common: a format name and version, units, rounded floats."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from ase import Atoms

from malax.errors import FileError
from malax.io.files import atomic_path


@contextmanager
def create(path: str | os.PathLike[str], overwrite: bool = True) -> Iterator[h5py.File]:
    """Yield a new HDF5 file that appears under its name only when the block has ended well.

    HDF5 itself does not survive a full disk (closing the file fails, and the process crashes at its end),
    so it writes through a file object that keeps the first error and swallows what follows; the error is
    raised when HDF5 has closed the file.

    Raises
    ------
    FileError, MachineError
        see ``malax.io.files.atomic_path``.
    """
    with atomic_path(path, overwrite) as temporary, new(temporary) as file:
        yield file


@contextmanager
def new(path: Path) -> Iterator[h5py.File]:
    """Yield a new HDF5 file under this name. The first OSError of the disk is raised when it is closed."""
    with _Disk(path) as disk:
        try:
            with h5py.File(disk, "w") as file:
                yield file
        except Exception:
            if disk.error is None:
                raise
        if disk.error is not None:
            raise disk.error


class _Disk(io.RawIOBase):
    """A file for HDF5 to write whose methods do not fail: the first error is kept in ``error``."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.error: OSError | None = None
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        self._position = self._size = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = (
            offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        )
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def, override]
        number = os.preadv(self._file, [buffer], self._position)
        self._position += number
        return number

    def write(self, data) -> int:  # type: ignore[no-untyped-def, override]
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view) and self.error is None:
            try:
                done += os.pwrite(self._file, view[done:], self._position + done)
            except OSError as error:
                self.error = error
        self._position += len(view)
        self._size = max(self._size, self._position)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        self._size = self._position if size is None else size
        if self.error is None:
            try:
                os.ftruncate(self._file, self._size)
            except OSError as error:
                self.error = error
        return self._size

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            os.close(self._file)
        super().close()


def open_format(path: str | os.PathLike[str], expected: str, version: int) -> h5py.File:
    """Open an HDF5 file for reading if its attribute ``format`` says that it is what is expected.

    Raises
    ------
    FileError
        missing, truncated, not HDF5, of another format, or of a version above ``version``.
    """
    path = Path(path)
    if not path.is_file():
        raise FileError(f"{path} does not exist or is not a file; a {expected} (HDF5) is needed")
    if not h5py.is_hdf5(path):
        raise FileError(
            f"{path} is not an HDF5 file (empty, truncated or of another kind); a {expected} is needed"
        )
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise FileError(
            f"{path} cannot be opened ({reason(error)}); is it truncated? Copy or make it again"
        ) from error
    found, found_version = file.attrs.get("format"), int(file.attrs.get("format_version", 0))
    if found != expected or found_version > version:
        file.close()
        if found != expected:
            raise FileError(f"{path} is {found or 'an HDF5 file of another program'}; a {expected} is needed")
        raise FileError(
            f"{path} has format version {found_version}; this malax reads up to {version}: update malax"
        )
    return file


def put(file: h5py.File, name: str, value: Any, unit: str, **options: Any) -> None:
    """Write one dataset with its unit as an attribute."""
    file.create_dataset(name, data=value, **options).attrs["unit"] = unit


def put_structure(file: h5py.File, atoms: Atoms) -> None:
    """Write a structure into the group ``structure``."""
    put(file, "structure/cell", atoms.cell.array, "A")
    put(file, "structure/positions", atoms.positions, "A")
    put(file, "structure/numbers", atoms.numbers, "1")
    put(file, "structure/pbc", atoms.pbc, "1")


def flat_range(data: h5py.Dataset, start: int, stop: int) -> np.ndarray:
    """The flat points start..stop-1 of a dataset (nx, ny, nz, ...), (n, ...); only their planes are read."""
    per_plane = data.shape[1] * data.shape[2]
    first, last = start // per_plane, -(-stop // per_plane)
    planes = data[first:last].reshape(-1, *data.shape[3:])
    return planes[start - first * per_plane : stop - first * per_plane]


def reason(error: Exception) -> str:
    """The first line of an error of h5py, without its internals."""
    text = str(error).strip("'\"").splitlines()[0] if str(error) else type(error).__name__
    return text.split("(", 1)[-1].rstrip(")") if text.startswith("Unable to") and "(" in text else text


def round_mantissa(values: np.ndarray, keep_bits: int) -> np.ndarray:
    """Float32 values rounded to ``keep_bits`` bits after the leading one (half to even), so they compress."""
    drop = 23 - keep_bits
    if drop <= 0:
        return values
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    half = np.uint32((1 << (drop - 1)) - 1)
    odd = (bits >> np.uint32(drop)) & np.uint32(1)
    return ((bits + half + odd) & np.uint32(0xFFFFFFFF << drop & 0xFFFFFFFF)).view(np.float32)
