"""Snapshots to batches, streamed: memory does not grow with the number of snapshots.

Rows (features and LDOS of one grid point) come from the cache of `malax.feature_cache`. An epoch visits
blocks of rows of all snapshots in a random order; about ``pool_rows`` of them are in memory at a time and
are mixed there. Everything random depends on (seed, epoch) alone: an interrupted epoch is continued by
asking for the same batches again.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

import numpy as np
import torch
from pydantic import Field, model_validator

from malax.comm import Comm
from malax.compatibility import check_compatible
from malax.descriptors import Descriptor
from malax.feature_cache import Rows, cached_rows, random_order
from malax.io.snapshot import Snapshot
from malax.settings import FileList, FilePath, Settings

Item = TypeVar("Item")
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many are done, and of how many."""

_BLOCK_ROWS = 1024
"""Most rows that are read at once: about 1 MB, so that even a disk that seeks streams."""
_BLOCKS_PER_POOL = 64
"""Blocks, and so up to as many snapshots, that are mixed at least (as far as they have 16 rows)."""


class DataConfig(Settings):
    """Which snapshots, and how they are read."""

    training: FileList = Field(min_length=1)
    """Snapshot files (names or patterns; '!pattern' takes some away again) to train on."""
    validation: FileList = Field(min_length=1)
    """Snapshot files that stop the training early, choose the best weights, and calibrate error bars."""
    test: FileList = ()
    """Snapshot files that are only evaluated at the end."""
    cache: FilePath | None = None
    """Folder for computed features; null: the folder 'cache' beside the model."""
    points_per_snapshot: Annotated[int, Field(gt=0)] | Annotated[float, Field(gt=0, lt=1)] | None = None
    """Points (or the fraction) of each snapshot that an epoch uses, others in every epoch; null: all.

    The validation loss uses as many, always the same ones; the errors in meV/atom use all points.
    """
    points_per_atom: int | None = Field(default=None, gt=0)
    """The same as a number per atom of a snapshot: for cells or grids of different sizes."""
    batch_size: int = Field(default=512, gt=0)
    """Points per step of the optimiser, of all ranks together."""
    pool_rows: int = Field(default=65536, gt=0)
    """Points that are held in memory and mixed."""

    @model_validator(mode="after")
    def _disjoint(self) -> DataConfig:
        seen: dict[Path, str] = {}
        for role in ("training", "validation", "test"):
            for path in getattr(self, role):
                if path in seen:
                    raise ValueError(f"{path.name} is named under {seen[path]} and under {role}")
                seen[path] = role
        if self.points_per_snapshot is not None and self.points_per_atom is not None:
            raise ValueError("give points_per_snapshot or points_per_atom, not both")
        if self.pool_rows < self.batch_size:
            raise ValueError(f"pool_rows ({self.pool_rows}) must not be below batch_size ({self.batch_size})")
        return self


class Block(NamedTuple):
    """Rows start..stop-1 of one snapshot."""

    snapshot: int
    start: int
    stop: int


class Batch(NamedTuple):
    """This rank's rows of a batch: features (B, F), ldos (B, E) float32; snapshot (B,) int64; total rows."""

    features: torch.Tensor
    ldos: torch.Tensor
    snapshot: torch.Tensor
    total: int

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        features, ldos, snapshot = (t.to(device, non_blocking=True) for t in self[:3])
        return Batch(features, ldos, snapshot, self.total)


