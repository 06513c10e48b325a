"""What test_train_faults.py runs: ``kill_program.py CONFIG.yaml MODEL KEY=VALUE MOMENT...``.

A training is begun and killed (SIGKILL) at the first moment, resumed and killed at the second, and so on; at
last it is left to end. One process imports everything and each training is a fork of it: that is fast, and
nothing but the files survives. Prints a JSON list of the signals that ended them.

A moment is ``<function>:<n>``, the n-th call of one of `PLACES`, or a number of seconds.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch._dynamo  # noqa: F401 - slow, and needed by every training
import torch.utils.tensorboard.writer  # noqa: F401

from malax import checkpoint, config
from malax.io import files
from malax.optimize import Average
from malax.train import TrainConfig, train
from malax.train_log import Log, Table

PLACES: dict[str, tuple[Any, str]] = {
    "step": (Average, "update"),
    "log": (Log, "epoch"),  # an epoch has ended, nothing says so yet
    "row": (Table, "add"),
    "write": (checkpoint, "save_file"),  # the temporary file is there, the old checkpoint too
    "rename": (os, "replace"),  # also between the two names of the checkpoints
}


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(moment: str) -> None:
    """Let this process be killed after the n-th call of a function."""
    name, _, number = moment.partition(":")
    owner, attribute = PLACES[name]
    function: Callable[..., Any] = getattr(owner, attribute)
    calls = 0

    def watched(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        function(*arguments, **options)
        calls += 1
        if calls == int(number):
            kill()

    setattr(owner, attribute, watched)


def run(settings: TrainConfig, moment: str | None, resume: bool) -> int:
    """Train in a fork; the signal that ended it."""
    child = os.fork()
    if child == 0:
        if moment is not None and ":" in moment:
            arm(moment)
        try:
            train(settings, resume=resume)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    if moment is not None and ":" not in moment:
        time.sleep(float(moment))
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


if __name__ == "__main__":
    assert files.os is os  # what is patched is what the writers call
    made = config.load(Path(sys.argv[1]), TrainConfig, [f"output={sys.argv[2]}", sys.argv[3]])
    moments: list[str | None] = [*sys.argv[4:], None]
    print(json.dumps([run(made, moment, i > 0) for i, moment in enumerate(moments)]))
