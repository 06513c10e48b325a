"""``malax train``: from snapshots to a model file. The loop itself is in `malax.training`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from malax import checkpoint
from malax.comm import Comm, as_comm
from malax.compatibility import check_compatible, check_distinct
from malax.dataset import Dataset
from malax.emulator import Emulator, ModelInfo, TrainingSnapshot
from malax.errors import FileError, InputError, MachineError
from malax.evaluate import SnapshotErrors, evaluate_snapshot, group
from malax.io.files import atomic_path
from malax.io.snapshot import Snapshot
from malax.loss import functionals
from malax.network import LDOSNetwork
from malax.scaling import collect, scale_network
from malax.train_config import TrainConfig
from malax.train_log import Log
from malax.training import Training, TrainingInterrupted
from malax.version import VERSION

__all__ = ["TrainConfig", "TrainingInterrupted", "train"]

_MAY_CHANGE = {"output", "epochs", "early_stopping", "evaluate_every", "threads", "device", "data"}
"""Settings that a resumed training may change (of ``data``, what decides the batches may not)."""
_SNAPSHOTS = ("training", "validation", "test")


def train(config: TrainConfig, comm: Any = None, resume: bool = False, overwrite: bool = False) -> Path:
    """Train a network and write the model.

    Beside the model file lie ``<model>.run/`` (checkpoint, log.csv, errors.csv, TensorBoard) and
    ``<model>.test.json`` (errors of the test snapshots).

    Parameters
    ----------
    comm : None or a communicator; all ranks must call
    resume : go on from the checkpoint in the run folder
    overwrite : replace an existing model, and forget a checkpoint that is there

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
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    _check_device(config.device)
    _check_outputs(config, resume, overwrite)
    sets = {role: [Snapshot.load(path) for path in getattr(config.data, role)] for role in _SNAPSHOTS}
    everything = [s for snapshots in sets.values() for s in snapshots]
    check_distinct(everything)
    check_compatible(everything)
    state = checkpoint.load(config.checkpoint) if resume else None
    identity = _identity(config, sets)
    if state is not None:
        _check_identity(identity, state[1]["identity"], config)
    _make_folder(config, comm)
    comm.barrier()
    log = Log(config.folder if comm.rank == 0 else None, state[1]["epoch"] if state else 0)
    try:
        training = _prepare(config, sets, identity, state, comm, log)
        emulator = _emulator(config, training.run(), sets, comm)
        _finish(emulator, config, sets["test"], comm, log)
    finally:
        log.close()
    return config.output


