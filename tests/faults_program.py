"""What each rank of test_faults.py runs: ``faults_program.py STAGE ACTION RANK LINES.json``.

In STAGE (first, main, energies, writing, never) of a prediction this happens to RANK (or to ``all``): a
signal (ACTION SIGTERM, SIGUSR1, SIGKILL), or FILL: the disk of the working directory is full from then on.
LINES are command lines of malax; rank 0 prints a JSON list of their exit codes if it lives that long.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from malax import cli, comm, long_run, streaming
from malax.io import parallel

STAGES = ("first", "main", "energies", "writing")


def fill() -> None:
    """Leave no room on this disk."""
    with open("filler", "ab", buffering=0) as file:
        for block in (1 << 16, 1):
            try:
                while True:
                    file.write(bytes(block))
            except OSError as error:
                assert error.errno == errno.ENOSPC


def strike(action: str) -> None:
    if action == "FILL":
        fill()
    else:
        os.kill(os.getpid(), getattr(signal, action))


def set_up(stage: str, action: str, victim: str) -> None:
    """Patch the function that ``stage`` is about, so that the fault comes in its middle."""
    calls = []

    def strikes(rank: int, number: int) -> None:
        if victim in ("all", str(rank)):
            calls.append(rank)
            if len(calls) == number:
                strike(action)

    def before(owner: Any, name: str, number: int, ours: Callable[..., int | None]) -> None:
        whole = getattr(owner, name)

        def struck(*arguments: Any) -> Any:
            rank = ours(*arguments)
            if rank is not None:
                strikes(rank, number)
            return whole(*arguments)

        setattr(owner, name, struck)

    if stage in ("first", "main"):
        # the first pass keeps no tiles
        is_main = stage == "main"
        before(
            streaming.Chain, "_tile", 4 if is_main else 1,
            lambda chain, *_: chain.comm.rank if (chain.long_run is not None) == is_main else None,
        )  # fmt: skip
    elif stage == "energies":
        before(comm.MPIComm, "alltoallv", 3, lambda world, *_: world.rank)
    elif stage == "writing":
        before(parallel, "_write", 1, lambda world, *_: world.rank)


def run(line: list[str]) -> int:
    try:
        cli.main(line)
    except SystemExit as end:
        return int(end.code or 0)


if __name__ == "__main__":
    stage, action, victim, lines = sys.argv[1:]
    comm.PATIENCE = 0.5
    long_run.LongRun.__init__.__defaults__ = (None, 0.0)  # every tile is saved
    set_up(stage, action, victim)
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        codes = [run(line) for line in json.loads(Path(lines).read_text())]
    if codes[-1]:
        sys.exit(codes[-1])
    if comm.world().rank == 0:
        print(json.dumps(codes))
