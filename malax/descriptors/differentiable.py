"""The bispectrum as a function of torch tensors, with its derivatives by the kernels' adjoint."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.autograd.function import once_differentiable

from malax import kernels, kernels_adjoint
from malax.descriptors.snap import Descriptor
from malax.errors import InputError

_SETTINGS = ("twojmax", "cutoff", "rfac0", "rmin0", "switchflag", "bzeroflag")


def bispectrum_torch(
    positions: Tensor,
    cell: Tensor,
    points: Tensor,
    types: ArrayLike,
    weights: ArrayLike,
    descriptor: Descriptor,
    *,
    pbc: ArrayLike = (True, True, True),
    dtype: torch.dtype | None = None,
    threads: int | None = None,
) -> Tensor:
    """Features of a descriptor at points, differentiable in positions, cell and points.

    First derivatives in reverse and in forward mode; each of the three is held fixed while another changes.
    So the derivative with respect to a strain of everything is had by giving ``x + x @ strain`` for each.

    Parameters
    ----------
    positions : (N, 3) in A, inside the cell or not
    cell : (3, 3) in A, rows; vectors of non-periodic directions may be zero and have no derivative
    points : (P, 3) in A, cartesian
    types : (N,) integers, index into ``weights``; `malax.descriptors.structure.numbered_species` makes both
    weights : (n_types,); those of ``descriptor``, by element, are not used
    descriptor : twojmax, cutoff and the other settings, and whether the cell's volume per atom is a feature
    pbc : three flags
    dtype : torch.float32 or float64, of the arithmetic and the result; None for that of ``positions``
    threads : None for torch's number of threads

    Returns
    -------
    (P, ``descriptor.n_features``)

    Raises
    ------
    InputError
        tensors of the wrong shape, not on the CPU or with NaN, a degenerate cell, another dtype.
    RuntimeError
        by torch: a second derivative is asked for.
    """
    for name, tensor in (("positions", positions), ("cell", cell), ("points", points)):
        if not isinstance(tensor, Tensor):
            raise InputError(f"{name} must be a torch tensor, got {type(tensor).__name__}")
        if tensor.device.type != "cpu":
            raise InputError(f"{name} must be on the CPU, got a tensor on {tensor.device}")
    kind = positions.dtype if dtype is None else dtype
    if kind not in (torch.float32, torch.float64):
        raise InputError(f"dtype must be torch.float32 or torch.float64, got {kind}")
    settings = {name: getattr(descriptor, name) for name in _SETTINGS}
    settings |= {"weights": weights, "threads": threads}
    features = _Bispectrum.apply(positions, cell, points, types, pbc, kind, settings)
    if not descriptor.atomic_volume:
        return features
    volume = torch.linalg.det(cell).abs() / len(positions)
    return torch.cat([features, volume.to(kind).expand(len(points), 1)], dim=1)


class _Bispectrum(torch.autograd.Function):
    """The kernel and its derivatives: tensors in, tensors out."""

    @staticmethod
    def forward(
        positions: Tensor,
        cell: Tensor,
        points: Tensor,
        types: ArrayLike,
        pbc: ArrayLike,
        kind: torch.dtype,
        settings: dict[str, Any],
    ) -> Tensor:
        problem = _problem(positions, cell, points, types, pbc)
        dtype = "float32" if kind == torch.float32 else "float64"
        return torch.from_numpy(kernels.bispectrum(*problem, dtype=dtype, **settings))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        positions, cell, points, ctx.types, ctx.pbc, ctx.kind, ctx.settings = inputs
        ctx.save_for_backward(positions, cell, points)
        ctx.save_for_forward(positions, cell, points)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        positions, cell, points = ctx.saved_tensors
        problem = _problem(positions, cell, points, ctx.types, ctx.pbc)
        found = kernels_adjoint.bispectrum_adjoint(*problem, gradient.detach().numpy(), **ctx.settings)
        x, types, h, periodic, p = problem
        # a strain moves positions, points and cell: what the first two do not explain is the cell's
        by_cell = found.strain - x.T @ found.positions - p.T @ found.points
        by_cell = np.linalg.solve(kernels.complete_cell(h, periodic).T, by_cell)
        by_cell[~periodic] = 0.0
        gradients = (
            torch.from_numpy(value).to(of.dtype)
            for value, of in (
                (found.positions, positions),
                (by_cell, cell),
                (found.points, points),
            )
        )
        return (*gradients, None, None, None, None)

    @staticmethod
    def jvp(
        ctx: Any, positions: Tensor | None, cell: Tensor | None, points: Tensor | None, *_: Any
    ) -> Tensor:
        at, lattice, where = ctx.saved_tensors
        problem = _problem(at, lattice, where, ctx.types, ctx.pbc)
        x, types, h, periodic, p = problem
        by_cell = np.zeros((3, 3)) if cell is None else _numpy(cell).copy()
        by_cell[~periodic] = 0.0
        strain = np.linalg.solve(kernels.complete_cell(h, periodic), by_cell)
        # the strain moves positions and points too: taken back here
        found = kernels_adjoint.bispectrum_jvp(
            *problem,
            positions_change=(0.0 if positions is None else _numpy(positions)) - x @ strain,
            strain=strain,
            points_change=(0.0 if points is None else _numpy(points)) - p @ strain,
            dtype="float32" if ctx.kind == torch.float32 else "float64",
            **ctx.settings,
        )
        return torch.from_numpy(found)


def _problem(
    positions: Tensor, cell: Tensor, points: Tensor, types: ArrayLike, pbc: ArrayLike
) -> tuple[np.ndarray, ArrayLike, np.ndarray, np.ndarray, np.ndarray]:
    """The first five arguments of the kernels."""
    x, h, p = (_numpy(tensor) for tensor in (positions, cell, points))
    return x, types, h, np.asarray(pbc, dtype=bool), p


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().to(torch.float64).numpy()
