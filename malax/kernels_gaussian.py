"""Typed calls of the Gaussian kernels: arrays are checked once, error codes become exceptions."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from malax import library
from malax.errors import InputError, MissingPeerError

_DOUBLE = ctypes.POINTER(ctypes.c_double)


class _Gaussian(ctypes.Structure):
    _fields_ = [
        ("n_types", ctypes.c_int32),
        ("sigma", _DOUBLE),
        ("cutoff", _DOUBLE),
        ("weights", _DOUBLE),
    ]


class _Grid(ctypes.Structure):
    _fields_ = [("shape", ctypes.c_int32 * 3), ("start", ctypes.c_int64), ("stop", ctypes.c_int64)]


class Sources:
    """Atoms with the Gaussians of their types, as the kernels want them; keeps the memory they point to.

    Parameters
    ----------
    positions : (N, 3) in A, inside the cell or not
    types : (N,) integers, indices into the next three
    cell : (3, 3) in A, rows; vectors of non-periodic directions may be zero
    pbc : three flags
    sigma, cutoff : (T,) of each type, in A
    weights : (T,)

    Raises
    ------
    InputError
        arrays of the wrong shape or with NaN.
    """

    def __init__(
        self,
        positions: ArrayLike,
        types: ArrayLike,
        cell: ArrayLike,
        pbc: ArrayLike,
        sigma: ArrayLike,
        cutoff: ArrayLike,
        weights: ArrayLike,
    ) -> None:
        self.positions = library.checked_array("positions", positions, (-1, 3))
        self.types = library.type_numbers(types)
        if len(self.positions) == 0:
            raise InputError("at least one atom is needed, got none")
        if self.types.shape != (len(self.positions),):
            raise InputError(
                f"types must hold one integer per atom ({len(self.positions)}), got shape {self.types.shape}"
            )
        self.periodic = library.periodic_flags(pbc)
        self.cell = library.checked_array("cell", cell, (3, 3))
        self.complete_cell = library.complete_cell(self.cell, list(self.periodic))
        self.sigma = library.checked_array("sigma", sigma, (-1,))
        self.n_types = len(self.sigma)
        self.cutoff = library.checked_array("cutoff", cutoff, (self.n_types,))
        self.weights = library.checked_array("weights", weights, (self.n_types,))
        pointers = (library.double_pointer(array) for array in (self.sigma, self.cutoff, self.weights))
        self._gaussian = _Gaussian(self.n_types, *pointers)

    def arguments(self, on_grid: bool) -> tuple[Any, Any]:
        """The first two arguments of every Gaussian kernel.

        A grid needs the cell as it is; elsewhere the vectors of open directions do not matter.
        """
        atoms = library.AtomsStruct(
            len(self.positions),
            library.double_pointer(self.positions),
            self.types.ctypes.data_as(library.INT32),
            library.double_pointer(self.cell if on_grid else self.complete_cell),
            self.periodic,
        )
        return ctypes.byref(atoms), ctypes.byref(self._gaussian)


def at_points(
    sources: Sources,
    points: ArrayLike,
    *,
    dtype: DTypeLike = "float64",
    threads: int | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Values (P, T) at ``points`` (P, 3) in A, in any order; ``out`` (P, T) may have a stride between rows.

    What a point gets does not depend, bit for bit, on the other points, their order, or the threads.
    """
    kind, p = library.float_dtype(dtype), library.checked_array("points", points, (-1, 3))
    result = library.output_rows(out, len(p), sources.n_types, kind)
    stride = library.row_stride(result)
    call = (len(p), library.double_pointer(p), library.thread_count(threads), stride, result.ctypes.data)
    library.check_status(_function("malax_gaussian", kind)(*sources.arguments(False), *call))
    return result


