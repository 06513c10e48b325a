"""The communicator: a thin wrapper of mpi4py and its serial twin with the same operations.

This is the only file that knows mpi4py, and it imports it only when there is something to talk to.
Everything else takes a communicator as an argument (`as_comm` accepts ``None``, ours, or mpi4py's).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

import numpy as np

from malax.errors import InputError, MissingPeerError

T = TypeVar("T")

_TASK_COUNTS = (
    "PMI_SIZE",
    "OMPI_COMM_WORLD_SIZE",
    "MV2_COMM_WORLD_SIZE",
    "MPI_LOCALNRANKS",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_NTASKS",
)
"""Environment variables in which launchers and schedulers say how many tasks they started."""

_TASK_MARKS = ("PMIX_RANK", "PALS_RANKID")
"""Variables of launchers that give a rank but no count."""


PATIENCE = 3.0
"""Seconds in which ranks that fail for the same reason are expected to do so."""

_started: list[MPIComm] = []


class Comm(Protocol):
    """What a communicator can do here. Collective calls must be made by all ranks in one order."""

    rank: int
    size: int

    @property
    def mpi(self) -> Any:
        """The mpi4py communicator, or None for the serial twin."""

    def bcast(self, value: Any, root: int = 0) -> Any:
        """The root's value on every rank."""

    def gather(self, value: Any, root: int = 0) -> list[Any] | None:
        """The values of all ranks in rank order on the root, None elsewhere."""

    def allreduce(self, array: np.ndarray) -> np.ndarray:
        """Sum of an array over the ranks, the same bits on all (the order of summation is MPI's)."""

    def allgatherv(self, array: np.ndarray) -> np.ndarray:
        """Arrays of all ranks joined along the first axis in rank order, on every rank."""

    def parts(self, array: np.ndarray, root: int = 0) -> Iterator[np.ndarray]:
        """On the root, the arrays of all ranks one after the other, so that one is held at a time.

        Every rank must run the iterator to its end; elsewhere than on the root it yields nothing.
        """

    def barrier(self) -> None:
        """Wait for all ranks."""

    def all_fail(self) -> bool:
        """Whether every rank calls this within `PATIENCE` seconds: all have failed, none is waited for."""

    def abort(self, code: int = 1) -> None:
        """End all ranks at once with this exit code."""


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

    def barrier(self) -> None:
        return None

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
            self.mpi.Send(mine, dest=root, tag=_PART)
            return
        for source in range(self.size):
            if source == root:
                yield mine
                continue
            part = np.empty(shapes[source], dtype=mine.dtype)
            self.mpi.Recv(part, source=source, tag=_PART)
            yield part

    def barrier(self) -> None:
        self.mpi.Barrier()

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


_PART = 71
"""Message tag of `MPIComm.parts`."""


def as_comm(comm: Any) -> Comm:
    """A communicator from ``None`` (serial), one of ours, or one of mpi4py."""
    if comm is None:
        return SerialComm()
    if isinstance(comm, SerialComm | MPIComm):
        return comm
    if all(hasattr(comm, name) for name in ("Get_rank", "Get_size", "Allgatherv")):
        return MPIComm(comm)
    raise InputError(f"comm must be None or an mpi4py communicator, got {type(comm).__name__}")


def launched_tasks(environment: Mapping[str, str] | None = None) -> tuple[int, str | None]:
    """How many tasks a launcher or scheduler says it started, and the variable that says so."""
    environment = os.environ if environment is None else environment
    counts = [(int(environment[name]), name) for name in _TASK_COUNTS if environment.get(name, "").isdigit()]
    return max(counts, default=(1, None), key=lambda pair: pair[0])


def world() -> Comm:
    """The communicator of all processes of this job; serial when none was launched.

    Raises
    ------
    InputError
        several tasks were started but the communicator has size 1: each would compute everything.
    MissingPeerError
        several tasks were started and mpi4py is not there.
    """
    tasks, variable = launched_tasks()
    if tasks <= 1 and not any(name in os.environ for name in _TASK_MARKS):
        return SerialComm()
    try:
        from mpi4py import MPI
    except ImportError as error:
        if tasks <= 1:
            return SerialComm()
        raise MissingPeerError(
            f"{variable}={tasks} tasks were started but mpi4py cannot be loaded ({error}); "
            "pip install 'malax[mpi]', or start one task"
        ) from error
    comm = MPIComm(MPI.COMM_WORLD, failures=MPI.COMM_WORLD.Dup())
    if comm.size == 1 and tasks > 1:
        raise InputError(
            f"{variable}={tasks} but the MPI communicator has size 1: {tasks} copies of one job. Start with "
            "the mpiexec (or srun --mpi) of the MPI that mpi4py uses; for one task on purpose unset "
            f"{variable}"
        )
    if comm.size == 1:
        return SerialComm()
    _started.append(comm)
    return comm


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
    if module is None:
        return None
    return " ".join(module.Get_library_version().splitlines()[0].strip("\0").split())
