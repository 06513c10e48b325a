"""``malax tune``: a search over trainings, by one process or several."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from malax.commands.console import Console, number
from malax.errors import InputError, MachineError
from malax.launcher import launched_tasks

if TYPE_CHECKING:
    from malax.tune_config import TuneConfig


def schema() -> None:
    """Print every key of the configuration with its type, default and documentation."""
    from malax.schema import describe
    from malax.tune_config import TuneConfig

    print(describe(TuneConfig))


def tune(
    path: Path | None,
    settings: Sequence[str],
    workers: int,
    json_only: bool,
    overwrite: bool,
    is_worker: bool,
) -> None:
    """Search as the configuration says; go on with a search that was begun."""
    if path is None:
        raise InputError("malax tune needs a CONFIG.yaml (malax tune --schema prints what may stand in it)")
    if launched_tasks()[0] > 1:
        raise InputError("malax tune runs without mpiexec: give --workers N for several trainings at a time")
    from malax import tune as engine
    from malax import tune_report
    from malax.config import load
    from malax.tune_config import TuneConfig

    config = load(path, TuneConfig, settings)
    engine.import_optuna()
    console = Console(json_only=json_only)
    if is_worker:
        engine.Search(config, create=False).run(_say)
        return
    engine.check_space(config)
    with engine.alone_in(config.tune_folder):
        if overwrite:
            _clear(config.tune_folder)
        search = engine.Search(config)
        engine.fail_leftovers(search)
        helpers = _start(path, settings, workers - 1, config)
        try:
            search.run(_say)
        except BaseException:
            for helper in helpers:
                helper.terminate()
            raise
        _wait(helpers)
        best = search.best()
        summary = tune_report.write(search, best, search.winner_seeds(best, _say))
    _show(console, summary, config.tune_folder)
    console.finish({**summary, "folder": str(config.tune_folder)})


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _clear(folder: Path) -> None:
    """Forget an earlier search, but for its cached features."""
    for path in folder.iterdir():
        if path.name in ("lock", "cache"):
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _start(path: Path, settings: Sequence[str], n: int, config: TuneConfig) -> list[subprocess.Popen]:
    """Other processes that work on the same study, each with its share of the cores."""
    if n < 1:
        return []
    cores = len(os.sched_getaffinity(0))
    threads = config.threads or max(1, cores // (n + 1))
    options = [option for setting in settings for option in ("--set", setting)]
    command = [sys.executable, "-m", "malax.cli", "tune", str(path), *options, "--worker"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    if config.threads is None:
        import torch

        torch.set_num_threads(threads)
    return [subprocess.Popen(command, env=environment) for _ in range(n)]


def _wait(helpers: Sequence[subprocess.Popen]) -> None:
    codes = [helper.wait() for helper in helpers]
    if any(codes):
        raise MachineError(
            f"{sum(map(bool, codes))} of {len(codes)} workers failed (see above); run the same command again"
        )


def _show(console: Console, summary: dict[str, Any], folder: Path) -> None:
    keys = sorted(summary["values"])
    finished = [t for t in summary["trials"] if t["value"] is not None and t["state"] == "complete"]
    finished.sort(key=lambda t: t["value"])
    rows = [
        [str(t["number"]), *(_plain(t["values"][key]) for key in keys), number(t["value"], 4)]
        for t in finished[:10]
    ]
    console.table(["trial", *keys, summary["objective"]], rows, left=1 + len(keys))
    states = [t["state"] for t in summary["trials"]]
    console.say()
    console.say(f"trials    {len(finished)} finished, {states.count('pruned')} pruned")
    seeds = ", ".join(number(s, 4) for s in summary["seeds"])
    console.say(
        f"winner    trial {summary['winner']}: {number(summary['value'], 4)}; with new seeds {seeds} "
        f"(median {number(summary['seed_median'], 4)}, spread {number(summary['seed_spread'], 4)})"
    )
    rivals = [t for t in finished if t["value"] - summary["value"] < summary["seed_spread"]]
    if len(rivals) > 1:
        console.say(
            f"          {len(rivals) - 1} other trials are within that spread: no worse, as far as is known"
        )
    console.say(f"written   {folder / 'best.yaml'}, trials.csv, tune.json, history.png, parameters.png")


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
