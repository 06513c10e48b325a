"""The communicator: a thin wrapper of mpi4py and its serial twin with the same operations (`Comm`).

This is the only file that knows mpi4py, and it imports it only when there is something to talk to.
Everything else takes a communicator as an argument (`as_comm` accepts ``None``, ours, or mpi4py's).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from malax import launcher
from malax.comm_protocol import Comm
from malax.errors import InputError, MissingPeerError

T = TypeVar("T")

PATIENCE = 3.0
"""Seconds in which ranks that fail for the same reason are expected to do so."""

LARGEST_MESSAGE = 1 << 30
"""Bytes beyond which arrays are sent in several messages."""

_started: list[MPIComm] = []


class SerialComm:
    """A communicator of one."""

    rank = 0
    size = 1
    mpi = None

    def bcast(self, value: Any, root: int = 0) -> Any:
        return value

    def gather(self, value: Any, root: int = 0) -> list[Any] | None:
        return [value]

    def allreduce(self, array: np.ndarray) -> np.ndarray:
        return np.array(array)

    def allgatherv(self, array: np.ndarray) -> np.ndarray:
        return np.array(array)

    def parts(self, array: np.ndarray, root: int = 0) -> Iterator[np.ndarray]:
        yield array

    def alltoallv(self, send: np.ndarray, counts: Sequence[int], received: Sequence[int]) -> np.ndarray:
        return send

    def barrier(self) -> None:
        return None

    def meet(self, poll: Callable[[], object]) -> None:
        poll()

    def tell_to_stop(self) -> None:
        return None

    def told_to_stop(self) -> bool:
        return False

    def all_fail(self) -> bool:
        return True

    def abort(self, code: int = 1) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class MPIComm:
    """A communicator of mpi4py."""

    def __init__(self, mpi: Any, failures: Any = None) -> None:
        self.mpi = mpi
        self._failures = failures
        self.rank: int = mpi.Get_rank()
        self.size: int = mpi.Get_size()
        self._messages: list[Any] = []

    def bcast(self, value: Any, root: int = 0) -> Any:
        return self.mpi.bcast(value, root=root)

    def gather(self, value: Any, root: int = 0) -> list[Any] | None:
        return self.mpi.gather(value, root=root)

    def allreduce(self, array: np.ndarray) -> np.ndarray:
        mine = np.ascontiguousarray(array)
        total = np.empty_like(mine)
        self.mpi.Allreduce(mine, total)
        return total

    def allgatherv(self, array: np.ndarray) -> np.ndarray:
        mine = np.ascontiguousarray(array)
        lengths = self.mpi.allgather(len(mine))
        row = int(np.prod(mine.shape[1:], dtype=np.int64))
        joined = np.empty((sum(lengths), *mine.shape[1:]), dtype=mine.dtype)
        self.mpi.Allgatherv(mine, [joined, [n * row for n in lengths]])
        return joined

    def parts(self, array: np.ndarray, root: int = 0) -> Iterator[np.ndarray]:
        mine = np.ascontiguousarray(array)
        shapes = self.mpi.gather(mine.shape, root=root)
        if self.rank != root:
            for piece in _messages(mine):
                self.mpi.Send(piece, dest=root, tag=_PART)
            return
        for source in range(self.size):
            if source == root:
                yield mine
                continue
            part = np.empty(shapes[source], dtype=mine.dtype)
            for piece in _messages(part):
                self.mpi.Recv(piece, source=source, tag=_PART)
            yield part

    def alltoallv(self, send: np.ndarray, counts: Sequence[int], received: Sequence[int]) -> np.ndarray:
        send = np.ascontiguousarray(send)
        into = np.empty(sum(received), dtype=send.dtype)
        # MPI counts and places elements with 32 bits, and some libraries bytes: all ranks must choose alike
        if not self.mpi.allreduce(int(max(send.nbytes, into.nbytes) > LARGEST_MESSAGE)):
            self.mpi.Alltoallv([send, list(counts)], [into, list(received)])
            return into
        to, of = np.cumsum([0, *counts]), np.cumsum([0, *received])
        into[of[self.rank] : of[self.rank + 1]] = send[to[self.rank] : to[self.rank + 1]]
        for step in range(1, self.size):
            target, source = (self.rank + step) % self.size, (self.rank - step) % self.size
            requests = [
                self.mpi.Irecv(piece, source=source, tag=_PIECE)
                for piece in _messages(into[of[source] : of[source + 1]])
            ]
            requests += [
                self.mpi.Isend(piece, dest=target, tag=_PIECE)
                for piece in _messages(send[to[target] : to[target + 1]])
            ]
            for request in requests:
                request.Wait()
        return into

    def barrier(self) -> None:
        self.mpi.Barrier()

    def meet(self, poll: Callable[[], object]) -> None:
        request = self.mpi.Ibarrier()
        while not request.Test():
            poll()
            time.sleep(0.002)

    def tell_to_stop(self) -> None:
        for rank in range(self.size):
            if rank != self.rank:
                self._messages.append(self.mpi.Isend(_NOTHING, dest=rank, tag=_STOP))

    def told_to_stop(self) -> bool:
        return bool(self.mpi.Iprobe(tag=_STOP))

    def all_fail(self) -> bool:
        # a communicator of its own, made while all was well: this must not meet a pending collective
        if self._failures is None:
            return False
        request = self._failures.Ibarrier()
        deadline = time.monotonic() + PATIENCE
        while not request.Test():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def abort(self, code: int = 1) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self.mpi.Abort(code)


def on_root(comm: Comm, function: Callable[[], T]) -> T:
    """The value of ``function()``, called on rank 0, on every rank; its exception likewise. Collective."""
    outcome: Any = None
    if comm.rank == 0:
        try:
            outcome = (True, function())
        except Exception as error:  # the other ranks wait for an answer, whatever it is
            outcome = (False, error)
    good, value = comm.bcast(outcome)
    if not good:
        raise value
    return value


_PART, _PIECE, _STOP = 71, 72, 73
"""Message tags of `MPIComm.parts`, `MPIComm.alltoallv` and `MPIComm.tell_to_stop`."""

_NOTHING = np.zeros(0, dtype=np.uint8)


def _messages(array: np.ndarray) -> list[np.ndarray]:
    """Flat views of a contiguous array, none above `LARGEST_MESSAGE` bytes."""
    flat = array.reshape(-1)
    length = max(1, LARGEST_MESSAGE // flat.itemsize)
    return [flat[start : start + length] for start in range(0, len(flat), length)]


def as_comm(comm: Any) -> Comm:
    """A communicator from ``None`` (serial), one of ours, or one of mpi4py."""
    if comm is None:
        return SerialComm()
    if isinstance(comm, SerialComm | MPIComm):
        return comm
    if all(hasattr(comm, name) for name in ("Get_rank", "Get_size", "Allgatherv")):
        return MPIComm(comm)
    raise InputError(f"comm must be None or an mpi4py communicator, got {type(comm).__name__}")


def world() -> Comm:
    """The communicator of all processes of this job; serial when none was launched.

    Raises
    ------
    InputError
        the launcher is another MPI's than mpi4py's (see `malax.launcher`).
    MissingPeerError
        several tasks were started and mpi4py is not there.
    """
    if not launcher.was_launched():
        return SerialComm()
    try:
        mpi = _initialised()
    except ImportError as error:
        tasks, variable = launcher.launched_tasks()
        if tasks <= 1:
            return SerialComm()
        raise MissingPeerError(
            f"{variable}={tasks} tasks were started but mpi4py cannot be loaded ({error}); "
            "pip install 'malax[mpi]', or start one task"
        ) from error
    launcher.check_size(mpi.COMM_WORLD.Get_size())
    if mpi.COMM_WORLD.Get_size() == 1:
        return SerialComm()
    _started.append(MPIComm(mpi.COMM_WORLD, failures=mpi.COMM_WORLD.Dup()))
    return _started[-1]


def _initialised() -> Any:
    """mpi4py's module MPI, started; the library is asked for its name before it may end the process."""
    import mpi4py

    mpi4py.rc.initialize, mpi4py.rc.finalize = False, True
    from mpi4py import MPI

    if not MPI.Is_initialized():
        launcher.check_library(library_name(MPI))
        MPI.Init_thread()
    return MPI


def started_world() -> Comm | None:
    """What `world` gave, if it gave more than one rank; None before."""
    return _started[-1] if _started else None


def self_mpi() -> Any:
    """mpi4py's communicator of this process alone (this loads mpi4py); None where mpi4py is not installed."""
    try:
        from mpi4py import MPI
    except ImportError:
        return None
    return MPI.COMM_SELF


def mpi_version() -> str | None:
    """Name and version of the MPI library in use; None while mpi4py is not loaded."""
    module = sys.modules.get("mpi4py.MPI")
    return None if module is None else library_name(module)


def library_name(mpi: Any) -> str:
    """Name and version of mpi4py's MPI library in one line."""
    return " ".join(mpi.Get_library_version().splitlines()[0].strip("\0").split())
