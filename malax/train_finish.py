"""What comes after a training: the model from its network, its test errors, and the files about them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from malax.comm import Comm
from malax.domain import Domain
from malax.emulator import Emulator, ModelInfo, TrainingSnapshot
from malax.errors import InputError
from malax.evaluate import SnapshotErrors, evaluate_snapshot, group
from malax.io.files import atomic_path
from malax.io.snapshot import Snapshot
from malax.network import LDOSNetwork
from malax.train_config import TrainConfig
from malax.train_log import Log
from malax.version import VERSION

MACHINE = ("threads", "device", "distributed")
"""Settings of where a training runs, which are no property of the model."""
SNAPSHOTS = ("training", "validation", "test")


def build(
    config: TrainConfig, network: LDOSNetwork, sets: dict[str, list[Snapshot]], domain: Domain
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
        config=portable(config),
    )
    return Emulator(network.cpu(), info, first.energy_grid, first.pseudopotentials, domain)


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


def portable(config: TrainConfig) -> dict[str, Any]:
    """The settings without the paths of this machine: files by their names."""
    plain = config.model_dump(mode="json", exclude={"output", *MACHINE})
    plain["data"] = {
        key: [Path(path).name for path in value] if key in SNAPSHOTS else value
        for key, value in plain["data"].items()
        if key != "cache"
    }
    return plain


def finish(emulator: Emulator, config: TrainConfig, test: Sequence[Snapshot], comm: Comm, log: Log) -> None:
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
    parts = (emulator.energy_grid, emulator.pseudopotentials, emulator.domain, emulator.calibration)
    final = Emulator(emulator.network, info, *parts)
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
