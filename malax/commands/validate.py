"""``malax validate``: physics checks of a model, against DFT where there are data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from malax.comm import on_root, world
from malax.commands.console import Console, finite
from malax.errors import FileError, InputError
from malax.io.files import atomic_path, prepare_folder

if TYPE_CHECKING:
    from ase import Atoms

PAGE, NUMBERS = "validation.png", "validation.json"


def validate(
    model: Path,
    data: Sequence[Path],
    structure: Path | None,
    n_forces: int,
    out: Path | None,
    json_only: bool,
    overwrite: bool,
) -> None:
    """Run all checks; print the table; write the page and the numbers into ``out`` if it is given."""
    comm = world()
    console = Console(comm, json_only)
    if out is not None:
        on_root(comm, lambda: prepare_folder(out, (PAGE, NUMBERS), overwrite))
    from malax import validate as checks
    from malax import validate_page
    from malax.emulator import Emulator
    from malax.io.snapshot import Snapshot

    emulator = on_root(comm, lambda: Emulator.load(model))
    snapshots = on_root(comm, lambda: [Snapshot.load(path) for path in snapshot_files(data)])
    crystal = None if structure is None else on_root(comm, lambda: _read(structure))
    with console.progress("validating") as progress:
        done = 0

        def say(what: str) -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress(done, 5 + len(snapshots))

        found = checks.validate(emulator, snapshots, comm, crystal, n_forces, say)
    if comm.rank != 0:
        return
    table = validate_page.rows(found)
    text = [[what, *map(validate_page.text_of, values), unit] for what, *values, unit in table]
    console.table(["", "malax", "DFT", ""], text)
    for curve in found.curves:
        if curve.why is not None:
            console.warn(f"{curve.title}: {curve.why}")
    for note in found.notes:
        console.say(f"note     {note}: the model alone is shown")
    files = [] if out is None else [out / PAGE, out / NUMBERS]
    numbers = {"model_sha256": emulator.hash, **validate_page.as_json(found)}
    if files:
        from malax import plots

        plots.save(validate_page.page(found), files[0])
        with atomic_path(files[1]) as temporary:
            temporary.write_text(json.dumps(finite(numbers), indent=1) + "\n", encoding="utf-8")
        for path in files:
            console.say(f"written  {path}")
    console.finish({**numbers, "files": [str(path) for path in files]})


def snapshot_files(data: Sequence[Path]) -> list[Path]:
    """The snapshots that are named, and all of a folder.

    Raises
    ------
    FileError
        a folder without any.
    """
    files = []
    for path in data:
        inside = sorted(path.glob("*.h5")) if path.is_dir() else [path]
        if not inside:
            raise FileError(f"{path} holds no snapshots (*.h5); malax generate makes them")
        files += inside
    return files


def _read(path: Path) -> Atoms:
    from malax.io.structures import read_structures

    images = read_structures(path)
    if len(images) != 1:
        raise InputError(f"--structure {path} holds {len(images)} structures, one is needed")
    return images[0]
