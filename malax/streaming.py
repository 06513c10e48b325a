"""One pass over a grid: tiles of points -> descriptors -> network -> LDOS -> reduced, and forgotten.

What a point gets does not depend on who computes it: tiles are cut from the global grid and padded to one
shape, and their sums are double and added in an order that only the tiles decide (`PairwiseSum`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from ase import Atoms

from malax.comm import Comm
from malax.descriptors.snap import Prepared
from malax.ensemble import members_of
from malax.errors import InputError
from malax.grid import Grid
from malax.inference import Inference, Reducer
from malax.long_run import LongRun
from malax.precision import Precision
from malax.tiles import PairwiseSum, Tiles, tile_costs

if TYPE_CHECKING:
    from malax.emulator import Emulator

__all__ = ["Chain", "Clock", "Progress", "Reduced", "Tiles"]

Progress = Callable[[int, int], None]
"""Called with the tiles done so far and their number."""


class Reduced(NamedTuple):
    """What one pass over the grid leaves, of each of the k members of an ensemble; k = 1 for one network.

    Attributes
    ----------
    values : (n, k, K) of this rank's points
    dos, member_dos : (E,) and (k, E) in 1/eV of all points; ``dos`` is the mean of the members'
    ldos : (n, E), the mean of the members', if it was to be kept
    part : flat range of this rank's points
    outside : fraction of all points unlike the training data; None where the model does not know
    """

    values: np.ndarray
    dos: np.ndarray
    member_dos: np.ndarray
    ldos: np.ndarray | None
    part: tuple[int, int]
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
    """Atoms and a model, ready to stream over grids of the cell.

    ``prepared`` are the native descriptors of the atoms, sorted once for all tiles and passes; made here if
    the native backend needs them and they are not given.
    """

    emulator: Emulator
    atoms: Atoms
    comm: Comm
    backend: str
    clock: Clock
    long_run: LongRun | None = None
    prepared: Prepared | None = None
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if self.prepared is None and self.backend == "native":
            with self.clock("descriptors"):
                self.prepared = self.emulator.info.descriptor.prepared(self.atoms)

    def reduce(
        self,
        grid: Grid,
        weights: np.ndarray,
        keep_ldos: bool = False,
        progress: Progress | None = None,
        name: str | None = None,
    ) -> Reduced:
        """Stream over this rank's tiles: values (n, k, K) = LDOS . weights.T at each point, and the DOS.

        ``weights`` (K, E) are for all members of an ensemble, (k, K, E) for each of them others. With a
        ``name`` and a long run, finished tiles are kept on disk, and those found there are not done again.

        Raises
        ------
        InputError
            on all ranks: an LDOS that is not finite, on any of them.
        """
        tiles = Tiles.of(grid)
        networks = [Inference(m, tiles.size, self.precision) for m in members_of(self.emulator.network)]
        n_energies = len(self.emulator.energy_grid)
        each = np.broadcast_to(weights, (len(networks), *weights.shape[-2:]))
        reducers = [one.reducer(w) for one, w in zip(networks, each, strict=True)]
        cutoff = self.emulator.info.descriptor.cutoff
        owned = tiles.owned(self.comm, tile_costs(tiles, grid, self.atoms, cutoff))
        start, stop = tiles.points(owned)
        values = np.empty((stop - start, *each.shape[:2]))
        sums = PairwiseSum(len(networks) * n_energies + 1)
        store = self.long_run.store(name, weights, owned) if self.long_run and name else None
        kept = None
        if keep_ldos:
            shape = (stop - start, n_energies)
            kept = store.ldos_rows(shape) if store else np.empty(shape, dtype=np.float32)
        done = store.restore(tiles, values, sums) if store else 0
        for i, (first, features) in enumerate(self._features(grid, tiles, owned, done), start=done):
            here = slice(first - start, first - start + len(features))
            values[here], row = self._tile(features, reducers, each.shape[1:])
            sums.add(owned[i], row)
            if not np.isfinite(row).all():
                break  # all ranks learn it from the total
            if kept is not None:
                with self.clock("network"):
                    kept[here] = _mean_ldos(networks, features)
            if progress is not None:
                progress(i + 1, len(owned))
            if store is not None and store.keep(i + 1, here.stop, values, sums):
                break  # somebody asked for the end
        if store is not None:
            store.finish(values, sums)
        with self.clock("communication"):
            # tile sums are added in an order of the tiles alone: the same bits on any number of ranks
            total = sums.total(self.comm)
        member_dos = total[:-1].reshape(len(networks), n_energies) * grid.point_volume
        if not np.isfinite(member_dos).all():
            raise InputError(
                "the model gives an LDOS that is not finite on this structure; is it like the training?"
            )
        outside = None if self.emulator.domain is None else float(total[-1]) / grid.n_points
        dos = member_dos.mean(axis=0)
        return Reduced(values, dos, member_dos, kept, (start, stop), outside)

    def _features(
        self, grid: Grid, tiles: Tiles, owned: range, done: int = 0
    ) -> Iterator[tuple[int, np.ndarray]]:
        """First point and features (n, F) of each tile but the first ``done``."""
        whole = None
        if self.backend == "lammps":  # computes on whole grids only, all ranks together
            with self.clock("descriptors"):
                begin, end = tiles.points(owned)
                whole = self.emulator.info.descriptor.compute(
                    self.atoms, grid, begin, end, backend="lammps", dtype="float32", comm=self.comm
                )
        for tile in owned[done:]:
            start, stop = tiles.points(range(tile, tile + 1))
            if whole is not None:
                yield start, whole[start - begin : stop - begin]
                continue
            assert self.prepared is not None  # the other backend
            with self.clock("descriptors"):
                features = self.prepared.at_points(grid.points(start, stop), dtype="float32")
            yield start, features

    def _tile(
        self, features: np.ndarray, reducers: list[Reducer], shape: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """What the k members make of a tile's features (n, F) with weights of this ``shape`` (K, E).

        Returns the values (n, k, K), and what is summed over the tiles, (k E + 1,): the DOS of each member
        and the number of points unlike the training.
        """
        values = np.empty((len(features), len(reducers), shape[0]))
        dos = np.empty((len(reducers), shape[1]))
        with self.clock("network"):
            for m, reduce in enumerate(reducers):
                values[:, m], dos[m] = reduce(features)
        outside, domain = 0, self.emulator.domain
        if domain is not None and np.isfinite(dos).all():
            with self.clock("domain"):
                outside = domain.outside(features)
        return values, np.append(dos, outside)


def _mean_ldos(networks: list[Inference], features: np.ndarray) -> np.ndarray:
    """LDOS (n, E) float32, the mean of the members'."""
    mean = networks[0].ldos(features)
    for m, network in enumerate(networks[1:], start=1):
        mean += (network.ldos(features) - mean) / (m + 1)
    return mean
