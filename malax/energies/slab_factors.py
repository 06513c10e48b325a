"""Structure factors S(G) = sum_i w_i exp(-i G r_i) of waves that are divided over ranks.

The methods are those of `structure_factor`: a direct sum for few atoms, a mesh for many. Every rank knows
all atoms; it spreads, onto its planes of the mesh, those that reach them. The mesh is 1.5 times finer than
the waves along each axis, so it is done in rounds (see `malax.fft`), of which only one exists at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import cast

import numpy as np
import torch

from malax.energies.structure_factor import (
    WIDTH,
    direct_cost,
    direct_sum,
    kernel,
    kernel_transform,
    mesh_cost,
    mesh_shape,
)
from malax.fft import Transform, Waves, rounds_for

_PAIRS = 1 << 12
"""Atom and plane pairs that are spread at a time (WIDTH^2 numbers each)."""


def structure_factors(
    scaled_positions: np.ndarray, weights: np.ndarray, waves: Waves, method: str = "auto"
) -> np.ndarray:
    """Packed S (n,) complex128 of this rank's waves; collective.

    Parameters
    ----------
    scaled_positions : (N, 3) of all atoms in units of the lattice vectors
    weights : (N,) float64
    method : "direct", "mesh", or "auto": whichever should be faster
    """
    if method == "auto":
        n_waves = len(waves.columns) * len(waves.mx)
        direct = direct_cost(len(weights), n_waves)
        method = "direct" if direct <= mesh_cost(len(weights), waves.m_max) else "mesh"
    return (_direct if method == "direct" else _mesh)(scaled_positions, weights, waves)


def _direct(scaled: np.ndarray, weights: np.ndarray, waves: Waves) -> np.ndarray:
    found = np.empty(waves.n, dtype=np.complex128)
    mine = waves.columns[waves.owned]
    # columns run along the first axis here
    turned, some = torch.from_numpy(scaled[:, [1, 2, 0]]), torch.from_numpy(weights)
    _, m1, m2 = waves.m_max
    axes = (
        torch.arange(-m1, m1 + 1, dtype=torch.float64),
        torch.arange(m2 + 1, dtype=torch.float64),
        torch.from_numpy(waves.mx.astype(np.float64)),
    )
    for block in waves.blocks():
        chosen = torch.from_numpy(mine[block.here] + [m1, 0])
        found[block.place] = direct_sum(turned, some, axes, chosen).numpy()[block.inside]
    return found


def _mesh(scaled: np.ndarray, weights: np.ndarray, waves: Waves) -> np.ndarray:
    shape = cast(tuple[int, int, int], tuple(mesh_shape(waves.m_max)))
    transform = Transform(waves, shape, rounds_for(shape[0], waves.comm.size))
    found = np.zeros(waves.n, dtype=np.complex128)
    spread = _Spread(scaled, weights, transform)
    for round in range(transform.rounds):
        transform.add_to(found, spread.planes(round), round)
    x, y, z = (
        1 / kernel_transform(torch.arange(-m, m + 1, dtype=torch.float64), n).numpy()
        for m, n in zip(waves.m_max, shape, strict=True)
    )
    mine = waves.columns[waves.owned]
    for block in waves.blocks():
        my, mz = mine[block.here].T
        across = y[my + waves.m_max[1]] * z[mz + waves.m_max[2]] * math.prod(shape)
        found[block.place] *= (across[:, None] * x)[block.inside]
    return found


class _Spread:
    """The atoms that reach this rank's planes of a mesh, ready to be spread onto them."""

    def __init__(self, scaled: np.ndarray, weights: np.ndarray, transform: Transform) -> None:
        self.transform = transform
        planes, rounds, nx = transform.planes, transform.rounds, transform.shape[0]
        self.first = np.ceil(scaled * transform.shape - WIDTH / 2).astype(np.int64)
        # this rank's planes of all rounds together are a slab: how far above its lower end an atom begins
        above = (self.first[:, 0] - rounds * planes.start) % nx
        reach = (above < rounds * (planes.stop - planes.start)) | (above > nx - WIDTH)
        self.first, self.weights = self.first[reach], weights[reach]
        self.offset = self.first - scaled[reach] * transform.shape

    def planes(self, round: int) -> np.ndarray:
        """The mesh (planes, ny, nz) of a round."""
        planes = self.transform.planes
        _, ny, nz = self.transform.shape
        mesh = torch.zeros((planes.stop - planes.start) * ny * nz, dtype=torch.float64)
        steps = torch.arange(WIDTH)
        for atoms, plane, x in self._pairs(round):
            first, offset = torch.from_numpy(self.first[atoms]), torch.from_numpy(self.offset[atoms])
            iy, iz = (torch.remainder(first[:, a, None] + steps, n) for a, n in ((1, ny), (2, nz)))
            y, z = (kernel((offset[:, a, None] + steps) * (2 / WIDTH)) for a in (1, 2))
            y = y * torch.from_numpy(x * self.weights[atoms])[:, None]
            flat = (torch.from_numpy(plane)[:, None] * ny + iy)[:, :, None] * nz + iz[:, None, :]
            mesh.index_add_(0, flat.reshape(-1), (y[:, :, None] * z[:, None, :]).reshape(-1))
        return mesh.reshape(-1, ny, nz).numpy()

    def _pairs(self, round: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Atoms, which of this rank's planes of a round each meets, and the kernel along x there."""
        rounds, nx, planes = self.transform.rounds, self.transform.shape[0], self.transform.planes
        nearest = (round - self.first[:, 0]) % rounds  # steps from the lowest plane to one of this round
        for step in range(-(-WIDTH // rounds)):
            along = nearest + step * rounds
            plane = (self.first[:, 0] + along) % nx // rounds - planes.start
            met = np.flatnonzero((along < WIDTH) & (plane >= 0) & (plane < planes.stop - planes.start))
            for start in range(0, len(met), _PAIRS):
                atoms = met[start : start + _PAIRS]
                x = kernel(torch.from_numpy((self.offset[atoms, 0] + along[atoms]) * (2 / WIDTH)))
                yield atoms, plane[atoms], x.numpy()