def on_grid(
    sources: Sources,
    shape: Sequence[int],
    start: int,
    stop: int,
    *,
    dtype: DTypeLike = "float64",
    threads: int | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Values (stop - start, T) at the points start..stop-1 (flat, C order) of a grid in the atoms' cell.

    What a point gets does not depend, bit for bit, on the range or the threads; ``out`` as in `at_points`.
    """
    kind, grid = library.float_dtype(dtype), _grid(shape, start, stop)
    result = library.output_rows(out, stop - start, sources.n_types, kind)
    stride = library.row_stride(result)
    call = (ctypes.byref(grid), library.thread_count(threads), stride, result.ctypes.data)
    library.check_status(_function("malax_gaussian_grid", kind)(*sources.arguments(True), *call))
    return result


def adjoint_at_points(
    sources: Sources, points: ArrayLike, gradient: np.ndarray, *, threads: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Derivatives of E from ``gradient`` (P, T) = dE/dvalues, float32 or float64.

    Returns
    -------
    positions : (N, 3) dE/dr_i, cell and points held
    strain : (3, 3) dE/d(eps) where atoms, cell and points go r -> r (1 + eps) (row vectors)
    points : (P, 3) dE/d(point)
        all float64, the same for any number of threads. The jump at the cutoff is not differentiated.
    """
    p = library.checked_array("points", points, (-1, 3))
    g, stride = _gradient_rows(gradient, len(p), sources.n_types)
    result = np.empty((len(sources.positions), 3)), np.empty((3, 3)), np.empty((len(p), 3))
    call = (len(p), library.double_pointer(p), library.thread_count(threads), stride, g.ctypes.data)
    pointers = (library.double_pointer(array) for array in result)
    library.check_status(
        _function("malax_gaussian_adjoint", g.dtype)(*sources.arguments(False), *call, *pointers)
    )
    return result


def adjoint_on_grid(
    sources: Sources,
    shape: Sequence[int],
    start: int,
    stop: int,
    gradient: np.ndarray,
    *,
    threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """As `adjoint_at_points` for the points start..stop-1 of a grid: positions (N, 3) and strain (3, 3)."""
    grid = _grid(shape, start, stop)
    g, stride = _gradient_rows(gradient, stop - start, sources.n_types)
    result = np.empty((len(sources.positions), 3)), np.empty((3, 3))
    call = (ctypes.byref(grid), library.thread_count(threads), stride, g.ctypes.data)
    pointers = (library.double_pointer(array) for array in result)
    library.check_status(
        _function("malax_gaussian_grid_adjoint", g.dtype)(*sources.arguments(True), *call, *pointers)
    )
    return result


# ---- arguments -------------------------------------------------------------------------------------


def _grid(shape: Sequence[int], start: int, stop: int) -> _Grid:
    sizes = [library.checked_integer("shape", n) for n in shape]
    if len(sizes) != 3 or not 0 <= start <= stop:
        raise InputError(
            f"a grid needs three numbers of points and a range, got {tuple(shape)}, {start}, {stop}"
        )
    return _Grid((ctypes.c_int32 * 3)(*sizes), start, stop)


def _gradient_rows(gradient: np.ndarray, n: int, columns: int) -> tuple[np.ndarray, int]:
    g = np.asarray(gradient)
    if g.dtype not in (np.float32, np.float64):
        raise InputError(f"gradient must be float32 or float64, got {g.dtype}")
    if g.shape != (n, columns):
        raise InputError(f"gradient must have shape {(n, columns)}, got {g.shape}")
    g = np.ascontiguousarray(g)
    if not np.isfinite(g).all():
        raise InputError(f"gradient holds NaN or infinity at index {library.first_bad(g)}")
    return g, columns


_NUMBER, _COUNT, _DATA = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p
_POINTS = [_COUNT, _DOUBLE, _NUMBER, _COUNT, _DATA]
_RANGE = [ctypes.POINTER(_Grid), _NUMBER, _COUNT, _DATA]
_ARGUMENTS = {
    "malax_gaussian": _POINTS,
    "malax_gaussian_grid": _RANGE,
    "malax_gaussian_adjoint": [*_POINTS, _DOUBLE, _DOUBLE, _DOUBLE],
    "malax_gaussian_grid_adjoint": [*_RANGE, _DOUBLE, _DOUBLE],
}


@cache
def _function(name: str, kind: np.dtype) -> Any:
    loaded = library.cpu_library()
    suffix = "f32" if kind == np.float32 else "f64"
    try:
        function = getattr(loaded, f"{name}_{suffix}")
    except AttributeError as error:
        raise MissingPeerError(
            f"{loaded._name} has no {name}_{suffix}: build it again (pip install . or cmake --build build)"
        ) from error
    function.argtypes = [ctypes.POINTER(library.AtomsStruct), ctypes.POINTER(_Gaussian), *_ARGUMENTS[name]]
    return function
