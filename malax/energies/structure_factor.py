"""Structure factors S(G) = sum_i w_i exp(-i G r_i): directly for few atoms, over a mesh for many.

Direct: exp(-i G r) is a product of one phase factor per axis, so that the sum over atoms is a matrix
product; its work grows as atoms x waves. Mesh: each weight is spread over WIDTH^3 points of a mesh, 1.5
times finer than the waves need, with the kernel exp(beta (sqrt(1 - x^2) - 1)); a Fourier transform divided by
that of the kernel gives S (the non-uniform FFT of Barnett, Magland, af Klinteberg, SIAM J. Sci. Comput. 41,
C479 (2019)); its work grows as the atoms. Both are differentiable and bounded in memory.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from malax.grid import fft_friendly

WIDTH = 14
"""Mesh points per axis that an atom is spread over. The error of S is about 1e-11 sum_i |w_i|."""

OVERSAMPLING = 1.5

_BETA = math.pi * WIDTH * (1 - 1 / (2 * OVERSAMPLING))
_ELEMENTS = 1 << 22
"""Numbers in a block of the large arrays (32 or 64 MiB)."""

# Times in ns on one core, measured: a multiply-add of an atom and a wave, one spread value, one mesh point's
# share of the FFT. Only their ratios matter, and those only for speed.
_DIRECT_COST, _SPREAD_COST, _MESH_COST = 0.8, 8.0, 25.0


def structure_factors(
    scaled_positions: torch.Tensor,
    weights: torch.Tensor,
    waves: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    columns: torch.Tensor,
    method: str = "auto",
) -> torch.Tensor:
    """S of the waves mx b1 + my b2 + mz b3.

    Parameters
    ----------
    scaled_positions : (N, 3) in units of the lattice vectors
    weights : (N,) float64
    waves : the integers mx (nx,), my (ny,), mz (nz,) as float64
    columns : (C, 2) int64, the pairs (index into mx, index into my) that are wanted
    method : "direct", "mesh", or "auto": whichever should be faster

    Returns
    -------
    (C, nz) complex128, differentiable with respect to positions and weights.
    """
    if method == "auto":
        extents = [int(m.abs().max()) for m in waves]
        direct = direct_cost(len(scaled_positions), len(columns) * len(waves[2]))
        method = "direct" if direct <= mesh_cost(len(scaled_positions), extents) else "mesh"
    return (direct_sum if method == "direct" else _mesh)(scaled_positions, weights, waves, columns)


def direct_cost(n_atoms: int, n_waves: float) -> float:
    """Estimated time of the direct sum in ns."""
    return _DIRECT_COST * n_atoms * n_waves


def mesh_cost(n_atoms: int, extents: list[int]) -> float:
    """Estimated time over a mesh in ns, for waves up to these integers along the axes."""
    return _SPREAD_COST * n_atoms * WIDTH**3 + _MESH_COST * math.prod(mesh_shape(extents))


def mesh_shape(extents: list[int]) -> list[int]:
    """Points of the mesh along each axis for waves up to these integers."""
    return [fft_friendly(max(2 * WIDTH, math.ceil(OVERSAMPLING * (2 * m + 1)))) for m in extents]


def direct_sum(
    scaled: torch.Tensor,
    weights: torch.Tensor,
    waves: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    columns: torch.Tensor,
) -> torch.Tensor:
    """S (C, nz) of all these waves by the direct sum; the arguments are those of `structure_factors`."""
    x, y, z = (
        torch.exp(torch.outer(s, m) * (-2j * math.pi)) for s, m in zip(scaled.unbind(1), waves, strict=True)
    )
    x = x * weights[:, None]
    block = max(1, _ELEMENTS // max(1, len(scaled)))
    differentiable = torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)
    parts = []
    for chosen in columns.split(block):
        if differentiable:
            # the product of two phase factors is the large array: recomputed in the backward pass
            parts.append(checkpoint(_direct_block, x, y, z, chosen, use_reentrant=False))
        else:
            parts.append(_direct_block(x, y, z, chosen))
    return torch.cat(parts)


def _direct_block(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    return (x[:, columns[:, 0]] * y[:, columns[:, 1]]).T @ z


def _mesh(
    scaled: torch.Tensor,
    weights: torch.Tensor,
    waves: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    columns: torch.Tensor,
) -> torch.Tensor:
    shape = mesh_shape([int(m.abs().max()) for m in waves])
    mesh = torch.zeros(math.prod(shape), dtype=torch.float64, device=scaled.device)
    block = max(1, _ELEMENTS // WIDTH**3)
    differentiable = torch.is_grad_enabled() and (scaled.requires_grad or weights.requires_grad)
    for positions, some in zip(scaled.split(block), weights.split(block), strict=True):
        first = torch.ceil(positions.detach() * torch.tensor(shape, device=scaled.device) - WIDTH / 2)
        indices = _mesh_indices(first, shape)
        if differentiable:
            values = checkpoint(_spread_values, positions, some, first, shape, use_reentrant=False)
            mesh = mesh.index_add(0, indices, values)
        else:
            mesh.index_add_(0, indices, _spread_values(positions, some, first, shape))
    # axis by axis, so that only the waves that are wanted are carried on
    transformed = torch.fft.rfft(mesh.reshape(shape), dim=2)
    keep = [torch.remainder(m.long(), n) for m, n in zip(waves, shape, strict=True)]
    transformed = transformed.index_select(2, keep[2])
    transformed = torch.fft.fft(transformed, dim=1).index_select(1, keep[1])
    transformed = torch.fft.fft(transformed, dim=0).index_select(0, keep[0])
    x, y, z = (1 / kernel_transform(m, n) for m, n in zip(waves, shape, strict=True))
    chosen = transformed[columns[:, 0], columns[:, 1]]
    return chosen * (x[columns[:, 0]] * y[columns[:, 1]])[:, None] * z


def _mesh_indices(first: torch.Tensor, shape: list[int]) -> torch.Tensor:
    """Flat mesh indices (N WIDTH^3,) of the points around each atom, from the lowest (N, 3) on."""
    steps = torch.arange(WIDTH, device=first.device)
    x, y, z = (torch.remainder(first[:, a, None].long() + steps, shape[a]) for a in range(3))
    flat = (x[:, :, None, None] * shape[1] + y[:, None, :, None]) * shape[2] + z[:, None, None, :]
    return flat.reshape(-1)


def _spread_values(
    positions: torch.Tensor, weights: torch.Tensor, first: torch.Tensor, shape: list[int]
) -> torch.Tensor:
    """What each atom adds to its WIDTH^3 mesh points, (N WIDTH^3,)."""
    steps = torch.arange(WIDTH, dtype=torch.float64, device=positions.device)
    offsets = first - positions * torch.tensor(shape, device=positions.device)
    x, y, z = (kernel((column[:, None] + steps) * (2 / WIDTH)) for column in offsets.unbind(1))
    x = x * weights[:, None]
    return (x[:, :, None, None] * y[:, None, :, None] * z[:, None, None, :]).reshape(-1)


def kernel(x: torch.Tensor) -> torch.Tensor:
    """What an atom adds to the mesh at |x| <= 1, in units of half the kernel's width."""
    # the clamp keeps the derivative finite at the ends, where the kernel is exp(-beta) = 2e-13
    return torch.exp(_BETA * (torch.sqrt((1 - x * x).clamp(min=1e-12)) - 1))


def kernel_transform(m: torch.Tensor, n: int) -> torch.Tensor:
    """Fourier transform of the kernel in mesh units at the waves ``m`` of a mesh of ``n`` points."""
    nodes, quadrature = np.polynomial.legendre.leggauss(4 * WIDTH)
    x = torch.as_tensor(nodes, device=m.device)
    values = kernel(x) * torch.as_tensor(quadrature, device=m.device) * (WIDTH / 2)
    return torch.cos(torch.outer(m, x) * (math.pi * WIDTH / n)) @ values