class Dataset:
    """Snapshots that belong together, and their cached rows.

    Parameters
    ----------
    snapshots : loaded snapshots with one energy grid, kernel, sigma, functional and set of elements
    rows : the cached rows of each
    """

    def __init__(self, snapshots: Sequence[Snapshot], rows: Sequence[Rows]) -> None:
        self.snapshots = tuple(snapshots)
        self.rows = tuple(rows)
        if self.snapshots:
            check_compatible(self.snapshots)

    @classmethod
    def prepare(
        cls,
        snapshots: Sequence[Snapshot],
        descriptor: Descriptor,
        cache: Path,
        comm: Comm,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> Dataset:
        """Compute the features that are not cached yet; the ranks share the snapshots."""
        cached = {}
        mine = range(comm.rank, len(snapshots), comm.size)
        for done, i in enumerate(mine):
            if progress:
                progress("features", done, len(mine))
            cached[i] = cached_rows(snapshots[i], descriptor, cache, threads)
        comm.barrier()
        if progress:
            progress("features", len(mine), len(mine))
        rows = [cached.get(i) or cached_rows(s, descriptor, cache, threads) for i, s in enumerate(snapshots)]
        return cls(snapshots, rows)

    @property
    def energy_grid(self) -> np.ndarray:
        """(E,) eV, of all snapshots."""
        return self.snapshots[0].energy_grid

    @property
    def sound(self) -> np.ndarray:
        """(S, E) bool: the energies up to which each snapshot's LDOS is complete. Others count in no loss."""
        return np.stack([s.energy_grid <= s.complete_to + 1e-9 for s in self.snapshots])

    @property
    def n_points(self) -> int:
        """Points of all snapshots together."""
        return sum(rows.n_points for rows in self.rows)

    def damage(self) -> str:
        """Which cached rows hold NaN or infinity, as text for a message (they were finite when written)."""
        for i, (snapshot, rows) in enumerate(zip(self.snapshots, self.rows, strict=True)):
            if not all(b.features.isfinite().all() and b.ldos.isfinite().all() for _, b in self.blocks(i)):
                return (
                    f"the cached data of snapshot {snapshot.name} hold NaN or infinity: remove {rows.path}, "
                    "which is then computed anew"
                )
        return "the cached data are finite, but their mean is not: some numbers are too large"

    def take(self, config: DataConfig) -> list[int]:
        """Points that an epoch uses of each snapshot."""
        n_points = [rows.n_points for rows in self.rows]
        if config.points_per_atom is not None:
            wanted = [config.points_per_atom * len(s.atoms) for s in self.snapshots]
        elif isinstance(config.points_per_snapshot, float):
            wanted = [max(1, round(config.points_per_snapshot * n)) for n in n_points]
        else:
            wanted = [config.points_per_snapshot or n for n in n_points]
        return [min(pair) for pair in zip(wanted, n_points, strict=True)]

    def n_batches(self, config: DataConfig) -> int:
        """Batches per epoch (an incomplete last one is left out, unless it is the only one)."""
        return max(1, sum(self.take(config)) // config.batch_size)

    def batches(
        self, config: DataConfig, seed: int, epoch: int, comm: Comm, skip: int = 0
    ) -> Iterator[Batch]:
        """The training batches of an epoch, this rank's rows of each, from batch ``skip`` on.

        The batches are the same whatever the number of ranks.
        """
        pools = self._pools(config, seed, epoch)
        batches = _batches(pools, self.rows[0].n_features, config.batch_size, comm)
        return prefetched(itertools.islice(batches, skip, None), depth=8)

    def _pools(self, config: DataConfig, seed: int, epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Mixed rows (n, F + E) float32 and their snapshots (n,), about ``pool_rows`` at a time."""
        blocks = epoch_blocks(self.rows, self.take(config), epoch, config.pool_rows)
        visit = random_order(len(blocks), seed, epoch)
        done = number = 0
        while done < len(blocks):
            chosen, size = [], 0
            while done < len(blocks) and size < config.pool_rows:
                chosen.append(blocks[visit[done]])
                size, done = size + chosen[-1].stop - chosen[-1].start, done + 1
            pool = np.empty((size, self.rows[0].width), dtype=np.float32)
            owner = np.empty(size, dtype=np.int64)
            at = 0
            for snapshot, start, stop in chosen:
                part = slice(at, at + stop - start)
                pool[part] = self.rows[snapshot].read(start, stop)
                owner[part] = snapshot
                at = part.stop
            order = random_order(size, seed, epoch, number)
            yield pool[order], owner[order]
            number += 1

    def blocks(self, snapshot: int, n: int | None = None) -> Iterator[tuple[int, Batch]]:
        """All rows of one snapshot, or the first ``n``, in the order of the file: first row number, rows."""
        rows = self.rows[snapshot]
        n = rows.n_points if n is None else n
        for start in range(0, n, 4 * _BLOCK_ROWS):
            block = torch.from_numpy(rows.read(start, min(start + 4 * _BLOCK_ROWS, n)))
            features, ldos = block[:, : rows.n_features], block[:, rows.n_features :]
            owner = torch.full((len(block),), snapshot, dtype=torch.int64)
            yield start, Batch(features, ldos, owner, len(block))


def epoch_blocks(rows: Sequence[Rows], take: Sequence[int], epoch: int, pool_rows: int) -> list[Block]:
    """The blocks of an epoch, not mixed yet; ``take`` points of each snapshot.

    From epoch to epoch the part of each file that is used moves on, around its end.
    """
    step = min(_BLOCK_ROWS, max(16, pool_rows // _BLOCKS_PER_POOL))
    blocks = []
    for snapshot, (file, n) in enumerate(zip(rows, take, strict=True)):
        start = epoch * n % file.n_points
        for first, last in ((start, min(start + n, file.n_points)), (0, max(0, start + n - file.n_points))):
            blocks += [Block(snapshot, at, min(at + step, last)) for at in range(first, last, step)]
    return blocks


def _batches(
    pools: Iterator[tuple[np.ndarray, np.ndarray]], n_features: int, size: int, comm: Comm
) -> Iterator[Batch]:
    """Cut the mixed pools into batches; rows that do not fill one go in front of the next pool."""

    def batch(start: int, stop: int) -> Batch:
        n = stop - start
        mine = slice(start + n * comm.rank // comm.size, start + n * (comm.rank + 1) // comm.size)
        table = torch.from_numpy(rows[mine])
        return Batch(table[:, :n_features], table[:, n_features:], torch.from_numpy(owner[mine]), n)

    left: tuple[np.ndarray, np.ndarray] | None = None
    none_yet = True
    for rows, owner in pools:
        if left is not None:
            rows, owner = np.concatenate([left[0], rows]), np.concatenate([left[1], owner])
        full = len(owner) // size * size
        for start in range(0, full, size):
            none_yet = False
            yield batch(start, start + size)
        left = rows[full:].copy(), owner[full:].copy()
    if none_yet and left is not None:  # fewer rows than a batch
        rows, owner = left
        yield batch(0, len(owner))


def prefetched(items: Iterator[Item], depth: int) -> Iterator[Item]:
    """The same items, made ahead by a thread; its exceptions are raised here."""
    ready: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(item: Item | None, error: BaseException | None) -> bool:
        while not stop.is_set():
            try:
                ready.put((item, error), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(item, None):
                    return
            put(None, StopIteration())
        except BaseException as error:  # noqa: B036 - handed over, not swallowed
            put(None, error)

    thread = threading.Thread(target=work, name="malax-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:  # also when the consumer stops early
        stop.set()
        thread.join()
