"""``malax evaluate``: a model against DFT snapshots."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from malax.calibration import pooled, within
from malax.comm import on_root, world
from malax.commands.console import Console, error, number
from malax.io.files import prepare_folder

TERMS = ("band", "entropy_term", "hartree", "xc", "total_free")

if TYPE_CHECKING:
    from malax.evaluate import GroupErrors, SnapshotErrors


def evaluate(
    model: Path,
    snapshots: Sequence[Path],
    plots: Path | None,
    json_only: bool,
    descriptors: str,
    overwrite: bool,
) -> None:
    """Evaluate ``model`` on every snapshot; tables per snapshot and per group, plots if asked for."""
    comm = world()
    console = Console(comm, json_only)
    from malax import evaluate as evaluation
    from malax.emulator import Emulator, ModelDomainWarning
    from malax.io.snapshot import Snapshot

    emulator = on_root(comm, lambda: Emulator.load(model))
    loaded = on_root(comm, lambda: [Snapshot.load(path) for path in snapshots])
    if plots is not None:
        names = [f"{name}.png" for name in (*(s.name for s in loaded), "errors")]
        on_root(comm, lambda: prepare_folder(plots, names, overwrite))
    errors = []
    for snapshot in loaded:
        with console.progress(f"evaluating {snapshot.name}") as progress, warnings.catch_warnings():
            warnings.simplefilter("ignore", ModelDomainWarning)
            one = evaluation.evaluate_snapshot(emulator, snapshot, comm, descriptors, progress)
        if one is not None:
            errors.append(one)
    if comm.rank != 0:
        return
    groups = evaluation.group(errors)
    written = [] if plots is None else save_plots(errors, plots)
    for one in errors:
        for concern in one.warnings:
            console.warn(f"{one.name}: {concern}")
    show(console, errors, groups)
    for path in written:
        console.say(f"written  {path}")
    console.finish(
        {
            "model_sha256": emulator.hash,
            "snapshots": [one.as_json() for one in errors],
            "groups": [one.as_json() for one in groups],
            "plots": [str(path) for path in written],
            "coverage": coverage(errors) if any(one.scores for one in errors) else None,
        }
    )


def save_plots(errors: Sequence[SnapshotErrors], folder: Path) -> list[Path]:
    """One PNG per snapshot (DOS and density against DFT) and one of parity and errors."""
    from malax import plots

    written = [plots.save(plots.against_dft(one), folder / f"{one.name}.png") for one in errors]
    written.append(plots.save(plots.parity(errors), folder / "errors.png"))
    return written


def show(console: Console, errors: Sequence[SnapshotErrors], groups: Sequence[GroupErrors]) -> None:
    """The tables, each within 80 columns."""
    console.say("Errors, malax - DFT, in meV/atom (mu in meV; density: mean absolute error in %)")
    console.say()
    headers = ["snapshot", "atoms", "K", "band", "-TS", "Hartree", "XC", "total", "floor", "mu", "dens."]
    rows = []
    for one in errors:
        rows.append(
            [
                _short(one),
                str(one.n_atoms),
                f"{one.temperature:.0f}",
                *(error(one.errors.get(term)) for term in TERMS),
                error(one.floor_errors["total_free"]),
                number(one.fermi_level_error, 0, True),
                number(one.density_mape, 2),
            ]
        )
    console.table(headers, rows, gap=1)
    if any(one.seen for one in errors):
        console.say("* seen in training or validation: says nothing about structures unseen")
    console.say()
    _show_electrons(console, errors)
    _show_error_bars(console, errors)
    _show_groups(console, groups)


def _short(one: SnapshotErrors) -> str:
    """The name in at most 12 characters, with the mark of a seen snapshot."""
    name = one.name if len(one.name) <= 11 else one.name[:5] + "~" + one.name[-5:]
    return name + ("*" if one.seen else "")


def _show_electrons(console: Console, errors: Sequence[SnapshotErrors]) -> None:
    console.say("Electrons of the uncorrected LDOS at DFT's Fermi level (solving for mu hides)")
    console.say()
    rows = [
        [
            _short(one),
            number(one.electrons_at_dft_level, 4),
            number(one.floor_electrons_at_dft_level, 4),
            number(one.n_electrons, 4),
        ]
        for one in errors
    ]
    console.table(["snapshot", "malax", "DFT's LDOS", "electrons"], rows)
    console.say()


def _show_error_bars(console: Console, errors: Sequence[SnapshotErrors]) -> None:
    """Of an ensemble: z of each energy, and how much of density and DOS lies within two error bars."""
    scores = [one.scores for one in errors if one.scores is not None]
    if not scores:
        return
    console.say("Error bars: error / error bar of each energy (malax - DFT);")
    console.say("  density points and DOS values within two error bars, in %")
    console.say()
    rows = []
    for one in errors:
        if one.scores is not None:
            z = [number(one.scores.z.get(t), 2, True) for t in (*TERMS, "fermi_level")]
            rows.append(
                [_short(one), *z, *map(_percent, (within(one.scores.density), within(one.scores.dos)))]
            )
    console.table(["snapshot", "band", "-TS", "Hartree", "XC", "total", "mu", "dens.", "DOS"], rows, gap=1)
    found = coverage(errors)
    console.say(
        f"pooled over density points and DOS values of {found['snapshots']} "
        f"{'unseen ' if found['unseen'] else ''}snapshots: {_percent(found['within_2_sigma'])} % "
        "(95.4 % is right)"
    )
    console.say()


def coverage(errors: Sequence[SnapshotErrors]) -> dict[str, Any]:
    """How much of density and DOS lies within two error bars, over the snapshots that the model has not seen
    (over all if it has seen them all)."""
    unseen = [one.scores for one in errors if one.scores is not None and one.seen is None]
    used = unseen or [one.scores for one in errors if one.scores is not None]
    return {"snapshots": len(used), "unseen": bool(unseen), "within_2_sigma": pooled(used)}


def _percent(fraction: float | None) -> str:
    return number(None if fraction is None else 100 * fraction, 1)


def _show_groups(console: Console, groups: Sequence[GroupErrors]) -> None:
    console.say("Groups: signed mean/mean absolute error, meV/atom")
    console.say("  floor: from DFT's own LDOS; mean: of the training at this temperature;")
    console.say("  fit: of the training energies to (1, Ewald, volume, T)")
    console.say()
    rows = []
    for one in groups:
        head = [f"{one.temperature:.0f}", f"{one.n_atoms}{'*' if one.seen else ''}", str(one.n_snapshots)]
        for term, name in (("band", "band"), ("total_free", "total")):
            cells = [_pair(one, prefix + term) for prefix in ("", "floor_", "mean_", "fit_")]
            density = number(one.absolute.get("density_mape"), 2) if term == "total_free" else ""
            rows.append([*(head if term == "band" else ["", "", ""]), name, *cells, density])
    headers = ["K", "atoms", "n", "energy", "malax", "floor", "mean", "fit", "dens."]
    console.table(headers, rows, left=4, gap=1)


def _pair(one: GroupErrors, name: str) -> str:
    if name not in one.signed:
        return "-"
    return f"{error(one.signed[name])}/{error(one.absolute[name], sign=False)}"
