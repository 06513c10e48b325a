"""Loads the kernel libraries and calls them: arrays are checked once, error codes become exceptions.

The libraries have a plain C interface (``kernels/malax_kernels.h``) and are searched for in the package
(``malax/lib``: put there by ``pip install``, or by ``cmake -B build && cmake --build build`` in a source
tree), then in the folders of the environment variable ``MALAX_LIBRARY_PATH`` (separated by ``:``).
``MALAX_ISA`` = ``baseline``, ``v3`` or ``v4`` forces the instruction set of the inner loops.
"""

from __future__ import annotations

import ctypes
import os
import sys
import weakref
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

ABI_VERSION = 2
"""MALAX_ABI_VERSION of ``malax_kernels.h`` that the declarations below were written for."""

_INVALID, _MEMORY, _ISA = 1, 2, 3

_DOUBLE = ctypes.POINTER(ctypes.c_double)
_INT32 = ctypes.POINTER(ctypes.c_int32)


class _Atoms(ctypes.Structure):
    owned: tuple[np.ndarray, ...]
    """What the pointers point to."""
    _fields_ = [
        ("n_atoms", ctypes.c_int64),
        ("positions", _DOUBLE),
        ("types", _INT32),
        ("cell", _DOUBLE),
        ("periodic", ctypes.c_int32 * 3),
        ("prepared", ctypes.c_void_p),
    ]


class _Snap(ctypes.Structure):
    owned: tuple[np.ndarray, ...]
    _fields_ = [
        ("twojmax", ctypes.c_int32),
        ("switchflag", ctypes.c_int32),
        ("bzeroflag", ctypes.c_int32),
        ("n_types", ctypes.c_int32),
        ("cutoff", ctypes.c_double),
        ("rfac0", ctypes.c_double),
        ("rmin0", ctypes.c_double),
        ("weights", _DOUBLE),
    ]


