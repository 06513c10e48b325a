"""``malax predict``: structures in, free energies out."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from malax.comm import Comm, on_root, world
from malax.commands.console import Console
from malax.commands.predict_options import PredictOptions, Structure, check_options
from malax.commands.predict_output import output_paths, show, write
from malax.errors import InputError
from malax.interruption import Interruption
from malax.io.structures import read_structures

if TYPE_CHECKING:
    from malax.emulator import Emulator
    from malax.long_run import LongRun
    from malax.result import Result


def predict(model: Path, structures: Sequence[Path], options: PredictOptions) -> None:
    """Predict every structure at every temperature; print, and write what was asked for.

    Leading ``structures`` that are models (``*.malax``) make an ensemble with ``model``.
    """
    comm = world()
    models, structures = split_models(model, structures)
    console = Console(comm, options.json_only)
    check_options(options)
    interruption = Interruption(comm, options.max_time)
    with interruption.watch():
        _predict_all(models, structures, options, comm, console, interruption)


def _predict_all(
    models: Sequence[Path],
    structures: Sequence[Path],
    options: PredictOptions,
    comm: Comm,
    console: Console,
    interruption: Interruption,
) -> None:
    todo = on_root(comm, lambda: _read(structures, options))
    n_each = max(1, len(options.temperatures))
    outputs = on_root(comm, lambda: output_paths(options, len(todo) * n_each))
    from malax.commands.estimate import check, dry_run  # torch: only now
    from malax.commands.series import Series, tiles_folder
    from malax.long_run import LongRun

    emulator = on_root(comm, lambda: _load(models))
    if options.dry_run:
        dry_run(emulator, todo, options, comm, console)
        return
    if options.fit_check:
        check(emulator, todo, outputs, options, comm)
    series = Series(options, todo, emulator, outputs, comm)
    objects: list[dict[str, Any]] = []
    for i, structure in enumerate(todo):
        keys = series.keys[i]
        if all(key in series.finished for key in keys):
            objects += [series.finished_object(key) for key in keys]
            continue
        if len(todo) > 1:
            interruption.check()
        paths = outputs[i * n_each : (i + 1) * n_each]
        long_run = LongRun(comm, tiles_folder(options, paths, i), interruption)
        try:
            results = _predict_one(emulator, structure, options, comm, console, long_run)
        except InputError:
            long_run.drop()  # the same command would fail again
            raise
        for j, result in enumerate(results):
            result.provenance["key"] = keys[j]
            written = write(result, paths[j] if paths else None, options)
            written += series.save(result, i * n_each + j)
            series.add(structure, result, written, keys[j])
            show(console, structure, result, written, header=j == 0)
            objects.append(
                {"structure": structure.label, **result.as_json(), "files": [str(p) for p in written]}
            )
        long_run.clear()
    before = sum("finished_before" in one for one in objects)
    if before:
        console.say(f"note         {before} of {len(objects)} results were finished by an earlier run")
    # one result is the object itself; several stand in a list
    from malax.differences import against_first

    several = {"results": objects, "differences": against_first(objects)}
    console.finish(objects[0] if len(objects) == 1 else several)


def _load(models: Sequence[Path]) -> Emulator:
    from malax.emulator import Emulator

    found = [Emulator.load(path) for path in models]
    return found[0] if len(found) == 1 else Emulator.combine(found)


def split_models(model: Path, others: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The models and the structures of ``MODEL [MODEL...] STRUCTURE...``; the last one is a structure."""
    n = 0
    while n < len(others) - 1 and others[n].suffix == ".malax":
        n += 1
    return [model, *others[:n]], list(others[n:])


def _read(paths: Sequence[Path], options: PredictOptions) -> list[Structure]:
    species = None if options.species is None else [s.strip() for s in options.species.split(",")]
    found = []
    for path in paths:
        images = read_structures(path, options.index, species, options.format)
        for i, atoms in enumerate(images):
            if options.repeat is not None:
                atoms = atoms.repeat(options.repeat)
            found.append(Structure(f"{path}" + (f"@{i}" if len(images) > 1 else ""), atoms))
    return found


def _predict_one(
    emulator: Emulator,
    structure: Structure,
    options: PredictOptions,
    comm: Comm,
    console: Console,
    long_run: LongRun,
) -> list[Result]:
    from malax.checks import ModelDomainWarning
    from malax.grid import Grid

    grid: Any = options.grid
    if options.spacing is not None:
        grid = Grid.from_spacing(structure.atoms.cell.array, options.spacing)
    with console.progress(f"predicting {structure.label}") as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore", ModelDomainWarning)  # they stand in the result and are printed below
        return emulator.predict_many(
            structure.atoms,
            options.temperatures or None,
            grid,
            comm,
            options.ldos,
            descriptors=options.descriptors,
            precision=options.precision,
            progress=progress,
            long_run=long_run,
        )
