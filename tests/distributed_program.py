"""What each rank of test_distributed.py runs: ``distributed_program.py JOBS.json``; rank 0 prints JSON.

A job is {"config": FILE, "set": [...], "resume": bool, "stop": N}; ``stop`` interrupts it in step N.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from malax import config
from malax.comm import world
from malax.optimize import Average
from malax.train import TrainConfig, TrainingInterrupted, train


def run(job: dict) -> str:
    settings = config.load(job["config"], TrainConfig, job["set"])
    with pytest.MonkeyPatch.context() as patch:
        if "stop" in job:
            update, calls = Average.update, []

            def stopped(self: Average) -> None:
                calls.append(None)
                if len(calls) == job["stop"] and world().rank == world().size - 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                update(self)

            patch.setattr(Average, "update", stopped)
        try:
            train(settings, world(), resume=job.get("resume", False))
        except TrainingInterrupted:
            return "interrupted"
    return "done"


if __name__ == "__main__":
    comm = world()
    found = {"outcomes": [run(job) for job in json.loads(Path(sys.argv[1]).read_text())], "size": comm.size}
    if "horovod.torch" in sys.modules:
        hvd = sys.modules["horovod.torch"]
        ranks = comm.gather((hvd.rank(), hvd.size()))
        found["horovod"] = ranks
    if comm.rank == 0:
        print(json.dumps(found))
