"""The numbers of a cube file in fixed columns, without a search for words.

pp.x writes Fortran's 6E13.5: six numbers of 13 characters to a line, a new line for each run along z. So
every run takes the same number of bytes, and each digit has its place (`kernels/cpu/cube_text.cpp`).
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, BinaryIO

import numpy as np

from malax.errors import MissingPeerError
from malax.library import check_status, cpu_library

WIDTH, PER_LINE = 13, 6
BLOCK = 1 << 18
"""Bytes that are read at a time. They stay in the cache, and new memory for whole files would cost as much as
the reading."""


def fixed_columns(file: BinaryIO, shape: tuple[int, int, int]) -> np.ndarray | None:
    """Values (nx ny nz,) of the text after the header; None if it is not in this format.

    None also for a text of another length (truncated, more than one field): the reader of words says why.
    Other threads of Python go on meanwhile.

    Parameters
    ----------
    file : at the first number; afterwards anywhere

    Raises
    ------
    MissingPeerError
        the library of the kernels is not built, or is older than this package.
    """
    nx, ny, nz = shape
    if min(shape) < 1:
        return None
    run = nz * WIDTH + -(-nz // PER_LINE)
    values, matches = np.empty((nx * ny, nz)), ctypes.c_int32()
    rows = min(nx * ny, max(1, BLOCK // run))
    buffer = np.empty(rows * run, dtype=np.uint8)
    for start in range(0, nx * ny, rows):
        count = min(rows, nx * ny - start)
        if file.readinto(buffer[: count * run].data) < count * run:  # type: ignore[attr-defined]
            return None
        out = values[start : start + count].ctypes.data
        check_status(_kernel()(count, nz, count * run, buffer.ctypes.data, out, ctypes.byref(matches)))
        if not matches.value:
            return None
    return None if file.read().strip() else values.reshape(-1)


@cache
def _kernel() -> Any:
    try:
        kernel = cpu_library().malax_cube_columns
    except AttributeError as error:
        raise MissingPeerError(
            "libmalax_cpu.so is older than this package: build it again (pip install ., cmake --build build)"
        ) from error
    count, data = ctypes.c_int64, ctypes.c_void_p
    kernel.argtypes = [count, count, count, data, data, data]
    return kernel
