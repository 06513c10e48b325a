"""What a search leaves: trials.csv, tune.json, pictures, and best.yaml, which ``malax train`` takes."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from malax.io.files import atomic_path
from malax.tune import Search, escaped, trial_config

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNITS = {"total_free": "|F| meV/atom", "density": "density %", "loss": "validation loss"}


def write(search: Search, best: Any, seeds: Sequence[float]) -> dict[str, Any]:
    """Write all files into the search's folder; what stands in tune.json."""
    summary = summarise(search, best, seeds)
    with atomic_path(search.folder / "tune.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    _write_table(search.folder / "trials.csv", summary)
    _write_best(search, best)
    for name, figure in (
        ("history.png", history(summary)),
        ("parameters.png", parameters(summary)),
    ):
        with atomic_path(search.folder / name) as temporary:
            figure.savefig(temporary, format="png", dpi=150)
    return summary


def summarise(search: Search, best: Any, seeds: Sequence[float]) -> dict[str, Any]:
    """All trials, the winner, and the spread of its new seeds; plain JSON."""
    trials = [
        {
            "number": trial.number,
            "state": trial.state.name.lower(),
            "value": trial.value if trial.value is not None and np.isfinite(trial.value) else None,
            "epochs": max(trial.intermediate_values, default=0),
            "seconds": trial.duration.total_seconds() if trial.duration is not None else None,
            "values": trial.user_attrs.get("values", {}),
        }
        for trial in search.study.get_trials()
    ]
    return {
        "objective": search.config.search.objective,
        "winner": best.number,
        "values": best.user_attrs["values"],
        "value": best.value,
        "seeds": list(seeds),
        "seed_median": float(np.median(seeds)),
        "seed_spread": float(np.max(seeds) - np.min(seeds)),
        "trials": trials,
    }


def _write_table(path: Path, summary: dict[str, Any]) -> None:
    keys = sorted({key for trial in summary["trials"] for key in trial["values"]})
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "state", summary["objective"], "epochs", "seconds", *keys])
        for trial in summary["trials"]:
            plain = [trial[name] for name in ("number", "state", "value", "epochs", "seconds")]
            writer.writerow([*plain, *(json.dumps(trial["values"].get(key)) for key in keys)])


def _write_best(search: Search, best: Any) -> None:
    """The configuration with the winner's values; paths are relative to its folder."""
    config = trial_config(search.config, best.user_attrs["values"], search.config.output)
    tree = config.model_dump(mode="json")
    tree["output"] = os.path.relpath(tree["output"], search.folder)
    data = tree["data"]
    for role in ("training", "validation", "test"):
        data[role] = [os.path.relpath(path, search.folder) for path in data[role]]
    data["cache"] = os.path.relpath(data["cache"] or search.folder / "cache", search.folder)
    shown = ", ".join(f"{k}: {v}" for k, v in best.user_attrs["values"].items())
    head = f"# malax train best.yaml: trial {best.number} of malax tune ({shown})\n"
    with atomic_path(search.folder / "best.yaml") as temporary:
        text = yaml.safe_dump(escaped(tree), sort_keys=False, allow_unicode=True, width=100)
        temporary.write_text(head + text, encoding="utf-8")


def history(summary: dict[str, Any]) -> Figure:
    """Objective of every trial and the best so far; the winner's new seeds at the right."""
    figure, axes = _figure(7.0, 4.0)
    done = [t for t in summary["trials"] if t["value"] is not None]
    finished = [t for t in done if t["state"] == "complete"]
    pruned = [t for t in done if t["state"] == "pruned"]
    for trials, colour, label in ((finished, "#1f4e79", "finished"), (pruned, "0.7", "pruned")):
        axes.plot([t["number"] for t in trials], [t["value"] for t in trials], "o", color=colour, label=label)
    best = np.minimum.accumulate([t["value"] for t in finished])
    axes.step([t["number"] for t in finished], best, where="post", color="#1f4e79", lw=1)
    right = max(t["number"] for t in summary["trials"]) + 1.5
    seeds = summary["seeds"]
    axes.plot([right] * len(seeds), seeds, "D", color="#c1440e", label="winner, new seeds")
    axes.set(xlabel="trial", ylabel=UNITS[summary["objective"]], yscale=_scale([t["value"] for t in done]))
    axes.legend(frameon=False, fontsize="small")
    return figure


def parameters(summary: dict[str, Any]) -> Figure:
    """Objective against every searched key; the seed spread of the winner as a band."""
    keys = sorted(summary["values"])
    figure, _ = _figure(min(3.4 * len(keys), 14.0), 3.2 * -(-len(keys) // 4), axes=False)
    trials = [t for t in summary["trials"] if t["value"] is not None and t["state"] == "complete"]
    grid = figure.subplots(-(-len(keys) // 4), min(len(keys), 4), squeeze=False, sharey=True).ravel()
    for axes, key in zip(grid, keys, strict=False):
        found = [t["values"][key] for t in trials]
        values = [t["value"] for t in trials]
        if all(isinstance(x, int | float) and not isinstance(x, bool) for x in found):
            axes.plot(found, values, "o", color="#1f4e79")
            axes.set_xscale(_scale(found))
        else:
            names = sorted({json.dumps(x) for x in found})
            axes.plot([names.index(json.dumps(x)) for x in found], values, "o", color="#1f4e79")
            axes.set_xticks(range(len(names)), names, rotation=20, fontsize="small")
        axes.axhspan(min(summary["seeds"]), max(summary["seeds"]), color="#c1440e", alpha=0.2, lw=0)
        axes.set(xlabel=key, yscale=_scale(values))
    for axes in grid[len(keys) :]:
        axes.set_visible(False)
    grid[0].set_ylabel(UNITS[summary["objective"]])
    return figure


def _scale(values: Sequence[float]) -> Any:
    """Logarithmic where values differ by more than a factor of ten."""
    return "log" if min(values) > 0 and max(values) > 10 * min(values) else "linear"


def _figure(width: float, height: float, axes: bool = True) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot() if axes else None
