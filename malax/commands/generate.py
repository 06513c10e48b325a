"""``malax generate``: snapshots from a recipe, or from QE runs that are there already."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from malax.comm import on_root, world
from malax.commands.console import Console
from malax.errors import InputError


def generate(
    config: Path | None,
    runs: Sequence[Path],
    output: Path | None,
    options: dict[str, Any],
    overwrite: bool,
    only: Sequence[str] = (),
    jobs: str | None = None,
) -> None:
    """Carry out a recipe, or read finished runs with the ``options`` of `malax.generate.from_run`."""
    if (config is None) == (not runs):
        raise InputError("give either CONFIG.yaml, or finished runs: malax generate --from DIR... -o OUT")
    given = {name: value for name, value in options.items() if value is not None}
    if config is not None and (given or overwrite):
        name = next(iter(given), "overwrite")
        raise InputError(f"--{name} goes with --from; a recipe says everything in {config}, and is resumed")
    if config is None and (only or jobs):
        raise InputError(f"--{'only' if only else 'jobs'} goes with CONFIG.yaml")
    comm = world()
    console = Console(comm)
    if config is not None and jobs is not None:
        on_root(comm, lambda: _write_jobs(config, output, only, jobs, console))
    elif config is not None:
        _carry_out(config, output, only, console)
    elif output is None:
        raise InputError("--from needs -o OUT: a file (.h5) for one run, a folder for several")
    else:
        from malax.generate import harvest

        on_root(comm, lambda: len(harvest(runs, output, overwrite=overwrite, say=console.say, **given)))


def _progress(console: Console) -> Callable[[str, int, float], None]:
    """Lines about the self-consistent cycles: on a terminal all, in a log every fifth iteration."""

    def tell(name: str, iteration: int, accuracy: float) -> None:
        if sys.stdout.isatty() or iteration % 5 == 0:
            console.say(f"{name}: iteration {iteration}, accuracy {accuracy:.1e} Ry")

    return tell


def _write_jobs(config: Path, output: Path | None, only: Sequence[str], jobs: str, console: Console) -> None:
    from malax.config import load
    from malax.generate import GenerateConfig, status
    from malax.job_scripts import write_array

    if jobs not in ("slurm", "pbs"):
        raise InputError(f"--jobs {jobs}: known are slurm and pbs")
    if output is not None:
        raise InputError("--jobs and -o exclude each other: the jobs read out from the recipe")
    recipe = load(config, GenerateConfig)
    left = [s.name for s in status(recipe) if s.state != "made" and (not only or s.name in only)]
    folder = recipe.out / "jobs"
    folder.mkdir(parents=True, exist_ok=True)
    script, submit = write_array(config, left, folder, jobs, recipe.job)  # type: ignore[arg-type]
    console.say(f"written      {script}: {len(left)} structures")
    console.say(f"submit with  {submit}")


def _carry_out(config: Path, output: Path | None, only: Sequence[str], console: Console) -> None:
    from malax.config import load
    from malax.generate import GenerateConfig, run

    settings = [] if output is None else [f"out={output.resolve()}"]
    recipe = on_root(console.comm, lambda: load(config, GenerateConfig, settings))
    outcomes = run(recipe, console.comm, console.say, _progress(console), only or None)
    states = [outcome.state for outcome in outcomes]
    console.say(
        ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states))) + f" in {recipe.out}"
    )
