"""Typed calls of the kernel that applies networks of dense layers."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from malax import library
from malax.errors import InputError

ACTIVATIONS = ("identity", "relu", "leaky_relu", "silu", "gelu", "tanh")
"""In the order of malax_activation in ``malax_kernels.h``; leaky_relu has the slope 0.01 below zero."""


class DenseLayers:
    """``x <- activation(x W^T + b)``, layer after layer, from ``(x - mean) / scale`` of the inputs.

    What a row gets depends neither on the other rows nor on the number of threads.

    Parameters
    ----------
    weights : of each layer (outputs, inputs)
    biases : of each layer (outputs,)
    activations : one name of `ACTIVATIONS` for each layer
    mean, scale : of the inputs; None for 0 and 1
    dtype : float32 or float64, of weights and results
    bfloat16 : with float32: all layers but the first multiply numbers rounded to bfloat16

    Raises
    ------
    InputError
        shapes that do not fit each other, NaN or infinity, an unknown activation, another dtype.
    MissingPeerError
        bfloat16 on a processor without products of such numbers.
    """

    def __init__(
        self,
        weights: Sequence[ArrayLike],
        biases: Sequence[ArrayLike],
        activations: Sequence[str],
        mean: ArrayLike | None = None,
        scale: ArrayLike | None = None,
        dtype: DTypeLike = "float32",
        bfloat16: bool = False,
    ) -> None:
        self.dtype = library.float_dtype(dtype)
        if bfloat16 and self.dtype != np.float32:
            raise InputError("bfloat16 goes with float32, not with float64")
        self._bfloat16 = bfloat16
        if not len(weights) == len(biases) == len(activations) > 0:
            raise InputError(
                "one weight, bias and activation for each of one or more layers are needed, got "
                f"{len(weights)}, {len(biases)} and {len(activations)}"
            )
        w = [library.checked_array(f"weights of layer {i}", one, (-1, -1)) for i, one in enumerate(weights)]
        widths = [w[0].shape[1], *(len(one) for one in w)]
        for i, one in enumerate(w):
            if one.shape[1] != widths[i]:
                raise InputError(f"layer {i} takes {one.shape[1]} inputs, but gets {widths[i]}")
        b = [
            library.checked_array(f"biases of layer {i}", one, (widths[i + 1],))
            for i, one in enumerate(biases)
        ]
        for name in activations:
            if name not in ACTIVATIONS:
                raise InputError(f"unknown activation {name!r}: one of {', '.join(ACTIVATIONS)} is needed")
        m = library.checked_array("mean", np.zeros(widths[0]) if mean is None else mean, (widths[0],))
        s = library.checked_array("scale", np.ones(widths[0]) if scale is None else scale, (widths[0],))
        self.n_inputs, self.n_outputs = widths[0], widths[-1]
        self._apply, handle, destroy = self._create(widths, activations, w, b, m, s)
        self._handle = handle
        weakref.finalize(self, destroy, handle)

    def _create(
        self,
        widths: list[int],
        activations: Sequence[str],
        weights: list[np.ndarray],
        biases: list[np.ndarray],
        mean: np.ndarray,
        scale: np.ndarray,
    ) -> tuple[Any, ctypes.c_void_p, Any]:
        create, apply, destroy = _functions("f32" if self.dtype == np.float32 else "f64")
        n = len(weights)
        # `owned` keeps alive what the pointers point to; the kernel copies it
        owned = [
            [np.ascontiguousarray(a, self.dtype) for a in group] for group in (weights, biases, (mean, scale))
        ]
        pointers = [(ctypes.c_void_p * len(group))(*(a.ctypes.data for a in group)) for group in owned]
        numbers = (ctypes.c_int32 * n)(*(ACTIVATIONS.index(name) for name in activations))
        handle = ctypes.c_void_p()
        shape = (ctypes.c_int64 * (n + 1))(*widths)
        options = [int(self._bfloat16)] if self.dtype == np.float32 else []
        status = create(n, shape, numbers, *pointers[:2], *pointers[2], *options, ctypes.byref(handle))
        library.check_status(status)
        return apply, handle, destroy

    def __call__(self, rows: np.ndarray, threads: int | None = None) -> np.ndarray:
        """Outputs (P, outputs) of ``rows`` (P, inputs); NaN where a row holds NaN.

        Raises
        ------
        InputError
            wrong shape or dtype.
        """
        rows = np.asarray(rows)
        if rows.ndim != 2 or rows.shape[1] != self.n_inputs or rows.dtype != self.dtype:
            raise InputError(
                f"the network takes (points, {self.n_inputs}) of {self.dtype}, "
                f"got shape {rows.shape} of {rows.dtype}"
            )
        if not _contiguous_rows(rows):
            rows = np.ascontiguousarray(rows)
        out = np.empty((len(rows), self.n_outputs), self.dtype)
        arguments = (rows.ctypes.data, library.thread_count(threads), out.ctypes.data)
        library.check_status(self._apply(self._handle, len(rows), library.row_stride(rows), *arguments))
        return out


def _contiguous_rows(rows: np.ndarray) -> bool:
    step, size = rows.strides[0], rows.itemsize
    apart = len(rows) < 2 or (step % size == 0 and step >= rows.shape[1] * size)
    return apart and (rows.shape[1] < 2 or rows.strides[1] == size)


@cache
def _functions(kind: str) -> tuple[Any, Any, Any]:
    cpu = library.cpu_library()
    names = ("create", "apply", "destroy")
    create, apply, destroy = (getattr(cpu, f"malax_network_{name}_{kind}") for name in names)
    data, count, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    create.argtypes = [number, *6 * [data], *([number] if kind == "f32" else []), data]
    apply.argtypes = [data, count, count, data, number, data]
    destroy.argtypes, destroy.restype = [data], None
    return create, apply, destroy
