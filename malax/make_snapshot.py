"""One structure of a recipe -> pw.x (and pp.x) in its folder -> its snapshot, checked."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from malax.coarse_run import Window
from malax.errors import FileError, MachineError, MalaxError
from malax.io import files
from malax.io.cube_series import CubeSeries
from malax.io.espresso import read_xml
from malax.io.harvest import check_start, check_supported, energy_axis, from_run
from malax.io.pw_input import pw_input
from malax.io.snapshot import Snapshot
from malax.pp_job import LdosRun
from malax.pw_job import Job
from malax.recipe import GenerateConfig
from malax.status import Checks, check, write_checks, write_failure
from malax.structures import Structure

DENSITY_LIMIT = 10.0
"""Per cent: a density from DFT's own LDOS that is off by more (0.02 to 0.5 is usual) is another's."""

Progress = Callable[[str, int, float], None]


@dataclass(frozen=True)
class Outcome:
    """What became of one structure: "made", "kept" (its snapshot was there), "busy" (another process has
    it) or "failed", with the reason."""

    name: str
    state: Literal["made", "kept", "busy", "failed"]
    reason: str = ""


def make(
    structure: Structure, config: GenerateConfig, window: Window, progress: Progress | None = None
) -> Outcome:
    """Make one snapshot with the energies and bands of ``window``; a failure becomes its outcome."""
    folder = config.runs_folder / structure.name
    try:
        try:
            outcome = _make(structure, config, window, progress)
        except OSError as error:  # a full disk, a folder that went: the other structures and ranks go on
            raise MachineError(f"{error.filename or folder}: {error.strerror or error}") from error
    except MalaxError as error:
        with suppress(OSError, MalaxError):  # a full disk: the reason is told all the same
            write_failure(folder, error)
        return Outcome(structure.name, "failed", str(error))
    if outcome.state != "busy":
        with suppress(OSError):
            write_failure(folder, None)
    return outcome


def _make(structure: Structure, config: GenerateConfig, window: Window, progress: Progress | None) -> Outcome:
    group, target = config.groups[structure.group], config.out / f"{structure.name}.h5"
    cubes = config.ldos.method == "cubes"
    text = pw_input(
        structure.atoms,
        {element: path.name for element, path in config.pseudopotentials.items()},
        temperature=group.temperature,
        n_bands=window.n_bands(structure, config),
        # of Gamma's real wavefunctions and ultrasoft pseudopotentials pp.x (6.7, 7.2) makes a wrong LDOS
        kpoints=np.zeros((1, 3)) if cubes and group.kpoints == (1, 1, 1) else group.kpoints,
        fft_shape=group.fft_grid,
        namelists=config.qe.namelists,
    )
    recipe = _recipe(structure, config, window, text)
    if target.exists():
        if Snapshot.load(target).provenance.get("recipe", {}).get("sha256") == recipe["sha256"]:
            return Outcome(structure.name, "kept")
        raise FileError(f"{target} was made by another recipe: move it away or choose another out")
    with Job(config.runs_folder / structure.name) as job:
        if job is None:
            return Outcome(structure.name, "busy")
        for path in config.pseudopotentials.values():
            shutil.copyfile(path, job.folder / path.name)
        begin = time.monotonic()
        watch = None if progress is None else partial(progress, structure.name)
        job.pw(config.qe.pw_command, text, watch)
        series = _cubes(job, structure, config, window) if cubes else None
        snapshot = from_run(
            job.folder,
            target,
            ldos=config.ldos.method,
            sigma=config.ldos.sigma,
            energies=window.energies,
            cubes=series,
            stride=group.ldos_stride,
            name=structure.name,
            keep_bits=config.ldos.keep_bits,
            overwrite=False,
            provenance={"made_by": "malax generate", "recipe": recipe},
        )
        xml = job.xml
        try:
            checks = check(snapshot, None if xml is None else read_xml(xml))
            if checks.density is not None and checks.density > DENSITY_LIMIT:
                raise FileError(
                    f"{job.folder}: the density of the LDOS differs from pw.x's by {checks.density:.0f} %"
                )
        except MalaxError:
            target.unlink()  # an LDOS that gives no Fermi level or energies is no snapshot
            raise
        checks = replace(checks, seconds=time.monotonic() - begin, iterations=job.iterations)
        write_checks(job.folder, checks)
        job.clean(keep_wavefunctions=config.qe.keep_wavefunctions)
    return Outcome(structure.name, "made", "; ".join([*_floor(checks), *checks.concerns]))


def _cubes(job: Job, structure: Structure, config: GenerateConfig, window: Window) -> CubeSeries:
    """Run pp.x, unless pw.x says already that its LDOS would be refused."""
    if job.xml is None:
        raise FileError(f"{job.folder} has no XML of pw.x")
    run = read_xml(job.xml)
    check_supported(run)
    check_start(run, job.folder, window.energies[0], config.ldos.sigma)
    return LdosRun(
        job=job,
        command=config.qe.pp_command,
        grid=run.grid,
        energies=energy_axis(window.energies),
        sigma=config.ldos.sigma,
        version=run.version,
        stride=config.groups[structure.group].ldos_stride,
        keep=config.ldos.keep_cubes,
    ).series()


def _floor(checks: Checks) -> list[str]:
    return [] if checks.floor is None else [f"floor {checks.floor:.2f} meV/atom"]


def _recipe(structure: Structure, config: GenerateConfig, window: Window, text: str) -> dict[str, Any]:
    """What a snapshot remembers of its recipe; the hash tells whether the same one would be made again."""
    group = config.groups[structure.group]
    said = {
        "seed": config.seed,
        "group": structure.group,
        "index": structure.number,
        "settings": group.model_dump(mode="json", exclude={"indices", "files"}, exclude_defaults=True),
        "ldos": {
            **config.ldos.model_dump(mode="json", exclude={"keep_cubes"}),
            "energies": list(window.energies),
        },
    }
    hashed = {
        "pw.in": text,
        "ldos": said["ldos"],
        "stride": group.ldos_stride,
        "upf": {e: files.sha256(p) for e, p in config.pseudopotentials.items()},
    }
    said["sha256"] = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()
    return said
