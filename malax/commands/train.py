"""``malax train``: a configuration file in, a model file out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from malax.comm import on_root, world
from malax.errors import InputError


def schema() -> None:
    """Print every key of the configuration with its type, default and documentation."""
    from malax.schema import describe
    from malax.train_config import TrainConfig

    print(describe(TrainConfig))


def train(config: Path | None, resume: bool, settings: Sequence[str], overwrite: bool) -> None:
    """Train as ``config`` says, with ``settings`` (``key=value``) on top of it."""
    if config is None:
        raise InputError("malax train needs a CONFIG.yaml (malax train --schema prints what may stand in it)")
    comm = world()
    from malax.config import load
    from malax.train import TrainConfig
    from malax.train import train as run

    path = config
    read = on_root(comm, lambda: load(path, TrainConfig, settings))
    run(read, comm, resume=resume, overwrite=overwrite)
