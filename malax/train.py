"""``malax train``: from snapshots to a model file. The loop itself is in `malax.training`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from malax import checkpoint
from malax.comm import Comm, as_comm, on_root
from malax.compatibility import check_compatible, check_distinct
from malax.dataset import Dataset
from malax.descriptors import Descriptor
from malax.domain import collect as collect_domain
from malax.emulator import Emulator
from malax.errors import FileError, InputError, MachineError
from malax.io.files import remove_abandoned
from malax.io.snapshot import Snapshot
from malax.loss import functionals
from malax.network import LDOSNetwork
from malax.scaling import collect, scale_network
from malax.train_config import TrainConfig
from malax.train_finish import MACHINE, SNAPSHOTS, build, finish, portable
from malax.train_log import Log
from malax.training import Training, TrainingInterrupted, Watch
from malax.uncertainty import calibrate

__all__ = ["TrainConfig", "TrainingInterrupted", "train"]

_MAY_CHANGE = {"output", "epochs", "early_stopping", "evaluate_every", "data", *MACHINE}
"""Settings that a resumed training may change (of ``data``, what decides the batches may not)."""


def train(
    config: TrainConfig,
    comm: Any = None,
    resume: bool = False,
    overwrite: bool = False,
    *,
    watch: Watch | None = None,
    quiet: bool = False,
) -> Path:
    """Train a network and write the model.

    Beside the model file lie ``<model>.run/`` (checkpoint, log.csv, errors.csv, TensorBoard) and
    ``<model>.test.json`` (errors of the test snapshots).

    Parameters
    ----------
    comm : None or a communicator; all ranks must call
    resume : go on from the checkpoint in the run folder
    overwrite : replace an existing model, and forget a checkpoint that is there
    watch : called after every epoch with its row of log.csv; an exception of it ends the training
    quiet : say nothing on stderr

    Returns
    -------
    path of the model file.

    Raises
    ------
    InputError, FileError
        snapshots that do not go together, a changed configuration with ``resume``, existing output.
    TrainingInterrupted
        a signal came; a checkpoint was written.
    MalaxError
        the loss became infinite or NaN.
    """
    comm = as_comm(comm)
    if config.members > 1:
        _check_outputs(config, resume, overwrite)
        return _train_members(config, comm, resume, overwrite, watch, quiet)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    _check_device(config.device)
    _check_outputs(config, resume, overwrite)
    sets = _load_sets(config)
    # rank 0 decides which checkpoint is sound: all must go on from the same one
    state, note = on_root(comm, lambda: _last_state(config)) if resume else (None, None)
    identity = _identity(config, sets)
    if state is not None:
        _check_identity(identity, state[1]["identity"], config)
    _make_folder(config, comm)
    comm.barrier()
    log = Log(config.folder if comm.rank == 0 else None, state[1]["epoch"] if state else 0, quiet)
    if note is not None:
        log.say(note)
    try:
        training = _prepare(config, sets, identity, state, comm, log)
        training.watch = watch
        network = training.run()
        log.say("measuring the domain of the training points")
        domain = collect_domain(training.training, comm)
        emulator = build(config, network, sets, domain)
        finish(emulator, config, sets["test"], comm, log)
    finally:
        log.close()
    return config.output


def _train_members(
    config: TrainConfig, comm: Comm, resume: bool, overwrite: bool, watch: Watch | None, quiet: bool
) -> Path:
    """Train the networks of an ensemble one after the other; join them in one model and test it."""
    _make_folder(config, comm)
    comm.barrier()
    sets = _load_sets(config)
    if resume and not comm.bcast((config.folder / "member0.run").is_dir()):
        raise FileError(f"there is nothing in {config.folder} to resume from; start without --resume")
    parts = []
    for i in range(config.members):
        changes = {
            "members": 1,
            "seed": config.seed + i,
            "output": config.folder / f"member{i}.malax",
            "data": config.data.model_copy(update={"cache": config.cache, "test": ()}),
        }
        one = config.model_copy(update=changes)
        parts.append(one.output)
        begun, done = comm.bcast((one.folder.is_dir(), one.output.is_file()))
        if not (resume and done):
            train(one, comm, resume and begun, overwrite or resume, watch=watch, quiet=quiet)
    log = Log(None if comm.rank else config.folder, quiet=quiet, tables=False)
    try:
        joined = Emulator.combine([Emulator.load(path) for path in parts])
        joined.info = joined.info.model_copy(update={"config": portable(config)})
        joined.calibration = calibrate(joined, sets["validation"], comm, log.say, log.progress)
        finish(joined, config, sets["test"], comm, log)
    finally:
        log.close()
    return config.output


def _load_sets(config: TrainConfig) -> dict[str, list[Snapshot]]:
    """The snapshots of each role, all of which go together."""
    sets = {role: [Snapshot.load(path) for path in getattr(config.data, role)] for role in SNAPSHOTS}
    everything = [s for snapshots in sets.values() for s in snapshots]
    check_distinct(everything)
    check_compatible(everything)
    return sets


def _last_state(config: TrainConfig) -> tuple[checkpoint.State | None, str | None]:
    """What to resume from, None for the very beginning, and what to say about it."""
    begun = config.folder.is_dir() and not config.output.exists()
    if begun and not checkpoint.exists(config.checkpoint):
        return (
            None,
            f"{config.folder} holds no checkpoint, no epoch was finished: starting from the beginning",
        )
    return checkpoint.load_last(config.checkpoint)


def _prepare(
    config: TrainConfig,
    sets: dict[str, list[Snapshot]],
    identity: dict[str, Any],
    state: checkpoint.State | None,
    comm: Comm,
    log: Log,
) -> Training:
    """Features, scalers and network; or all of a checkpoint's state."""
    made = [
        Dataset.prepare(sets[role], config.descriptor, config.cache, comm, config.threads, log.progress)
        for role in ("training", "validation")
    ]
    training, validation = made
    log.say(
        f"{len(training.rows)} training snapshots with {training.n_points} points, {len(validation.rows)} "
        f"for validation with {validation.n_points}; {training.n_batches(config.data)} steps per epoch"
    )
    alike = _alike(config.descriptor, training.snapshots)
    if alike:
        log.say(
            f"note: {' and '.join(alike)} have the same descriptor.weights: the descriptors cannot tell them "
            "apart; where their surroundings differ by nothing else (rocksalt), nothing can be learned"
        )
    generator = torch.Generator().manual_seed(config.seed)
    rows = training.rows[0]
    network = LDOSNetwork.from_config(config.network, rows.n_features, rows.n_energies, generator)
    if state is None:
        statistics = collect(training, functionals(training.snapshots), comm, log.progress)
        if not all(np.isfinite(m.mean).all() for m in (statistics.features, statistics.ldos)):
            raise FileError(training.damage())
        scale_network(network, statistics, config.scaling)
        return Training(config, network, training, validation, statistics.spread, identity, comm, log)
    tensors, numbers = state
    scalers = {name: tensors[f"network.{name}"] for name, _ in network.named_buffers()}
    network.load_state_dict(scalers, strict=False)
    resumed = Training(
        config, network, training, validation, np.array(numbers["spread"]), identity, comm, log
    )
    resumed.restore(tensors, numbers)
    log.say(f"resumed from {config.checkpoint} in epoch {resumed.epoch + 1}, step {resumed.step}")
    return resumed


