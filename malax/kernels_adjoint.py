"""The derivatives of the bispectrum: typed calls of the kernels, as in `malax.kernels`."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from malax.errors import InputError
from malax.kernels import bispectrum_size, snap_input
from malax.library import (
    AtomsStruct,
    SnapStruct,
    check_status,
    checked_array,
    cpu_library,
    float_dtype,
    thread_count,
)


class BispectrumGradient(NamedTuple):
    """The derivatives of a number E, float64."""

    positions: np.ndarray
    """(N, 3) dE/d(position), the periodic images moving with their atom, cell and points fixed."""
    strain: np.ndarray
    """(3, 3) dE/d(eps) at eps = 0, where positions, cell and points (rows) all become x (1 + eps)."""
    points: np.ndarray
    """(P, 3) dE/d(point)."""


def bispectrum_adjoint(
    positions: ArrayLike,
    types: ArrayLike,
    cell: ArrayLike,
    pbc: ArrayLike,
    points: ArrayLike,
    gradient: np.ndarray,
    *,
    threads: int | None = None,
    **snap: Any,
) -> BispectrumGradient:
    """From dE/dB to the derivatives of E with respect to positions, strain and points.

    Parameters
    ----------
    positions, types, cell, pbc, points : as in `malax.kernels.bispectrum`
    gradient : (P, F) dE/dB, float32 or float64 (one that is not C-contiguous is copied); its type is that of
        the arithmetic, sums over points are always in double
    threads : None for torch's number of threads
    snap : twojmax, cutoff, rfac0, rmin0, switchflag, bzeroflag, weights of `malax.kernels.bispectrum`

    Returns
    -------
    BispectrumGradient, in units of E per A (strain: of E). Nothing in it depends, bit for bit, on the number
    of threads; the sums over points depend on the order of the points within rounding.

    Raises
    ------
    InputError
        as `malax.kernels.bispectrum`; a gradient of another shape or type, or with NaN or infinity.
    """
    atoms, parameters = snap_input(positions, types, cell, pbc, **snap)
    p = checked_array("points", points, (-1, 3))
    g = _gradient(gradient, (len(p), bispectrum_size(parameters.twojmax)))
    result = BispectrumGradient(np.empty((atoms.n_atoms, 3)), np.empty((3, 3)), np.empty((len(p), 3)))
    function = _functions()["adjoint", g.dtype.name]
    check_status(
        function(
            ctypes.byref(atoms),
            ctypes.byref(parameters),
            len(p),
            p.ctypes.data,
            g.ctypes.data,
            thread_count(threads),
            *(array.ctypes.data for array in result),
        )
    )
    return result


def bispectrum_jvp(
    positions: ArrayLike,
    types: ArrayLike,
    cell: ArrayLike,
    pbc: ArrayLike,
    points: ArrayLike,
    *,
    positions_change: ArrayLike | None = None,
    strain: ArrayLike | None = None,
    points_change: ArrayLike | None = None,
    dtype: DTypeLike = "float64",
    threads: int | None = None,
    **snap: Any,
) -> np.ndarray:
    """The change of the bispectrum (P, F), to first order, with positions, strain and points.

    Parameters
    ----------
    positions, types, cell, pbc, points : as in `malax.kernels.bispectrum`
    positions_change : (N, 3) in A; None for none
    strain : (3, 3); positions, cell and points (rows) all become x (1 + strain); None for none
    points_change : (P, 3) in A; None for none
    dtype : float32 or float64, of the arithmetic and the result
    threads : None for torch's number of threads
    snap : twojmax, cutoff, rfac0, rmin0, switchflag, bzeroflag, weights of `malax.kernels.bispectrum`

    Raises
    ------
    InputError
        as `malax.kernels.bispectrum`; a change of the wrong shape or with NaN or infinity.
    """
    kind = float_dtype(dtype)
    atoms, parameters = snap_input(positions, types, cell, pbc, **snap)
    p = checked_array("points", points, (-1, 3))
    changes = [
        None if change is None else checked_array(name, change, shape)
        for name, change, shape in (
            ("positions_change", positions_change, (atoms.n_atoms, 3)),
            ("strain", strain, (3, 3)),
            ("points_change", points_change, p.shape),
        )
    ]
    out = np.empty((len(p), bispectrum_size(parameters.twojmax)), kind)
    function = _functions()["jvp", kind.name]
    check_status(
        function(
            ctypes.byref(atoms),
            ctypes.byref(parameters),
            len(p),
            p.ctypes.data,
            *(None if change is None else change.ctypes.data for change in changes),
            thread_count(threads),
            out.ctypes.data,
        )
    )
    return out


def _gradient(gradient: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    array = np.asarray(gradient)
    if array.shape != shape or array.dtype not in (np.float32, np.float64):
        raise InputError(
            f"gradient must be {shape} (points, features) of float32 or float64, "
            f"got {array.shape} of {array.dtype}"
        )
    return np.ascontiguousarray(array)


@cache
def _functions() -> dict[tuple[str, str], Any]:
    library, found = cpu_library(), {}
    data, number = ctypes.c_void_p, ctypes.c_int32
    problem = [ctypes.POINTER(AtomsStruct), ctypes.POINTER(SnapStruct), ctypes.c_int64, data]
    for suffix, dtype in (("f32", "float32"), ("f64", "float64")):
        adjoint = getattr(library, f"malax_bispectrum_adjoint_{suffix}")
        adjoint.argtypes = [*problem, data, number, data, data, data]
        jvp = getattr(library, f"malax_bispectrum_jvp_{suffix}")
        jvp.argtypes = [*problem, data, data, data, number, data]
        found["adjoint", dtype], found["jvp", dtype] = adjoint, jvp
    return found
