"""``malax generate``: snapshots from a recipe, or from QE runs that are there already."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from malax.comm import on_root, world
from malax.commands.console import Console
from malax.errors import InputError


def generate(
    config: Path | None, runs: Sequence[Path], output: Path | None, options: dict[str, Any], overwrite: bool
) -> None:
    """Carry out a recipe, or read finished runs with the ``options`` of `malax.generate.from_run`."""
    if (config is None) == (not runs):
        raise InputError("give either CONFIG.yaml, or finished runs: malax generate --from DIR... -o OUT")
    given = {name: value for name, value in options.items() if value is not None}
    if config is not None and (given or overwrite):
        name = next(iter(given), "overwrite")
        raise InputError(f"--{name} goes with --from; a recipe says everything in {config}, and is resumed")
    comm = world()
    console = Console(comm)
    if config is not None:
        _carry_out(config, output, console)
    elif output is None:
        raise InputError("--from needs -o OUT: a file (.h5) for one run, a folder for several")
    else:
        from malax.generate import harvest

        on_root(comm, lambda: len(harvest(runs, output, overwrite=overwrite, say=console.say, **given)))


def _carry_out(config: Path, output: Path | None, console: Console) -> None:
    from malax.config import load
    from malax.generate import GenerateConfig, run

    settings = [] if output is None else [f"out={output.resolve()}"]
    recipe = on_root(console.comm, lambda: load(config, GenerateConfig, settings))
    outcomes = run(recipe, console.comm, console.say)
    states = [outcome.state for outcome in outcomes]
    console.say(
        ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states))) + f" in {recipe.out}"
    )
