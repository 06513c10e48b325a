"""The numbers of a cube file in fixed columns, without a search for words.

pp.x writes Fortran's 6E13.5: six numbers of 13 characters to a line, a new line for each run along z. So
every run takes the same number of bytes, and each digit has its place (`kernels/cpu/cube_text.cpp`).
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np

from malax.errors import MissingPeerError
from malax.library import check_status, cpu_library

WIDTH, PER_LINE = 13, 6


def fixed_columns(body: bytes, shape: tuple[int, int, int]) -> np.ndarray | None:
    """Values (nx ny nz,) of the text after the header; None if it is not in this format.

    None also for a text of another length (truncated, more than one field): the reader of words says why.
    Other threads of Python go on meanwhile.

    Raises
    ------
    MissingPeerError
        the library of the kernels is not built, or is older than this package.
    """
    nx, ny, nz = shape
    size = nx * ny * (nz * WIDTH + -(-nz // PER_LINE))
    if min(shape) < 1 or len(body) < size or body[size:].strip():
        return None
    values, matches = np.empty(nx * ny * nz), ctypes.c_int32()
    sizes, out = (nx * ny, nz, len(body)), (values.ctypes.data, ctypes.byref(matches))
    check_status(_kernel()(*sizes, body, *out))
    return values if matches.value else None


@cache
def _kernel() -> Any:
    try:
        kernel = cpu_library().malax_cube_columns
    except AttributeError as error:
        raise MissingPeerError(
            "libmalax_cpu.so is older than this package: build it again (pip install ., cmake --build build)"
        ) from error
    count, data = ctypes.c_int64, ctypes.c_void_p
    kernel.argtypes = [count, count, count, ctypes.c_char_p, data, data]
    return kernel
