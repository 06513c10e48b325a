"""The Gaussian kernels as one differentiable torch function."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from malax import kernels_gaussian as native


class GaussianSum(torch.autograd.Function):
    """Values of `malax.descriptors.gaussian` from positions (N, 3), cell (3, 3) and points (P, 3) or a grid.

    The kernel gives dE/d(strain) of atoms, cell and points together. By the chain rule that is
    x^T G_x + cell^T G_cell + p^T G_p for the derivatives G with respect to positions, cell and points, which
    yields G_cell. (Points of a grid are a function of the cell and have no term of their own.)
    """

    @staticmethod
    def forward(
        ctx: Any,
        positions: torch.Tensor,
        cell: torch.Tensor,
        points: torch.Tensor | None,
        shape: tuple[int, int, int] | None,
        fixed: tuple[np.ndarray, ...],
        threads: int | None,
    ) -> torch.Tensor:
        """``fixed``: types (N,), pbc (3,), sigma, cutoff, weights (T,); one of points and shape is None."""
        types, pbc, *columns = fixed
        x, h = (tensor.detach().double().numpy() for tensor in (positions, cell))
        sources = native.Sources(x, types, h, pbc, *columns)
        ctx.sources, ctx.shape, ctx.threads = sources, shape, threads
        ctx.points = None if points is None else points.detach().double().numpy()
        options: dict[str, Any] = {"dtype": str(positions.dtype).split(".")[1], "threads": threads}
        if shape is None:
            return torch.from_numpy(native.at_points(sources, ctx.points, **options))
        values = native.on_grid(sources, shape, 0, int(np.prod(shape)), **options)
        return torch.from_numpy(values.reshape(*shape, -1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        sources, shape, points = ctx.sources, ctx.shape, ctx.points
        rows = gradient.reshape(-1, sources.n_types).numpy()
        of_points = None
        if shape is None:
            of_positions, strain, of_points = native.adjoint_at_points(
                sources, points, rows, threads=ctx.threads
            )
            rest = strain - sources.positions.T @ of_positions - points.T @ of_points
            of_cell = np.linalg.solve(sources.complete_cell.T, rest)
            # the vectors of open directions stand for nothing: there are no images, and no points along them
            of_cell[np.array(sources.periodic) == 0] = 0
        else:
            options = {"threads": ctx.threads}
            of_positions, strain = native.adjoint_on_grid(sources, shape, 0, len(rows), rows, **options)
            of_cell = np.linalg.solve(sources.cell.T, strain - sources.positions.T @ of_positions)
        found = (
            None if array is None or not needed else torch.from_numpy(array).to(gradient.dtype)
            for array, needed in zip((of_positions, of_cell, of_points), ctx.needs_input_grad, strict=False)
        )
        return (*found, None, None, None)
