"""Typed calls of the kernels: arrays are checked once, error codes become exceptions."""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from malax.errors import InputError
from malax.library import (
    INT32,
    AtomsStruct,
    SnapStruct,
    check_status,
    checked_array,
    checked_integer,
    complete_cell,
    cpu_library,
    double_pointer,
    float_dtype,
    output_rows,
    periodic_flags,
    row_stride,
    thread_count,
    type_numbers,
)


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
        library, handle = cpu_library(), ctypes.c_void_p()
        types, (_, t, _) = self._snap.n_types, self._atoms.owned
        if t.min() < 0 or t.max() >= types:  # the kernel looks at all types only where it looks at all atoms
            raise InputError("an atom's type is out of range")
        check_status(library.malax_structure_create(ctypes.byref(self._atoms), ctypes.byref(handle)))
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
        check_status(function(*args, thread_count(threads), row_stride(result), result.ctypes.data))
        return result

    def stages(self, points: ArrayLike, dtype: DTypeLike = "float64") -> dict[str, float]:
        """Seconds that each of `STAGES` takes for these points on one thread."""
        function, args, result = self._call("malax_bispectrum_stages", points, dtype, None)
        seconds = np.zeros(len(self.STAGES))
        check_status(function(*args, result.ctypes.data, double_pointer(seconds)))
        return dict(zip(self.STAGES, seconds.tolist(), strict=True))

    def _call(
        self, name: str, points: ArrayLike, dtype: DTypeLike, out: np.ndarray | None
    ) -> tuple[Any, tuple[Any, ...], np.ndarray]:
        """The kernel for a dtype, its first arguments, and the array it is to write to."""
        kind = float_dtype(dtype)
        p = checked_array("points", points, (-1, 3))
        result = output_rows(out, len(p), self.n_features, kind)
        function = getattr(cpu_library(), f"{name}_{'f32' if kind == np.float32 else 'f64'}")
        return (
            function,
            (ctypes.byref(self._atoms), ctypes.byref(self._snap), len(p), double_pointer(p)),
            result,
        )


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
) -> tuple[AtomsStruct, SnapStruct]:
    """A structure and the parameters of `bispectrum` as the kernels take them, checked.

    The two structs own the arrays they point to.
    """
    x, t = checked_array("positions", positions, (-1, 3)), type_numbers(types)
    w = checked_array("weights", weights, (-1,))
    if len(x) == 0:
        raise InputError("at least one atom is needed, got none")
    if t.shape != (len(x),):
        raise InputError(f"types must hold one integer per atom ({len(x)}), got shape {t.shape}")
    periodic = periodic_flags(pbc)
    h = complete_cell(checked_array("cell", cell, (3, 3)), list(periodic))
    if bispectrum_size(twojmax) == 0:
        raise InputError(f"twojmax must be 2 to 14, got {twojmax}")
    atoms = AtomsStruct(len(x), double_pointer(x), t.ctypes.data_as(INT32), double_pointer(h), periodic)
    snap = SnapStruct(
        int(twojmax),
        bool(switchflag),
        bool(bzeroflag),
        len(w),
        float(cutoff),
        float(rfac0),
        float(rmin0),
        double_pointer(w),
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
    w = checked_array("weights", weights, (-1, n_energies))
    values, sums = np.empty((n_points, len(w))), np.empty(n_energies)
    function = getattr(cpu_library(), f"malax_ldos_moments_{'f32' if rows.dtype == np.float32 else 'f64'}")
    sizes = (n_points, n_energies, len(w))
    args = (rows.ctypes.data, w.ctypes.data, thread_count(threads), values.ctypes.data, sums.ctypes.data)
    check_status(function(*sizes, *args))
    # a NaN or an infinity anywhere reaches the sum over points: no second pass over the LDOS is needed
    if not np.isfinite(sums).all():
        raise InputError(
            f"ldos holds NaN or infinity at energy index {int(np.flatnonzero(~np.isfinite(sums))[0])}"
        )
    return values, sums


def bispectrum_size(twojmax: int) -> int:
    """The number of bispectrum components; 0 if ``twojmax`` is out of the kernel's range (2 to 14)."""
    return int(cpu_library().malax_bispectrum_size(checked_integer("twojmax", twojmax)))
