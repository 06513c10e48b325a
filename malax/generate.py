"""Structures -> Quantum ESPRESSO -> snapshots.

``run`` computes the structures of a recipe (`GenerateConfig`, e.g. ``configs/al_generate.yaml``);
``harvest`` makes snapshots from runs that exist; ``from_run`` and ``from_shared`` make one each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from os import PathLike
from pathlib import Path
from typing import Any

from malax.coarse_run import window
from malax.comm import as_comm, on_root
from malax.errors import FileError, InputError, MachineError, MalaxError
from malax.io import files
from malax.io.harvest import find_run, from_run
from malax.io.shared import from_shared, is_shared
from malax.io.snapshot import Snapshot
from malax.io.upf import read_upf
from malax.make_snapshot import Outcome, make
from malax.pw_job import find_program
from malax.recipe import GenerateConfig
from malax.status import Status, look, write_status
from malax.structures import Structure, structures_of

__all__ = ["GenerateConfig", "Outcome", "from_run", "from_shared", "harvest", "run", "status", "structures"]


def structures(config: GenerateConfig) -> list[Structure]:
    """All structures of a recipe, in the order of its groups. InputError if two get the same name."""
    found = [s for name, group in config.groups.items() for s in structures_of(name, group, config.seed)]
    names = [s.name for s in found]
    twice = {n for n in names if names.count(n) > 1}
    if twice:
        raise InputError(f"two structures would be named {min(twice)}: rename a group")
    missing = {e for s in found for e in s.atoms.get_chemical_symbols()} - set(config.pseudopotentials)
    if missing:
        raise InputError(f"no pseudopotential for {', '.join(sorted(missing))} in pseudopotentials")
    return found


def _chosen(every: list[Structure], only: Iterable[str] | None) -> list[Structure]:
    if only is None:
        return every
    names = list(dict.fromkeys(only))
    by_name = {s.name: s for s in every}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise InputError(f"the recipe has no structure {unknown[0]}; it has {', '.join(by_name)}")
    return [by_name[name] for name in names]


def status(config: GenerateConfig, todo: Iterable[Structure] | None = None) -> list[Status]:
    """The state of every structure of a recipe as it is on disk, in the recipe's order."""
    return [
        look(s.name, config.out / f"{s.name}.h5", config.runs_folder / s.name)
        for s in (structures(config) if todo is None else todo)
    ]


def run(
    config: GenerateConfig,
    comm: Any = None,
    say: Callable[[str], None] | None = None,
    progress: Callable[[str, int, float], None] | None = None,
    only: Iterable[str] | None = None,
) -> list[Outcome]:
    """Compute every structure of a recipe that has no snapshot yet; the others are not touched.

    A structure that fails is reported with QE's own words, the rest goes on. Run again, it resumes:
    finished pw.x runs are harvested, interrupted ones start anew. Several processes may share a recipe:
    each takes what no other works on. Under a communicator the structures are dealt out by rank.

    Parameters
    ----------
    say : is called with a line about each structure (on rank 0 about its own), and about the probes
    progress : is called with name, iteration and estimated accuracy (Ry) while pw.x runs
    only : names of structures; the others are not touched

    ``status.csv`` in the folder of the snapshots is written anew after each structure.

    Returns
    -------
    the outcomes of all structures, in the recipe's order, on all ranks.

    Raises
    ------
    InputError
        at the end, if some structures failed (how many, and why the first did); at once for a recipe that
        cannot be right; MissingPeerError if pw.x or pp.x is not there.
    """
    comm = as_comm(comm)
    find_program(config.qe.pw_command, "qe.pw_command")
    if config.ldos.method == "cubes":
        find_program(config.qe.pp_command, "qe.pp_command")
    for folder in (config.out, config.runs_folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MachineError(f"cannot make the folder {folder}: {error.strerror}") from error
    _check_pseudopotentials(config)
    every = structures(config)
    todo = _chosen(every, only)
    found = on_root(comm, lambda: window(config, every, todo, say or (lambda _: None)))
    mine, unwritten = [], None
    for structure in todo[comm.rank :: comm.size]:
        outcome = make(structure, config, found, progress)
        mine.append(outcome)
        try:
            write_status(config.out / "status.csv", status(config, every))
        except MalaxError as error:  # told at the end: other ranks wait for this one's outcomes
            unwritten = error
        if say is not None:
            say(f"{outcome.name}: {outcome.state}{': ' if outcome.reason else ''}{outcome.reason}")
    gathered = comm.bcast(comm.gather(mine))
    by_name = {outcome.name: outcome for part in gathered for outcome in part}
    outcomes = [by_name[s.name] for s in todo]
    failed = [o for o in outcomes if o.state == "failed"]
    if failed:
        raise InputError(
            f"{len(failed)} of {len(outcomes)} structures failed ({', '.join(o.name for o in failed)}); "
            f"{failed[0].name}: {failed[0].reason}"
        )
    if unwritten is not None:
        raise unwritten
    return outcomes


def harvest(
    directories: Iterable[str | PathLike[str]],
    out: str | PathLike[str],
    *,
    overwrite: bool = False,
    say: Callable[[str], None] | None = None,
    **options: Any,
) -> list[Snapshot]:
    """Snapshots from folders: finished runs of pw.x, or the shared Al data.

    Parameters
    ----------
    out : a file for one folder if its name ends in .h5; otherwise a folder (made if need be), which
        gets <name of the run>.h5 for each
    options : of ``from_run`` (sigma, energies, stride, ldos, ...); of these the shared data knows stride

    Raises
    ------
    FileError, InputError
        at the first folder that cannot be read; what was written before stays.
    """
    folders, out = [Path(d) for d in directories], Path(out)
    if not folders:
        raise InputError("no folder of a finished run was named")
    single = len(folders) == 1 and out.suffix in (".h5", ".hdf5")
    targets = [out] if single else [out / f"{_run_name(folder)}.h5" for folder in folders]
    if len(set(targets)) < len(targets):
        raise InputError(
            "two of the folders have the same name, so their snapshots would: make them one by one"
        )
    if not single:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"{out} is not a folder and cannot be made: {error.strerror}") from error
    for target in targets:
        files.check_output(target, overwrite)
    snapshots = []
    for folder, target in zip(folders, targets, strict=True):
        if is_shared(folder):
            snapshot = from_shared(folder, target, overwrite=overwrite, stride=options.get("stride") or 1)
        else:
            snapshot = from_run(folder, target, overwrite=overwrite, **options)
        snapshots.append(snapshot)
        if say is not None:
            what = f"{len(snapshot.atoms)} atoms, LDOS on {snapshot.ldos_shape} points"
            say(f"{target}: {what}, {snapshot.temperature:g} K")
            if "occupations" in snapshot.provenance:
                say(f"{target}: {snapshot.provenance['occupations']}")
    return snapshots


def _run_name(folder: Path) -> str:
    return folder.resolve().name if is_shared(folder) else find_run(folder).name


def _check_pseudopotentials(config: GenerateConfig) -> None:
    """InputError for what would be found out only after pw.x has run."""
    for element, path in config.pseudopotentials.items():
        pseudopotential = read_upf(path)
        if pseudopotential.element != element:
            raise InputError(f"pseudopotentials.{element}: {path} is for {pseudopotential.element}")
        if pseudopotential.kind != "NC" and config.ldos.method == "wavefunctions":
            raise InputError(
                f"pseudopotentials.{element}: {path.name} is not norm-conserving: set ldos.method: cubes"
            )
