"""Finished tiles on disk, so that a run that was ended goes on where it stopped.

Each rank appends the values of its tiles to a file of its own and then replaces a small one that says how
many tiles are whole; so a run may be killed at any moment. What was kept counts only for the same
calculation: model, structure, grid, weights, options and number of ranks.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from malax.comm import Comm, on_root
from malax.errors import MachineError, Stopped
from malax.interruption import Interruption
from malax.tiles import PairwiseSum, Tiles

INTERVAL = 300.0
"""Seconds between savings: what a kill without warning costs at most."""

_BLOCK = 1 << 26
LDOS_ROWS = 1 << 16
"""Rows of an LDOS in a file that may stay in memory, roughly."""


class LongRun:
    """One prediction that can be ended and taken up again.

    Parameters
    ----------
    folder : where tiles are kept, made when there is something to keep; None keeps nothing
    interruption : asked after each tile; None never ends early
    interval : seconds between savings
    """

    def __init__(
        self,
        comm: Comm,
        folder: Path | None,
        interruption: Interruption | None = None,
        interval: float = INTERVAL,
    ) -> None:
        self.comm, self.folder, self.interval = comm, folder, interval
        self.interruption = interruption or Interruption(comm)
        self.key = ""
        self.notes: list[str] = []
        self._memory: dict[str, np.ndarray] = {}

    def begin(self, *identity: Any) -> None:
        """What is calculated; all of it must be the same for tiles on disk to count."""
        digest = hashlib.sha256()
        for value in (*identity, self.comm.size):
            digest.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
        self.key = digest.hexdigest()
        self.notes, self._memory = [], {}

    def remember(self, name: str, array: np.ndarray) -> None:
        """Keep a small array, the same on all ranks, with the first tiles that are saved."""
        self._memory[name] = array

    def recalled(self, name: str) -> np.ndarray | None:
        """What `remember` kept before this run was ended, on all ranks; collective."""
        return on_root(self.comm, lambda: self._read(name))

    def _read(self, name: str) -> np.ndarray | None:
        found = None if self.folder is None else read_json(self.folder / f"{name}.json")
        return np.array(found["array"]) if found and found.get("key") == self.key else None

    def write_memory(self) -> None:
        """Called with each saving; rank 0 writes."""
        if self.comm.rank == 0 and self.folder is not None:
            for name, array in self._memory.items():
                write_json(self.folder / f"{name}.json", {"key": self.key, "array": array.tolist()})
            self._memory = {}

    def store(self, name: str, weights: np.ndarray, owned: range) -> TileStore:
        """The tiles of one pass."""
        own = hashlib.sha256(f"{self.key} {owned}".encode() + weights.tobytes())
        return TileStore(self, f"{name}.{self.comm.rank}", own.hexdigest(), owned)

    def clear(self) -> None:
        """Forget the tiles: the result is written. Collective."""
        self.comm.barrier()
        self.drop()

    def drop(self) -> None:
        """Forget the tiles, for nobody will go on from them."""
        if self.comm.rank == 0 and self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


class TileStore:
    """This rank's tiles of one pass. Used in the order restore, keep (tile after tile), finish."""

    def __init__(self, run: LongRun, name: str, key: str, owned: range) -> None:
        self._run, self._name, self._key, self._owned = run, name, key, owned
        self._saved_tiles = self._saved_rows = 0
        self._tiles = self._rows = 0
        self._began = self._last = time.monotonic()
        self._patience = run.interruption.patient()
        self._ldos: np.memmap | None = None
        self._usable = True  # whether an LDOS that should be on disk is

    def ldos_rows(self, shape: tuple[int, int]) -> np.ndarray:
        """An array (rows, E) float32 for the LDOS: in a file, taking no memory, if there is a folder.

        Raises
        ------
        MachineError
            there is no room for it on the disk.
        """
        folder = self._run.folder
        if folder is None or 0 in shape:
            return np.empty(shape, dtype=np.float32)
        path = folder / f"{self._name}.ldos"
        self._usable = path.is_file() and path.stat().st_size >= 4 * shape[0] * shape[1]
        try:
            folder.mkdir(exist_ok=True)
            with open(path, "r+b" if path.exists() else "w+b") as file:
                # now, or a disk that fills up later would end the process without a word
                os.posix_fallocate(file.fileno(), 0, 4 * shape[0] * shape[1])
        except OSError as error:
            raise MachineError(f"cannot keep the LDOS in {folder}: {error.strerror or error}") from error
        self._ldos = np.memmap(path, dtype=np.float32, mode="r+", shape=shape)
        return self._ldos

    def restore(self, tiles: Tiles, values: np.ndarray, sums: PairwiseSum) -> int:
        """Fill in what is on disk; returns how many of this rank's tiles that is. Collective."""
        self._patience.__enter__()
        done = self._restore(tiles, values, sums)
        counts = self._run.comm.allgatherv(np.array([[done, len(self._owned)]])).sum(axis=0)
        if counts[0]:
            self._run.notes.append(f"{counts[0]} of {counts[1]} tiles were kept by a run that was ended")
        return done

    def _restore(self, tiles: Tiles, values: np.ndarray, sums: PairwiseSum) -> int:
        folder = self._run.folder
        found = None if folder is None else read_json(folder / f"{self._name}.json")
        if folder is None or not found or found.get("key") != self._key or not self._usable:
            return 0
        done = int(found["tiles"])
        first = tiles.points(self._owned)[0]
        rows = tiles.points(self._owned[:done])[1] - first if done else 0
        path = self._values_file()
        if not path.is_file() or path.stat().st_size < values[:rows].nbytes:
            return 0
        with open(path, "rb") as file:
            for block in _blocks(values[:rows]):
                file.readinto(block)  # type: ignore[arg-type]
        sums.trees = np.array(found["trees"]).reshape(-1, sums.trees.shape[1])
        self._saved_tiles = self._tiles = done
        self._saved_rows = self._rows = rows
        return done

    def _values_file(self) -> Path:
        assert self._run.folder is not None
        return self._run.folder / f"{self._name}.values"

    def keep(self, tiles: int, rows: int, values: np.ndarray, sums: PairwiseSum) -> bool:
        """After each tile: save now and then. True if the run is to end."""
        if self._ldos is not None and rows // LDOS_ROWS != self._rows // LDOS_ROWS:
            # written pages are the file's, they need not stay in this process
            self._ldos._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]
        self._tiles, self._rows = tiles, rows
        if self._run.interruption.wanted():
            return True
        if time.monotonic() - self._last > self._run.interval:
            self._save(values, sums)
        return False

    def finish(self, values: np.ndarray, sums: PairwiseSum) -> None:
        """All ranks come here, with all their tiles or fewer. `Stopped` on all of them if any was to end."""
        run = self._run
        try:
            reason = run.interruption.agreed()
            unsaved = self._tiles > self._saved_tiles
            long = time.monotonic() - self._began > run.interval
            if unsaved and (reason or long):
                self._save(values, sums)
        finally:
            self._patience.__exit__(None, None, None)
        if reason is None:
            return
        done, n = run.comm.allgatherv(np.array([[self._tiles, len(self._owned)]])).sum(axis=0)
        kept = (
            "the same command goes on from there" if run.folder else "nothing was kept: that needs -o OUT.h5"
        )
        raise Stopped(f"stopped by {reason} after {done} of {n} tiles; {kept}")

    def _save(self, values: np.ndarray, sums: PairwiseSum) -> None:
        run = self._run
        if run.folder is not None:
            try:
                run.folder.mkdir(exist_ok=True)
                if self._ldos is not None:
                    self._ldos.flush()
                self._append(values, self._values_file())
                said = {"key": self._key, "tiles": self._tiles, "trees": sums.trees.tolist()}
                write_json(run.folder / f"{self._name}.json", said)
                run.write_memory()
            except OSError as error:
                raise MachineError(f"cannot keep tiles in {run.folder}: {error.strerror or error}") from error
            self._saved_tiles, self._saved_rows = self._tiles, self._rows
        self._last = time.monotonic()

    def _append(self, array: np.ndarray, path: Path) -> None:
        with open(path, "r+b" if path.exists() else "w+b") as file:
            file.truncate(array[: self._saved_rows].nbytes)  # what an unfinished saving left
            file.seek(0, os.SEEK_END)
            for block in _blocks(array[self._saved_rows : self._rows]):
                file.write(block)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())


def _blocks(array: np.ndarray) -> list[np.ndarray]:
    """The bytes of a contiguous array in pieces that one call reads or writes, without a copy."""
    whole = array.reshape(-1).view(np.uint8)
    return [whole[start : start + _BLOCK] for start in range(0, len(whole), _BLOCK)]


def read_json(path: Path) -> dict[str, Any] | None:
    """What a small file holds; None if it is missing or not whole."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replace a small file, whole or not at all."""
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_text(json.dumps(value))
    os.replace(temporary, path)
