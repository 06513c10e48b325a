"""Ending a run early and on purpose: SIGTERM, SIGUSR1, a time limit. All ranks end together."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import numpy as np

from malax.comm import Comm
from malax.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Interruption:
    """Whether this run has been asked to end.

    Parameters
    ----------
    comm : the ranks that end together: each tells the others
    max_time : seconds from now after which the run asks itself to end; None for no limit
    """

    def __init__(self, comm: Comm, max_time: float | None = None) -> None:
        self.comm = comm
        self._deadline = None if max_time is None else time.monotonic() + max_time
        self._reason: str | None = None
        self._told_others = False
        self._patient = False

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Take the signals while the block runs (in the main thread only)."""
        before = {number: signal.signal(number, self._signalled) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        self._reason = signal.Signals(number).name
        if not self._patient:
            raise Stopped(f"stopped by {self._reason}")

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Signals wait for `wanted` to be asked; outside of such a block they end the run at once."""
        self._patient = True
        try:
            yield
        finally:
            self._patient = False

    def wanted(self) -> str | None:
        """Why the run is to end, or None. Whoever knows first tells the other ranks."""
        if self._reason is None and self._deadline is not None and time.monotonic() > self._deadline:
            self._reason = "--max-time"
        if self._reason is None and self.comm.told_to_stop():
            self._reason, self._told_others = "another rank", True
        if self._reason is not None and not self._told_others:
            self._told_others = True
            self.comm.tell_to_stop()
        return self._reason

    def agreed(self) -> str | None:
        """The reason that any rank has, once all have come here; collective."""
        self.comm.meet(self.wanted)
        mine = (self.wanted() or "").encode().ljust(32)
        found = self.comm.allgatherv(np.frombuffer(mine, dtype=np.uint8).reshape(1, 32))
        reasons = [bytes(row).decode().strip() for row in found]
        own = [reason for reason in reasons if reason not in ("", "another rank")]
        return next(iter(own), None) or ("another rank" if any(reasons) else None)

    def check(self) -> None:
        """Between two pieces of work: `Stopped` on all ranks if any was asked to end; collective."""
        reason = self.agreed()
        if reason is not None:
            raise Stopped(f"stopped by {reason}; the same command goes on")
