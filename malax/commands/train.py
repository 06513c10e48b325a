"""``malax train``: a configuration file in, a model file out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from malax.comm import on_root, world


def train(config: Path, resume: bool, settings: Sequence[str], overwrite: bool) -> None:
    """Train as ``config`` says, with ``settings`` (``key=value``) on top of it."""
    comm = world()
    from malax.config import load
    from malax.train import TrainConfig
    from malax.train import train as run

    read = on_root(comm, lambda: load(config, TrainConfig, settings))
    run(read, comm, resume=resume, overwrite=overwrite)