def bispectrum(
    positions: ArrayLike,
    types: ArrayLike,
    cell: ArrayLike,
    pbc: ArrayLike,
    points: ArrayLike,
    *,
    twojmax: int,
    cutoff: float,
    rfac0: float,
    rmin0: float,
    switchflag: bool,
    bzeroflag: bool,
    weights: ArrayLike,
    dtype: DTypeLike = "float64",
    threads: int | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Bispectrum components of the atoms around each point, in LAMMPS order.

    Parameters
    ----------
    positions : (N, 3) in A, inside the cell or not
    types : (N,) integers, index into ``weights``
    cell : (3, 3) in A, rows; vectors of non-periodic directions may be zero
    pbc : three flags
    points : (P, 3) in A, cartesian, in any order
    twojmax, cutoff, rfac0, rmin0, switchflag, bzeroflag : as in LAMMPS ``compute sna/grid``; cutoff in A
    weights : (n_types,)
    dtype : float32 or float64, of the arithmetic and the result
    threads : None for torch's number of threads
    out : (P, F) of this dtype to be written to; rows contiguous, at any distance from each other

    Returns
    -------
    (P, F). What a point gets does not depend, bit for bit, on the other points of the call, on their
    order, or on the number of threads.

    Raises
    ------
    InputError
        arrays of the wrong shape or with NaN, a degenerate cell, parameters out of range.
    """
    kernel = Bispectrum(
        positions,
        types,
        cell,
        pbc,
        sort=False,
        twojmax=twojmax,
        cutoff=cutoff,
        rfac0=rfac0,
        rmin0=rmin0,
        switchflag=switchflag,
        bzeroflag=bzeroflag,
        weights=weights,
    )
    return kernel.at(points, dtype=dtype, threads=threads, out=out)


class Bispectrum:
    """The bispectrum of one structure, for many calls with few points each.

    The arguments of `bispectrum`, checked and copied once. With ``sort`` the atoms are sorted into cells too:
    then the cost of a call depends on its points and what is near them, not on the number of atoms.
    """

    STAGES = ("sorting", "neighbour lists", "U", "B", "writing")

    def __init__(
        self,
        positions: ArrayLike,
        types: ArrayLike,
        cell: ArrayLike,
        pbc: ArrayLike,
        *,
        sort: bool = True,
        **snap: Any,
    ) -> None:
        self._atoms, self._snap = snap_input(positions, types, cell, pbc, **snap)
        self.n_features = bispectrum_size(snap["twojmax"])
        if not sort:
            return
        library, handle = _library(), ctypes.c_void_p()
        types, (_, t, _) = self._snap.n_types, self._atoms.owned
        if t.min() < 0 or t.max() >= types:  # the kernel looks at all types only where it looks at all atoms
            raise InputError("an atom's type is out of range")
        _check(library.malax_structure_create(ctypes.byref(self._atoms), ctypes.byref(handle)))
        self._atoms.prepared = handle.value
        weakref.finalize(self, library.malax_structure_destroy, handle)

    def at(
        self,
        points: ArrayLike,
        *,
        dtype: DTypeLike = "float64",
        threads: int | None = None,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """As `bispectrum`: (P, F) at points (P, 3) in A."""
        function, args, result = self._call("malax_bispectrum", points, dtype, out)
        _check(function(*args, _threads(threads), row_stride(result), result.ctypes.data))
        return result

    def stages(self, points: ArrayLike, dtype: DTypeLike = "float64") -> dict[str, float]:
        """Seconds that each of `STAGES` takes for these points on one thread."""
        function, args, result = self._call("malax_bispectrum_stages", points, dtype, None)
        seconds = np.zeros(len(self.STAGES))
        _check(function(*args, result.ctypes.data, _pointer(seconds)))
        return dict(zip(self.STAGES, seconds.tolist(), strict=True))

    def _call(
        self, name: str, points: ArrayLike, dtype: DTypeLike, out: np.ndarray | None
    ) -> tuple[Any, tuple[Any, ...], np.ndarray]:
        """The kernel for a dtype, its first arguments, and the array it is to write to."""
        kind = _float_dtype(dtype)
        p = _array("points", points, (-1, 3))
        result = output_rows(out, len(p), self.n_features, kind)
        function = getattr(_library(), f"{name}_{'f32' if kind == np.float32 else 'f64'}")
        return function, (ctypes.byref(self._atoms), ctypes.byref(self._snap), len(p), _pointer(p)), result


def snap_input(
    positions: ArrayLike,
    types: ArrayLike,
    cell: ArrayLike,
    pbc: ArrayLike,
    *,
    twojmax: int,
    cutoff: float,
    rfac0: float,
    rmin0: float,
    switchflag: bool,
    bzeroflag: bool,
    weights: ArrayLike,
) -> tuple[_Atoms, _Snap]:
    """A structure and the parameters of `bispectrum` as the kernels take them, checked.

    The two structs own the arrays they point to.
    """
    x, t, w = _array("positions", positions, (-1, 3)), _types(types), _array("weights", weights, (-1,))
    if len(x) == 0:
        raise InputError("at least one atom is needed, got none")
    if t.shape != (len(x),):
        raise InputError(f"types must hold one integer per atom ({len(x)}), got shape {t.shape}")
    periodic = _flags(pbc)
    h = complete_cell(_array("cell", cell, (3, 3)), list(periodic))
    if bispectrum_size(twojmax) == 0:
        raise InputError(f"twojmax must be 2 to 14, got {twojmax}")
    atoms = _Atoms(len(x), _pointer(x), t.ctypes.data_as(_INT32), _pointer(h), periodic)
    snap = _Snap(
        int(twojmax),
        bool(switchflag),
        bool(bzeroflag),
        len(w),
        float(cutoff),
        float(rfac0),
        float(rmin0),
        _pointer(w),
    )
    atoms.owned, snap.owned = (x, t, h), (w,)
    return atoms, snap


def ldos_moments(
    ldos: np.ndarray, weights: ArrayLike, threads: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Sums over the energies of each point and over the points of each energy, in one pass.

    Parameters
    ----------
    ldos : (P, E) float32 or float64 (one that is not C-contiguous is copied)
    weights : (K, E); K may be 0
    threads : None for torch's number of threads

    Returns
    -------
    values : (P, K) float64, ``ldos @ weights.T``
    sums : (E,) float64, the sum over points; accumulated in double in a fixed order, so that neither
        depends on the number of threads

    Raises
    ------
    InputError
        wrong shapes, another dtype, NaN or infinity.
    """
    rows = np.asarray(ldos)
    if rows.ndim != 2 or rows.dtype not in (np.float32, np.float64):
        raise InputError(
            f"ldos must be (points, energies) of float32 or float64, got shape {rows.shape} of {rows.dtype}"
        )
    rows = np.ascontiguousarray(rows)
    n_points, n_energies = rows.shape
    w = _array("weights", weights, (-1, n_energies))
    values, sums = np.empty((n_points, len(w))), np.empty(n_energies)
    function = (
        _library().malax_ldos_moments_f32 if rows.dtype == np.float32 else _library().malax_ldos_moments_f64
    )
    sizes = (n_points, n_energies, len(w))
    args = (rows.ctypes.data, w.ctypes.data, _threads(threads), values.ctypes.data, sums.ctypes.data)
    _check(function(*sizes, *args))
    # a NaN or an infinity anywhere reaches the sum over points: no second pass over the LDOS is needed
    if not np.isfinite(sums).all():
        raise InputError(
            f"ldos holds NaN or infinity at energy index {int(np.flatnonzero(~np.isfinite(sums))[0])}"
        )
    return values, sums


def output_array(out: np.ndarray | None, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """``out`` if it can be written to by a kernel, a new array if it is None; InputError otherwise."""
    kind = _float_dtype(dtype)
    if out is None:
        return np.empty(shape, kind)
    if not isinstance(out, np.ndarray) or out.shape != shape or out.dtype != kind:
        raise InputError(f"out must be an array of shape {shape} and {kind}")
    if not (out.flags.c_contiguous and out.flags.writeable):
        raise InputError("out must be C-contiguous and writeable")
    return out


def output_rows(out: np.ndarray | None, n: int, columns: int, dtype: DTypeLike) -> np.ndarray:
    """``out`` if a kernel can write to its rows, a new array if it is None; InputError otherwise."""
    kind = _float_dtype(dtype)
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


def bispectrum_size(twojmax: int) -> int:
    """The number of bispectrum components; 0 if ``twojmax`` is out of the kernel's range (2 to 14)."""
    return int(_library().malax_bispectrum_size(_integer("twojmax", twojmax)))


def build_info() -> dict[str, Any]:
    """What was built and what runs here.

    Keys: ``version``, ``library`` (path), ``compiler``, ``openmp``, ``isa`` (the level that runs),
    ``isa_levels`` (those that could, best first), ``cuda`` (whether the CUDA library was built) and
    ``cuda_devices`` (how many it can use now).

    Raises
    ------
    MissingPeerError
        the library is not built, or MALAX_ISA names a level that cannot be had.
    """
    library, cuda = _library(), _cuda_library()
    isa = library.malax_isa()
    if isa is None:
        _check(_ISA)
    return {
        "version": library.malax_version().decode(),
        "library": library._name,
        "compiler": library.malax_compiler().decode(),
        "openmp": bool(library.malax_has_openmp()),
        "isa": isa.decode(),
        "isa_levels": library.malax_isa_levels().decode().split(),
        "cuda": cuda is not None,
        "cuda_devices": 0 if cuda is None else int(cuda.malax_cuda_device_count()),
    }


# ---- loading ---------------------------------------------------------------------------------------


def _find(name: str) -> Path | None:
    # an editable install has two package folders: the source tree and the one CMake installs into
    folders = [Path(folder) / "lib" for folder in sys.modules[__package__].__path__]
    folders += [
        Path(folder) for folder in os.environ.get("MALAX_LIBRARY_PATH", "").split(os.pathsep) if folder
    ]
    # Python started in a source tree imports that, not what pip installed; the libraries are the same
    with suppress(PackageNotFoundError):
        folders.append(Path(str(distribution("malax").locate_file("malax/lib"))))
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _load(path: Path, abi_version: str) -> ctypes.CDLL:
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
def _library() -> ctypes.CDLL:
    path = _find("libmalax_cpu.so")
    if path is None:
        raise MissingPeerError(
            "libmalax_cpu.so is not built: pip install ., or in a source tree cmake -B build && "
            "cmake --build build, or name its folder in MALAX_LIBRARY_PATH"
        )
    library = _load(path, "malax_abi_version")
    for name in ("malax_version", "malax_compiler", "malax_isa", "malax_isa_levels", "malax_last_error"):
        getattr(library, name).restype = ctypes.c_char_p
    library.malax_bispectrum_size.restype = ctypes.c_int64
    library.malax_bispectrum_size.argtypes = [ctypes.c_int32]
    data, count, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    for function in (library.malax_bispectrum_f32, library.malax_bispectrum_f64):
        function.argtypes = [
            ctypes.POINTER(_Atoms),
            ctypes.POINTER(_Snap),
            count,
            _DOUBLE,
            number,
            count,
            data,
        ]
    for function in (library.malax_bispectrum_stages_f32, library.malax_bispectrum_stages_f64):
        function.argtypes = [ctypes.POINTER(_Atoms), ctypes.POINTER(_Snap), count, _DOUBLE, data, _DOUBLE]
    library.malax_structure_create.argtypes = [ctypes.POINTER(_Atoms), ctypes.POINTER(data)]
    library.malax_structure_destroy.argtypes = [data]
    library.malax_structure_destroy.restype = None
    for function in (library.malax_ldos_moments_f32, library.malax_ldos_moments_f64):
        function.argtypes = [count, count, count, data, data, number, data, data]
    return library


@cache
def _cuda_library() -> ctypes.CDLL | None:
    path = _find("libmalax_cuda.so")
    return None if path is None else _load(path, "malax_cuda_abi_version")


def _check(status: int) -> None:
    if status == 0:
        return
    message = _library().malax_last_error().decode()
    if status == _INVALID:
        raise InputError(message)
    if status == _ISA:
        raise MissingPeerError(message)
    if status == _MEMORY:
        raise MachineError(f"the kernels ran out of memory ({message})")
    raise MachineError(f"a kernel failed: {message}")


# ---- arguments -------------------------------------------------------------------------------------


def _array(name: str, value: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
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
        raise InputError(f"{name} holds NaN or infinity at index {_first_bad(array)}")
    return array


def _first_bad(array: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])


def _types(types: ArrayLike) -> np.ndarray:
    array = np.asarray(types)
    if array.dtype.kind not in "iu":
        raise InputError(f"types must be integers, got {array.dtype}")
    return np.ascontiguousarray(array, dtype=np.int32)


def _flags(pbc: ArrayLike) -> ctypes.Array[ctypes.c_int32]:
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


def _float_dtype(dtype: DTypeLike) -> np.dtype:
    try:
        kind = np.dtype(dtype)
    except TypeError as error:
        raise InputError(f"dtype must be float32 or float64, got {dtype!r}") from error
    if kind not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise InputError(f"dtype must be float32 or float64, got {kind}")
    return kind


def _integer(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or abs(int(value)) > 2**31 - 1:
        raise InputError(f"{name} must be an integer, got {value!r}")
    return int(value)


def _threads(threads: int | None) -> int:
    if threads is None:
        return torch.get_num_threads()
    if _integer("threads", threads) < 1:
        raise InputError(f"threads must be at least 1, got {threads}")
    return int(threads)


def _pointer(array: np.ndarray) -> Any:
    return array.ctypes.data_as(_DOUBLE)
