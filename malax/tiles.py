"""Tiles of a grid: how its points are dealt out to ranks, and how sums over them do not depend on that."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms

from malax.comm import Comm
from malax.grid import Grid

_NEIGHBOURS = 240.0
"""So many neighbours cost as much as everything else that is done for a point."""


_SAMPLES = 16


@dataclass(frozen=True)
class Tiles:
    """The points of a grid in runs of one length (the last may be shorter)."""

    n_points: int
    size: int

    @classmethod
    def of(cls, grid: Grid) -> Tiles:
        """Tiles large enough that nothing is lost between them, and so small that ranks share small grids
        evenly and that what is made of a tile is little beside what is kept of all points."""
        n = grid.n_points
        size = max(512, min(n // 64, 1024), min(n // 512, 4096))
        return cls(n, -(-size // 128) * 128)

    def __len__(self) -> int:
        return -(-self.n_points // self.size)

    def owned(self, comm: Comm, costs: np.ndarray | None = None) -> range:
        """This rank's tiles: a contiguous run, so that the ranks' costs (one per tile) are about equal."""
        cuts = self.cuts(comm.size, costs)
        return range(int(cuts[comm.rank]), int(cuts[comm.rank + 1]))

    def cuts(self, ranks: int, costs: np.ndarray | None = None) -> np.ndarray:
        """Where the tiles of each of ``ranks`` begin, and where the last one's end: (ranks + 1,) integers."""
        n = len(self)
        if costs is None:
            return n * np.arange(ranks + 1) // ranks
        ends = np.cumsum(costs)
        # the tile whose middle is nearest to an equal share begins the next rank
        shares = ends[-1] * np.arange(ranks + 1) / ranks
        cuts = np.searchsorted(ends - costs / 2, shares * (1 + 1e-12))
        cuts[0], cuts[-1] = 0, n
        return cuts

    def points(self, tiles: range) -> tuple[int, int]:
        """Flat range of the points of contiguous tiles."""
        return min(tiles.start * self.size, self.n_points), min(tiles.stop * self.size, self.n_points)


def tile_costs(tiles: Tiles, grid: Grid, atoms: Atoms, cutoff: float) -> np.ndarray:
    """What each tile costs, (n_tiles,), in any unit: more where a point has more neighbours.

    Neighbours are counted in boxes no smaller than ``cutoff`` (A), at some points of a tile: enough to deal
    out surfaces and clusters fairly, and cheap for any number of atoms and tiles.
    """
    heights = 1 / np.linalg.norm(np.linalg.inv(grid.cell), axis=0)
    shape = np.maximum(1, (heights / cutoff).astype(int))
    # enough boxes to tell atoms from vacuum, not more than there are atoms
    shape = np.minimum(shape, max(1, int(np.ceil((8 * len(atoms)) ** (1 / 3)))))
    scaled = atoms.positions @ np.linalg.inv(grid.cell)
    boxes = np.minimum((scaled % 1.0 * shape).astype(int), shape - 1)
    counts = np.bincount(np.ravel_multi_index(tuple(boxes.T), tuple(shape)), minlength=int(np.prod(shape)))
    around = counts.reshape(shape).astype(np.float64)
    for axis in range(3):
        if shape[axis] > 2:  # two boxes are all neighbours of each other
            around = around + np.roll(around, 1, axis) + np.roll(around, -1, axis)
        else:
            around = np.broadcast_to(around.sum(axis=axis, keepdims=True), around.shape)
    seen = float(np.prod([3 / n if n > 2 else 1.0 for n in shape])) * grid.volume
    neighbours = around * (4 / 3 * np.pi * cutoff**3 / seen)
    starts = np.arange(len(tiles)) * tiles.size
    lengths = np.minimum(starts + tiles.size, tiles.n_points) - starts
    found = np.zeros(len(tiles))
    for k in range(_SAMPLES):
        # multiples of the golden ratio: no regular step, which might miss all atoms along an axis
        part = (0.5 + k * 0.6180339887498949) % 1.0
        ijk = np.unravel_index(starts + (lengths * part).astype(np.int64), grid.shape)
        box = tuple(index * n // points for index, n, points in zip(ijk, shape, grid.shape, strict=True))
        found += neighbours[box] / _SAMPLES
    return lengths * (1 + found / _NEIGHBOURS)


class PairwiseSum:
    """The sum of rows, one per tile, in an order that depends on the tiles only.

    Rows are added in pairs of neighbours, pairs of pairs, and so on: a binary tree over the numbers of the
    tiles. A rank holds the few subtrees that its tiles make up, and joining those of all ranks gives the same
    bits on any number of them.
    """

    def __init__(self, n_columns: int) -> None:
        self._trees = np.zeros((0, n_columns + 2))

    @property
    def trees(self) -> np.ndarray:
        """(k, 2 + columns): level, first tile and sum of each subtree; this is all there is to save."""
        return self._trees

    @trees.setter
    def trees(self, value: np.ndarray) -> None:
        self._trees = np.array(value, dtype=np.float64)

    def add(self, tile: int, row: np.ndarray) -> None:
        """Add the row of the tile after those added before."""
        self._push(np.concatenate([[0.0, float(tile)], row]))

    def _push(self, tree: np.ndarray) -> None:
        stack = list(self._trees)
        while stack and stack[-1][0] == tree[0] and int(stack[-1][1]) % 2 ** (int(tree[0]) + 1) == 0:
            left = stack.pop()
            tree = np.concatenate([[left[0] + 1, left[1]], left[2:] + tree[2:]])
        self._trees = np.array([*stack, tree])

    def total(self, comm: Comm) -> np.ndarray:
        """The sum of all rows of all ranks, which follow each other in tiles; collective."""
        whole = PairwiseSum(self._trees.shape[1] - 2)
        for tree in comm.allgatherv(self._trees):
            whole._push(tree)
        total = np.zeros(self._trees.shape[1] - 2)
        for tree in whole.trees[::-1]:
            total = tree[2:] + total
        return total
