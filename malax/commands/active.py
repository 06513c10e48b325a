"""``malax generate --active``: of a recipe's structures those that a model should see next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from malax.comm import on_root, world
from malax.commands.console import Console
from malax.errors import InputError


def choose(
    config: Path | None, model: Path, number: int, only: Sequence[str], output: Path | None
) -> list[str]:
    """Names of the ``number`` structures without a snapshot that the model knows least; said on stdout.

    Those that an earlier call has begun and not finished come first: a selection that was interrupted is
    finished before the next. Those that have failed are not tried again.
    """
    if config is None:
        raise InputError("--active chooses structures of a recipe: malax generate CONFIG.yaml --active MODEL")
    if only:
        raise InputError("--active and --only exclude each other: the model chooses")
    comm = world()
    console = Console(comm)
    from malax.active import Candidate, pick
    from malax.config import load
    from malax.emulator import Emulator
    from malax.generate import GenerateConfig, status, structures

    settings = [] if output is None else [f"out={output.resolve()}"]
    recipe = on_root(comm, lambda: load(config, GenerateConfig, settings))
    emulator = on_root(comm, lambda: Emulator.load(model))
    every = {s.name: s for s in on_root(comm, lambda: structures(recipe))}
    states = {s.name: s.state for s in on_root(comm, lambda: status(recipe))}
    waiting = [name for name, state in states.items() if state == "waiting"]
    begun = on_root(comm, lambda: [n for n in waiting if (recipe.runs_folder / n).is_dir()])[:number]
    for name in begun:
        console.say(f"chosen       {name}: begun before")
    candidates = [
        Candidate(name, every[name].atoms, recipe.groups[every[name].group].temperature)
        for name in waiting
        if name not in begun
    ]
    if len(begun) == number:
        return begun
    choices = pick(emulator, candidates, number - len(begun), console.say, comm)
    for choice in choices:
        console.say(f"chosen       {choice}")
    return begun + [choice.name for choice in choices]
