"""One pass over a grid: tiles of points -> descriptors -> network -> LDOS -> reduced, and forgotten.

What a point gets does not depend on who computes it: tiles are cut from the global grid and padded to one
shape, and their sums are double and added in the order of the tiles.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from ase import Atoms

from malax import kernels
from malax.comm import Comm
from malax.ensemble import members_of
from malax.errors import InputError
from malax.grid import Grid
from malax.network import LDOSNetwork

if TYPE_CHECKING:
    from malax.emulator import Emulator

Progress = Callable[[int, int], None]
"""Called with the tiles done so far and their number."""


@dataclass(frozen=True)
class Tiles:
    """The points of a grid in runs of one length (the last may be shorter)."""

    n_points: int
    size: int

    @classmethod
    def of(cls, grid: Grid) -> Tiles:
        """Tiles small enough that ranks share small grids evenly, and large enough for matrix products."""
        size = -(-grid.n_points // 64)
        return cls(grid.n_points, int(np.clip(-(-size // 256) * 256, 512, 8192)))

    def __len__(self) -> int:
        return -(-self.n_points // self.size)

    def owned(self, comm: Comm) -> range:
        """This rank's tiles: a contiguous run."""
        n = len(self)
        return range(n * comm.rank // comm.size, n * (comm.rank + 1) // comm.size)

    def points(self, tiles: range) -> tuple[int, int]:
        """Flat range of the points of contiguous tiles."""
        return min(tiles.start * self.size, self.n_points), min(tiles.stop * self.size, self.n_points)


class Reduced(NamedTuple):
    """What one pass leaves: values (n, K) of this rank's points, the DOS (E,) in 1/eV of all points.

    Of an ensemble these are the means; ``member_values`` (k, n, K) and ``member_dos`` (k, E) the members'.
    ``outside`` is the fraction of all points unlike the training data; None where the model does not know.
    """

    values: np.ndarray
    dos: np.ndarray
    ldos: np.ndarray | None
    part: tuple[int, int]
    member_values: np.ndarray
    member_dos: np.ndarray
    outside: float | None


class Clock:
    """Seconds per stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    def largest(self, comm: Comm) -> dict[str, float]:
        """The largest of each stage over the ranks, the same on all ranks; collective."""
        every = comm.gather(self.seconds)
        stages = None if every is None else {key: max(one.get(key, 0.0) for one in every) for key in every[0]}
        return comm.bcast(stages)


@dataclass
class Chain:
    """Atoms and a model, ready to stream over grids of the cell."""

    emulator: Emulator
    atoms: Atoms
    comm: Comm
    backend: str
    clock: Clock

    def reduce(
        self,
        grid: Grid,
        weights: np.ndarray,
        keep_ldos: bool = False,
        progress: Progress | None = None,
    ) -> Reduced:
        """Stream over this rank's tiles: values (n, K) = LDOS . weights.T at each point, and the DOS."""
        tiles = Tiles.of(grid)
        owned = tiles.owned(self.comm)
        start, stop = tiles.points(owned)
        n_energies = len(self.emulator.energy_grid)
        networks, domain = members_of(self.emulator.network), self.emulator.domain
        values = np.empty((len(networks), stop - start, len(weights)))
        sums = np.empty((len(owned), len(networks), n_energies))
        outside = np.zeros(len(owned), dtype=np.int64)
        kept = np.empty((stop - start, n_energies), dtype=np.float32) if keep_ldos else None
        for i, (first, features) in enumerate(self._features(grid, tiles, owned)):
            here = slice(first - start, first - start + len(features))
            for m, network in enumerate(networks):
                with self.clock("network"):
                    ldos = self._ldos(network, features, tiles.size)
                with self.clock("reduction"):
                    values[m, here], sums[i, m] = kernels.ldos_moments(ldos, weights)
                if kept is not None:
                    kept[here] = ldos if m == 0 else kept[here] + (ldos - kept[here]) / (m + 1)
            if domain is not None:
                with self.clock("domain"):
                    outside[i] = domain.outside(features)
            if progress is not None:
                progress(i + 1, len(owned))
        with self.clock("communication"):
            # every rank adds all tile sums in the order of the tiles: the same bits on any number of ranks
            dos = self.comm.allgatherv(sums).sum(axis=0) * grid.point_volume
            fraction = int(self.comm.allreduce(outside.sum(keepdims=True))[0]) / grid.n_points
        if not np.isfinite(dos).all():
            raise InputError(
                "the model gives an LDOS that is not finite on this structure; is it like the training?"
            )
        return Reduced(
            _mean(values),
            _mean(dos),
            kept,
            (start, stop),
            values,
            dos,
            None if domain is None else fraction,
        )

    def _features(self, grid: Grid, tiles: Tiles, owned: range) -> Iterator[tuple[int, np.ndarray]]:
        """First point and features (n, F) of each tile."""
        descriptor = self.emulator.info.descriptor
        whole = None
        if self.backend == "lammps":  # computes on whole grids only, all ranks together
            with self.clock("descriptors"):
                begin, end = tiles.points(owned)
                whole = descriptor.compute(
                    self.atoms, grid, begin, end, backend="lammps", dtype="float32", comm=self.comm
                )
        for tile in owned:
            start, stop = tiles.points(range(tile, tile + 1))
            if whole is not None:
                yield start, whole[start - begin : stop - begin]
                continue
            with self.clock("descriptors"):
                features = descriptor.compute(
                    self.atoms, grid, start, stop, backend="native", dtype="float32"
                )
            yield start, features

    @torch.inference_mode()
    def _ldos(self, network: LDOSNetwork, features: np.ndarray, rows: int) -> np.ndarray:
        """LDOS (n, E) float32. Rows are padded to one shape: matrix products may round otherwise."""
        n = len(features)
        padded = np.empty((rows, features.shape[1]), dtype=np.float32)
        padded[:n], padded[n:] = features, features[-1]
        return network(torch.from_numpy(padded))[:n].numpy()


def _mean(each: np.ndarray) -> np.ndarray:
    """The mean over members (k, ...); of one it is a view."""
    return each[0] if len(each) == 1 else each.mean(axis=0)
