"""The demonstration: the shipped model on the shipped snapshot, then on a larger cell."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ase import Atoms

from malax import plots, shipped
from malax.comm import Comm, on_root
from malax.emulator import Emulator, ModelDomainWarning
from malax.errors import FileError
from malax.evaluate import SnapshotErrors, evaluate_snapshot
from malax.io.snapshot import Snapshot
from malax.result import Result

SUPERCELL_SECONDS = 15.0
"""About as long as the larger cell may take."""
_REPEATS = ((2, 2, 1), (2, 2, 2), (3, 2, 2), (3, 3, 2), (3, 3, 3), (4, 4, 3), (4, 4, 4))

Step = Callable[[str], Any]
"""Given a description, a context manager that gives a progress callback (or None)."""


@dataclass(eq=False)
class Demo:
    """What the demonstration found; on ranks other than 0 everything is None."""

    errors: SnapshotErrors | None
    supercell: Result | None
    repeat: tuple[int, int, int]


def run(emulator: Emulator, snapshot: Snapshot, comm: Comm, step: Step) -> Demo:
    """Evaluate the snapshot, then predict a supercell of its structure; collective."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ModelDomainWarning)
        with step(f"{snapshot.name} against DFT") as progress:
            errors = evaluate_snapshot(emulator, snapshot, comm, progress=progress)
        repeat = on_root(comm, lambda: _affordable(errors))
        atoms: Atoms = snapshot.atoms.repeat(repeat)
        with step(f"{len(atoms)} atoms") as progress:
            result = emulator.predict(atoms, temperature=snapshot.temperature, comm=comm, progress=progress)
    return Demo(errors, result.gather(), repeat)


def _affordable(errors: SnapshotErrors | None) -> tuple[int, int, int]:
    assert errors is not None  # asked on rank 0 only
    chosen = _REPEATS[0]
    for repeat in _REPEATS:
        if repeat[0] * repeat[1] * repeat[2] * errors.timings["total"] < SUPERCELL_SECONDS:
            chosen = repeat
    return chosen


def output_folder(asked: Path | None, overwrite: bool) -> Path:
    """The folder for plots and cube: the one asked for, else the first free of malax-demo, malax-demo-2..."""
    if asked is None:
        n, folder = 1, Path("malax-demo")
        while folder.exists():
            n += 1
            folder = Path(f"malax-demo-{n}")
    else:
        folder = asked
        if folder.exists() and not folder.is_dir():
            raise FileError(f"--out {folder} is a file; a folder is needed")
        if folder.is_dir() and any(folder.iterdir()) and not overwrite:
            raise FileError(f"{folder} exists and is not empty; give --overwrite or another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"cannot make the folder {folder}: {error.strerror}") from error
    return folder


def write(found: Demo, folder: Path) -> list[Path]:
    """Plots of both structures and the density of the supercell as a cube file."""
    assert found.errors is not None and found.supercell is not None  # rank 0 only
    written = [
        plots.save(plots.against_dft(found.errors), folder / "against_dft.png"),
        plots.save(plots.overview(found.supercell), folder / "supercell.png"),
        found.supercell.write_cube(folder / "supercell_density.cube"),
    ]
    return written


def load() -> tuple[Emulator, Snapshot]:
    """The shipped model and snapshot."""
    return Emulator.load(shipped.model()), Snapshot.load(shipped.snapshot())
