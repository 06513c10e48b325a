"""One coarse run of pw.x: on few k-points, with as many bands as it takes to see how far the states reach."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from malax.errors import InputError
from malax.io.espresso import read_xml
from malax.io.files import atomic_path
from malax.io.harvest import COMPLETE_WIDTHS, check_supported, latest_start
from malax.io.pw_input import Value, pw_input
from malax.io.upf import read_upf
from malax.long_run import read_json
from malax.pw_job import Job
from malax.recipe import GenerateConfig
from malax.structures import Structure
from malax.units import BOLTZMANN

MARGIN = 1.0
"""eV: how much further the states of other structures may reach than those of the probes."""
HEADROOM = 2.0
"""eV: how much further up what is picked goes than what is needed. The Fermi level of an emulated density of
states must find room there, too."""
OCCUPIED = 14.0
"""So many kT above the Fermi level the occupation is 1e-6: up to there the LDOS must be complete."""
FREE_ELECTRON = 3.809982
"""hbar^2 / 2m in eV A^2."""
TRIES = 5
KEPT = "probe.json"


@dataclass(frozen=True)
class Probe:
    """What a coarse run says, in eV.

    minima : the lowest energy of each band over the k-points
    start : where the LDOS must start at the latest
    needed : how far up it must be complete: `OCCUPIED` kT above the Fermi level, or above the gap
    """

    name: str
    electrons: float
    minima: tuple[float, ...]
    start: float
    needed: float


@contextmanager
def locked(folder: Path) -> Iterator[Job]:
    """A folder, once no other process has it."""
    while True:
        with Job(folder) as job:
            if job is not None:
                yield job
                return
        time.sleep(0.5)


def mesh(config: GenerateConfig, group: str) -> tuple[int, int, int]:
    """The k-points of a group's probes: a quarter in each direction, two at least (or what the group has).

    More if the command deals them out to pools, each of which needs one.
    """
    full = config.groups[group].kpoints
    few = [min(k, max(2, -(-k // 4))) for k in full]
    pools = re.search(r"-n(?:k|pools?|kpools?)\s+(\d+)", config.qe.pw_command)
    # inversion leaves half of them
    while pools and np.prod(few) < 2 * int(pools[1]) and few != list(full):
        few = [min(k, n + 1) for k, n in zip(full, few, strict=True)]
    return few[0], few[1], few[2]


def electrons(structure: Structure, config: GenerateConfig) -> float:
    """Valence electrons of a structure."""
    symbols = structure.atoms.get_chemical_symbols()
    valence = {e: read_upf(config.pseudopotentials[e]).z_valence for e in set(symbols)}
    return float(sum(valence[e] for e in symbols))


def make_probe(config: GenerateConfig, structure: Structure) -> Probe:
    """The probe of a structure, made now or before; waits for another process that is making it.

    It may take several runs of pw.x with more and more bands, each in the place of the one before; what the
    last of them said is kept.
    """
    group = config.groups[structure.group]
    n_bands = _first_guess(config, structure) if group.n_bands == "auto" else group.n_bands
    with locked(config.runs_folder / f"probe-{structure.name}") as job:
        for path in config.pseudopotentials.values():
            shutil.copyfile(path, job.folder / path.name)
        text = _input(config, structure, n_bands)
        said = [text, job.hashes(text), config.ldos.sigma, group.temperature, OCCUPIED, HEADROOM]
        key = hashlib.sha256(repr(said).encode()).hexdigest()
        found = read_json(job.folder / KEPT)
        if found is not None and found.get("key") == key:
            return Probe(**{**found["probe"], "minima": tuple(found["probe"]["minima"])})
        probe = _reaching(config, structure, job, n_bands)
        with atomic_path(job.folder / KEPT) as temporary:
            temporary.write_text(json.dumps({"key": key, "probe": asdict(probe)}, indent=1) + "\n")
    return probe


def _reaching(config: GenerateConfig, structure: Structure, job: Job, n_bands: int) -> Probe:
    """Run pw.x with more and more bands until they reach as far as they must."""
    for _ in range(TRIES):
        probe = _run(config, structure, job, _input(config, structure, n_bands))
        reach = probe.minima[-1] - COMPLETE_WIDTHS["gaussian"] * config.ldos.sigma
        if config.groups[structure.group].n_bands != "auto" or reach >= probe.needed + HEADROOM:
            return probe
        n_bands = int(np.ceil(1.4 * n_bands)) + 2
    raise InputError(f"{n_bands} bands do not reach {probe.needed:.1f} eV")


def _input(config: GenerateConfig, structure: Structure, n_bands: int) -> str:
    group = config.groups[structure.group]
    files = {element: path.name for element, path in config.pseudopotentials.items()}
    namelists: dict[str, dict[str, Value]] = {name: dict(keys) for name, keys in config.qe.namelists.items()}
    namelists["electrons"]["conv_thr"] = 1e-5 * len(structure.atoms)
    return pw_input(
        structure.atoms, files, temperature=group.temperature, n_bands=n_bands,
        kpoints=mesh(config, structure.group), fft_shape=group.fft_grid, namelists=namelists,
    )  # fmt: skip


def _first_guess(config: GenerateConfig, structure: Structure) -> int:
    """Bands of free electrons up to what is needed: N(E) = V (2mE)^(3/2) / (6 pi^2 hbar^3)."""
    number, volume = electrons(structure, config), structure.atoms.get_volume()
    fermi = FREE_ELECTRON * (3 * np.pi**2 * number / volume) ** (2 / 3)
    temperature = config.groups[structure.group].temperature
    top = fermi + OCCUPIED * BOLTZMANN * temperature + 2 * config.ldos.sigma + 2 * MARGIN
    free = volume / (6 * np.pi**2) * (top / FREE_ELECTRON) ** 1.5
    return int(np.ceil(max(free, 0.6 * number))) + 4


def _run(config: GenerateConfig, structure: Structure, job: Job, text: str) -> Probe:
    job.pw(config.qe.pw_command, text, needs_wavefunctions=False)
    if job.xml is None:
        raise InputError(f"pw.x left no XML in {job.folder}")
    run = read_xml(job.xml)
    check_supported(run)
    assert run.fermi_level is not None  # check_supported
    job.clean(keep_wavefunctions=False)
    temperature = config.groups[structure.group].temperature
    minima = run.eigenvalues.min(axis=0)
    # of an insulator the bottom of the first empty band: without it nothing bounds the Fermi level
    empty = min(int(np.ceil(run.n_electrons / 2 - 1e-9)), len(minima) - 1)
    return Probe(
        name=structure.name,
        electrons=run.n_electrons,
        minima=tuple(minima.tolist()),
        start=latest_start(run, config.ldos.sigma),
        needed=max(run.fermi_level, float(minima[empty])) + OCCUPIED * BOLTZMANN * temperature,
    )