def _prepare(
    config: TrainConfig,
    sets: dict[str, list[Snapshot]],
    identity: dict[str, Any],
    state: tuple[dict[str, torch.Tensor], dict[str, Any]] | None,
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
    generator = torch.Generator().manual_seed(config.seed)
    rows = training.rows[0]
    network = LDOSNetwork.from_config(config.network, rows.n_features, rows.n_energies, generator)
    if state is None:
        statistics = collect(training, functionals(training.snapshots), comm, log.progress)
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


def _finish(emulator: Emulator, config: TrainConfig, test: Sequence[Snapshot], comm: Comm, log: Log) -> None:
    """Write the model; evaluate the test snapshots; write the model again, with their errors."""
    if comm.rank == 0:
        emulator.save(config.output)
    comm.barrier()
    log.say(f"the model is {config.output}")
    errors: list[SnapshotErrors] = []
    for i, snapshot in enumerate(test):
        log.progress("test snapshots", i, len(test))
        try:
            one = evaluate_snapshot(emulator, snapshot, comm)
        except InputError as error:  # the training is done: a snapshot it is not for must not lose it
            log.say(f"test snapshot {snapshot.name} was left out: {error}")
            continue
        if one is not None:
            errors.append(one)
    log.progress("test snapshots", len(test), len(test))
    if comm.rank != 0 or not errors:
        return
    found = {e.name: {**e.errors, "density_mape": e.density_mape} for e in errors}
    info = emulator.info.model_copy(update={"test_errors": found})
    final = Emulator(emulator.network, info, emulator.energy_grid, emulator.pseudopotentials)
    final.save(config.output)
    for line in report(errors):
        log.say(line)
    summary = {
        "model": str(config.output),
        "sha256": final.hash,
        "snapshots": [e.as_json() for e in errors],
        "groups": [g.as_json() for g in group(errors)],
    }
    with atomic_path(config.output.with_suffix(".test.json")) as temporary:
        temporary.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


def report(errors: Sequence[SnapshotErrors]) -> list[str]:
    """Lines: each test snapshot, then the means of each group."""
    terms = ("band", "entropy_term", "total_free")
    lines = [f"{'test, meV/atom':20s} {'band':>9s} {'-TS':>9s} {'F':>9s} {'floor F':>9s} {'density %':>10s}"]

    def add(name: str, energies: Sequence[float | None], mape: float | None) -> None:
        shown = [f"{'-' if e is None else format(e, '.2f'):>9s}" for e in energies]
        lines.append(f"{name:20s} {' '.join(shown)} {'-' if mape is None else format(mape, '.2f'):>10s}")

    for e in errors:
        add(e.name, [*map(e.errors.get, terms), e.floor_errors.get("total_free")], e.density_mape)
    for g in group(errors):
        for what, table in (("mean", g.signed), ("mean |x|", g.absolute)):
            values = [*map(table.get, terms), table.get("floor_total_free")]
            add(f"{what} {g.temperature:g} K {g.n_atoms}", values, table.get("density_mape"))
    return lines


def _emulator(
    config: TrainConfig, network: LDOSNetwork, sets: dict[str, list[Snapshot]], comm: Comm
) -> Emulator:
    """The trained network with all that makes it a model."""
    training = sets["training"]
    first = training[0]
    valence = {e: p.z_valence for e, p in sorted(first.pseudopotentials.items())}
    spacings = [max(s.density_grid.spacing) for s in training]
    info = ModelInfo(
        malax_version=VERSION,
        elements=tuple(sorted(set(first.atoms.get_chemical_symbols()))),
        valence=valence,
        descriptor=config.descriptor,
        network=network.config,
        kernel=first.kernel,
        sigma=first.sigma,
        complete_to=min(s.complete_to for s in training),
        # the median: one odd snapshot must not decide the default grid of all predictions
        grid_spacing=float(np.median(spacings)),
        xc=first.xc,
        ecutrho=max(s.ecutrho for s in training),
        training_temperatures=tuple(sorted({s.temperature for s in training})),
        training_volumes=tuple(sorted({round(_volume(s), 6) for s in training})),
        training_snapshots=tuple(
            _remembered(s, role) for role in ("training", "validation") for s in sets[role]
        ),
        config=_portable(config),
    )
    return Emulator(network.cpu(), info, first.energy_grid, first.pseudopotentials)


def _remembered(snapshot: Snapshot, role: str) -> TrainingSnapshot:
    n_atoms = len(snapshot.atoms)
    return TrainingSnapshot(
        name=snapshot.name,
        sha256=snapshot.sha256,
        n_atoms=n_atoms,
        temperature=snapshot.temperature,
        volume=_volume(snapshot),
        energies={term: value / n_atoms for term, value in snapshot.energies.items()},
        role=role,
    )


def _volume(snapshot: Snapshot) -> float:
    """A^3 per atom."""
    return snapshot.grid.volume / len(snapshot.atoms)


def _portable(config: TrainConfig) -> dict[str, Any]:
    """The settings without the paths of this machine: files by their names."""
    plain = config.model_dump(mode="json", exclude={"output", "threads", "device"})
    plain["data"] = {
        key: [Path(path).name for path in value] if key in _SNAPSHOTS else value
        for key, value in plain["data"].items()
        if key != "cache"
    }
    return plain


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
                "configuration (epochs, early_stopping, evaluate_every, threads and device may change), or "
                "start anew"
            )


def _check_outputs(config: TrainConfig, resume: bool, overwrite: bool) -> None:
    if resume or overwrite:
        return
    if config.output.exists():
        raise FileError(f"{config.output} exists: give another output, --resume to train on, or --overwrite")
    if config.checkpoint.exists():
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
