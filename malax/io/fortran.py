"""Unformatted Fortran files and Fortran's habits in HDF5 attributes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import numpy as np

from malax.errors import FileError


class FortranFile:
    """Records of an unformatted sequential Fortran file: little-endian, 4-byte lengths, split above 2 GiB."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = open(path, "rb")  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> FortranFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def read(self, dtype: str) -> np.ndarray:
        """The next record as an array; FileError if the file ends before it does."""
        parts, more = [], True
        while more:
            length = self._marker()
            more, length = length < 0, abs(length)
            part = self.file.read(length)
            if len(part) != length or abs(self._marker()) != length:
                raise FileError(f"{self.path} is truncated or not a file of pw.x")
            parts.append(part)
        record = b"".join(parts)
        item = np.dtype(dtype).newbyteorder("<")
        if len(record) % item.itemsize:
            raise FileError(f"{self.path}: a record of {len(record)} bytes where {dtype} are expected")
        return np.frombuffer(record, dtype=item).astype(item.newbyteorder("="))

    def skip(self) -> None:
        """Pass over the next record."""
        more = True
        while more:
            length = self._marker()
            more = length < 0
            self.file.seek(abs(length) + 4, os.SEEK_CUR)

    def _marker(self) -> int:
        data = self.file.read(4)
        if len(data) != 4:
            raise FileError(f"{self.path} is truncated or not a file of pw.x")
        return int.from_bytes(data, "little", signed=True)


MAX_RECORD = 2147483639
"""Bytes of data between two length marks; gfortran splits longer records (2 GiB less 9)."""


def write_record(file: BinaryIO, data: bytes | memoryview, longest: int = MAX_RECORD) -> None:
    """Append one record; `FortranFile.read` gives it back.

    As gfortran does it: the mark before a piece is negative if more of the record follows, that after it if
    some of the record came before.
    """
    view = memoryview(data).cast("B")
    starts = range(0, max(len(view), 1), longest)
    for start in starts:
        piece = view[start : start + longest]
        last = start == starts[-1]
        file.write((len(piece) if last else -len(piece)).to_bytes(4, "little", signed=True))
        file.write(piece)
        file.write((len(piece) if start == 0 else -len(piece)).to_bytes(4, "little", signed=True))


def hdf5_flag(value: object) -> bool:
    """A Fortran logical in QE's HDF5 attributes: b'.TRUE.', '.FALSE.', 1, ..."""
    text = value.decode() if isinstance(value, bytes) else str(value)
    return text.strip().strip(".").lower() in ("true", "t", "1")
