"""What a communicator can do here; `malax.comm` has those that do it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np


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

    def alltoallv(self, send: np.ndarray, counts: Sequence[int], received: Sequence[int]) -> np.ndarray:
        """Exchange pieces of a flat array: ``counts[r]`` elements go to rank r, in rank order.

        ``received[r]`` says how many come from rank r; the result holds them in rank order. Pieces may be of
        any size. A communicator of one gives back ``send`` itself.
        """

    def barrier(self) -> None:
        """Wait for all ranks."""

    def meet(self, poll: Callable[[], object]) -> None:
        """Wait for all ranks, calling ``poll`` now and then, without burning the processor."""

    def tell_to_stop(self) -> None:
        """Tell all other ranks that the run is to end."""

    def told_to_stop(self) -> bool:
        """Whether another rank has told this one so."""

    def all_fail(self) -> bool:
        """Whether every rank calls this within `malax.comm.PATIENCE` seconds: all have failed, none is
        waited for."""

    def abort(self, code: int = 1) -> None:
        """End all ranks at once with this exit code."""