def _alike(descriptor: Descriptor, snapshots: Sequence[Snapshot]) -> list[str]:
    """Elements of the snapshots that weigh the same in the descriptors as another one."""
    elements = sorted({symbol for one in snapshots for symbol in one.atoms.get_chemical_symbols()})
    each = [(descriptor.weights or {}).get(symbol, 1.0) for symbol in elements]
    return [symbol for symbol, weight in zip(elements, each, strict=True) if each.count(weight) > 1]


def _identity(config: TrainConfig, sets: dict[str, list[Snapshot]]) -> dict[str, Any]:
    """What must be the same for a checkpoint to be continued: settings, and the snapshots themselves."""
    identity = config.model_dump(mode="json", exclude=_MAY_CHANGE)
    for key in ("batch_size", "pool_rows", "points_per_snapshot", "points_per_atom"):
        identity[f"data.{key}"] = getattr(config.data, key)
    for role in ("training", "validation"):
        identity[f"data.{role}"] = [[s.name, s.sha256] for s in sets[role]]
    return identity


def _check_identity(now: dict[str, Any], then: dict[str, Any], config: TrainConfig) -> None:
    for key in sorted(now.keys() | then.keys()):
        if now.get(key) != then.get(key):
            raise InputError(
                f"{key} is not what it was when {config.checkpoint} was written: resume with the same "
                "configuration (epochs, early_stopping, evaluate_every, threads, device and distributed may "
                "change), or start anew"
            )


def _check_outputs(config: TrainConfig, resume: bool, overwrite: bool) -> None:
    if resume or overwrite:
        return
    if config.output.exists():
        raise FileError(f"{config.output} exists: give another output, --resume to train on, or --overwrite")
    if checkpoint.exists(config.checkpoint):
        raise FileError(
            f"{config.folder} holds an unfinished training: give --resume to go on, "
            "or --overwrite to start anew"
        )


def _check_device(name: str) -> None:
    try:
        torch.empty(1, device=torch.device(name))
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device: {name!r} cannot be used here ({reason}); cpu always can") from error


def _make_folder(config: TrainConfig, comm: Comm) -> None:
    if comm.rank == 0:
        try:
            config.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MachineError(f"cannot make the folder {config.folder}: {error.strerror}") from error
        remove_abandoned(config.folder)
