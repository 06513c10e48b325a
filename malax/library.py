"""The compiled libraries: found and loaded once; arguments checked, error codes made exceptions.

They have a plain C interface (``kernels/malax_kernels.h``) and are looked for in the package (``malax/lib``:
put there by ``pip install``, or by ``cmake -B build && cmake --build build`` in a source tree), then in the
folders of the environment variable ``MALAX_LIBRARY_PATH`` (separated by ``:``). ``MALAX_ISA`` = ``baseline``,
``v3`` or ``v4`` forces the instruction set of the inner loops. The typed calls stand in `malax.kernels`,
`malax.kernels_gaussian`, `malax.kernels_network` and `malax.kernels_adjoint`.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, DTypeLike

from malax.errors import InputError, MachineError, MissingPeerError

ABI_VERSION = 3
"""MALAX_ABI_VERSION of ``malax_kernels.h`` that the declarations below were written for."""

_INVALID, _MEMORY, _ISA = 1, 2, 3

DOUBLE = ctypes.POINTER(ctypes.c_double)
INT32 = ctypes.POINTER(ctypes.c_int32)


class AtomsStruct(ctypes.Structure):
    owned: tuple[np.ndarray, ...]
    """What the pointers point to."""
    _fields_ = [
        ("n_atoms", ctypes.c_int64),
        ("positions", DOUBLE),
        ("types", INT32),
        ("cell", DOUBLE),
        ("periodic", ctypes.c_int32 * 3),
        ("prepared", ctypes.c_void_p),
    ]


class SnapStruct(ctypes.Structure):
    owned: tuple[np.ndarray, ...]
    _fields_ = [
        ("twojmax", ctypes.c_int32),
        ("switchflag", ctypes.c_int32),
        ("bzeroflag", ctypes.c_int32),
        ("n_types", ctypes.c_int32),
        ("cutoff", ctypes.c_double),
        ("rfac0", ctypes.c_double),
        ("rmin0", ctypes.c_double),
        ("weights", DOUBLE),
    ]


def build_info() -> dict[str, Any]:
    """What was built and what runs here.

    Keys: ``version``, ``library`` (path), ``compiler``, ``openmp``, ``isa`` (the level that runs),
    ``isa_levels`` (those that could, best first), ``bfloat16`` (whether networks can use it), ``cuda``
    (whether the CUDA library was built) and ``cuda_devices`` (how many it can use now).

    Raises
    ------
    MissingPeerError
        the library is not built, or MALAX_ISA names a level that cannot be had.
    """
    library, cuda = cpu_library(), cuda_library()
    isa = library.malax_isa()
    if isa is None:
        check_status(_ISA)
    return {
        "version": library.malax_version().decode(),
        "library": library._name,
        "compiler": library.malax_compiler().decode(),
        "openmp": bool(library.malax_has_openmp()),
        "isa": isa.decode(),
        "isa_levels": library.malax_isa_levels().decode().split(),
        "bfloat16": bool(library.malax_has_bfloat16()),
        "cuda": cuda is not None,
        "cuda_devices": 0 if cuda is None else int(cuda.malax_cuda_device_count()),
    }


# ---- loading ---------------------------------------------------------------------------------------


def find_library(name: str) -> Path | None:
    # an editable install has two package folders: the source tree and the one CMake installs into
    folders = [Path(folder) / "lib" for folder in sys.modules[__package__].__path__]
    folders += [
        Path(folder) for folder in os.environ.get("MALAX_LIBRARY_PATH", "").split(os.pathsep) if folder
    ]
    # Python started in a source tree imports that, not what pip installed; the libraries are the same
    with suppress(PackageNotFoundError):
        folders.append(Path(str(distribution("malax").locate_file("malax/lib"))))
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def load_library(path: Path, abi_version: str) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
        built_for = getattr(library, abi_version)()
    except (OSError, AttributeError) as error:
        raise MissingPeerError(f"cannot load {path}: {error}") from error
    if built_for != ABI_VERSION:
        raise MissingPeerError(
            f"{path} has interface version {built_for}, this package needs {ABI_VERSION}: build it again "
            "(pip install . or cmake --build build)"
        )
    return library


@cache
def cpu_library() -> ctypes.CDLL:
    path = find_library("libmalax_cpu.so")
    if path is None:
        raise MissingPeerError(
            "libmalax_cpu.so is not built: pip install ., or in a source tree cmake -B build && "
            "cmake --build build, or name its folder in MALAX_LIBRARY_PATH"
        )
    library = load_library(path, "malax_abi_version")
    for name in ("malax_version", "malax_compiler", "malax_isa", "malax_isa_levels", "malax_last_error"):
        getattr(library, name).restype = ctypes.c_char_p
    library.malax_bispectrum_size.restype = ctypes.c_int64
    library.malax_bispectrum_size.argtypes = [ctypes.c_int32]
    data, count, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    for function in (library.malax_bispectrum_f32, library.malax_bispectrum_f64):
        function.argtypes = [
            ctypes.POINTER(AtomsStruct),
            ctypes.POINTER(SnapStruct),
            count,
            DOUBLE,
            number,
            count,
            data,
        ]
    for function in (library.malax_bispectrum_stages_f32, library.malax_bispectrum_stages_f64):
        function.argtypes = [
            ctypes.POINTER(AtomsStruct),
            ctypes.POINTER(SnapStruct),
            count,
            DOUBLE,
            data,
            DOUBLE,
        ]
    library.malax_structure_create.argtypes = [ctypes.POINTER(AtomsStruct), ctypes.POINTER(data)]
    library.malax_structure_destroy.argtypes = [data]
    library.malax_structure_destroy.restype = None
    for function in (library.malax_ldos_moments_f32, library.malax_ldos_moments_f64):
        function.argtypes = [count, count, count, data, data, number, data, data]
    return library


@cache
def cuda_library() -> ctypes.CDLL | None:
    path = find_library("libmalax_cuda.so")
    return None if path is None else load_library(path, "malax_cuda_abi_version")


def check_status(status: int) -> None:
    if status == 0:
        return
    message = cpu_library().malax_last_error().decode()
    if status == _INVALID:
        raise InputError(message)
    if status == _ISA:
        raise MissingPeerError(message)
    if status == _MEMORY:
        raise MachineError(f"the kernels ran out of memory ({message})")
    raise MachineError(f"a kernel failed: {message}")


# ---- arguments -------------------------------------------------------------------------------------


def checked_array(name: str, value: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    """A finite, C-contiguous float64 array of this shape (-1: any length); InputError otherwise."""
    try:
        array = np.ascontiguousarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be an array of numbers: {error}") from error
    if array.ndim != len(shape) or any(
        want not in (-1, have) for want, have in zip(shape, array.shape, strict=True)
    ):
        wanted = "(" + ", ".join("n" if n == -1 else str(n) for n in shape) + ")"
        raise InputError(f"{name} must have shape {wanted}, got {array.shape}")
    if not np.isfinite(array).all():
        raise InputError(f"{name} holds NaN or infinity at index {first_bad(array)}")
    return array


def first_bad(array: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])


def type_numbers(types: ArrayLike) -> np.ndarray:
    array = np.asarray(types)
    if array.dtype.kind not in "iu":
        raise InputError(f"types must be integers, got {array.dtype}")
    return np.ascontiguousarray(array, dtype=np.int32)


def periodic_flags(pbc: ArrayLike) -> ctypes.Array[ctypes.c_int32]:
    flags = np.asarray(pbc)
    if flags.shape != (3,):
        raise InputError(f"pbc must be three flags, got shape {flags.shape}")
    return (ctypes.c_int32 * 3)(*(int(bool(flag)) for flag in flags))


def complete_cell(cell: np.ndarray, periodic: Sequence[int] | np.ndarray) -> np.ndarray:
    """Vectors of non-periodic directions are arbitrary: choose them so that the three are independent."""
    fixed = [d for d in range(3) if periodic[d]]
    if len(fixed) == 3:
        return cell
    # the last rows of a complete QR basis are orthogonal to the periodic vectors
    basis = np.linalg.qr(cell[fixed].T, mode="complete")[0].T if fixed else np.eye(3)
    complete = cell.copy()
    for d, vector in zip((d for d in range(3) if not periodic[d]), basis[len(fixed) :], strict=True):
        complete[d] = vector
    return complete


def float_dtype(dtype: DTypeLike) -> np.dtype:
    try:
        kind = np.dtype(dtype)
    except TypeError as error:
        raise InputError(f"dtype must be float32 or float64, got {dtype!r}") from error
    if kind not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise InputError(f"dtype must be float32 or float64, got {kind}")
    return kind


def checked_integer(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or abs(int(value)) > 2**31 - 1:
        raise InputError(f"{name} must be an integer, got {value!r}")
    return int(value)


def thread_count(threads: int | None) -> int:
    if threads is None:
        return torch.get_num_threads()
    if checked_integer("threads", threads) < 1:
        raise InputError(f"threads must be at least 1, got {threads}")
    return int(threads)


def double_pointer(array: np.ndarray) -> Any:
    return array.ctypes.data_as(DOUBLE)


def output_array(out: np.ndarray | None, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """``out`` if it can be written to by a kernel, a new array if it is None; InputError otherwise."""
    kind = float_dtype(dtype)
    if out is None:
        return np.empty(shape, kind)
    if not isinstance(out, np.ndarray) or out.shape != shape or out.dtype != kind:
        raise InputError(f"out must be an array of shape {shape} and {kind}")
    if not (out.flags.c_contiguous and out.flags.writeable):
        raise InputError("out must be C-contiguous and writeable")
    return out


def output_rows(out: np.ndarray | None, n: int, columns: int, dtype: DTypeLike) -> np.ndarray:
    """``out`` if a kernel can write to its rows, a new array if it is None; InputError otherwise."""
    kind = float_dtype(dtype)
    if out is None:
        return np.empty((n, columns), kind)
    if not isinstance(out, np.ndarray) or out.shape != (n, columns) or out.dtype != kind:
        raise InputError(f"out must be an array of shape {(n, columns)} and {kind}")
    within = columns < 2 or out.strides[1] == out.itemsize
    between = n < 2 or (out.strides[0] % out.itemsize == 0 and out.strides[0] >= columns * out.itemsize)
    if not (within and between and out.flags.writeable):
        raise InputError("out must be writeable, with contiguous rows")
    return out


def row_stride(rows: np.ndarray) -> int:
    """Values from one row of (n, columns) to the next."""
    return rows.strides[0] // rows.itemsize if len(rows) > 1 else rows.shape[1]
