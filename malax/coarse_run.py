"""Coarse runs of pw.x before the real ones: where the states lie, hence which energies and how many bands.

The most and the least dense structure of each group are run on few k-points. What the recipe leaves out
(``ldos.energies``, ``n_bands``) is picked from their eigenvalues; what it gives is refused if it is too
narrow, before the long runs. All snapshots of a recipe share one energy grid, so what was picked is kept in
``<runs>/probes.json`` and holds for whatever the recipe gets later.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from malax.errors import InputError, MalaxError
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

Energies = tuple[float, float, float]
Say = Callable[[str], None]

MARGIN = 1.0
"""eV: how much further the states of other structures may reach than those of the probes."""
HEADROOM = 2.0
"""eV: how much further up what is picked goes than what is needed. The Fermi level of an emulated density of
states must find room there, too."""
OCCUPIED = 14.0
"""So many kT above the Fermi level the occupation is 1e-6: up to there the LDOS must be complete."""
FREE_ELECTRON = 3.809982
"""hbar^2 / 2m in eV A^2."""
ALIKE = 0.02
"""Structures of a group whose volumes per electron differ by less (relative) have one probe."""
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


@dataclass(frozen=True)
class Window:
    """Energies of the LDOS (lowest, highest, spacing; eV), and bands per electron of the groups that leave
    them out."""

    energies: Energies
    bands_per_electron: dict[str, float]

    def n_bands(self, structure: Structure, config: GenerateConfig) -> int:
        """Bands of a structure: the number of its group, or as many per electron as its probes need."""
        given = config.groups[structure.group].n_bands
        if given != "auto":
            return given
        return int(np.ceil(self.bands_per_electron[structure.group] * electrons(structure, config) - 1e-6))


def window(config: GenerateConfig, every: list[Structure], todo: Iterable[Structure], say: Say) -> Window:
    """The energies and bands of a recipe, after the coarse runs that they take.

    Parameters
    ----------
    every : all structures of the recipe
    todo : those that are asked for; what they give is checked only where a snapshot is missing
    say : is told what was picked

    Raises
    ------
    InputError
        energies or bands that are too narrow; a probe that failed though something depends on it.
    """
    todo = list(todo)
    if config.ldos.energies != "auto" and all(g.n_bands != "auto" for g in config.groups.values()):
        return _window(config, every, todo, say)
    # the jobs of an array start together: the first picks, the others take what it picked
    with _locked(config.runs_folder / "probes"):
        return _window(config, every, todo, say)


def _window(config: GenerateConfig, every: list[Structure], todo: list[Structure], say: Say) -> Window:
    kept = _kept(config)
    groups = sorted({s.group for s in todo})
    blank = [g for g in groups if config.groups[g].n_bands == "auto" and g not in kept.bands_per_electron]
    if config.ldos.energies == "auto" and not kept.energies:
        # of all groups, whatever is asked for now: the others will have the same energies
        groups = blank = sorted({s.group for s in every})
    if blank and not config.probe:
        raise InputError("probe: false needs ldos.energies, and n_bands in every group")
    waiting = {s.group for s in todo if not (config.out / f"{s.name}.h5").exists()}
    probes = {}
    for group in groups:
        if group in blank or (config.probe and group in waiting and _worthwhile(config, group)):
            probes[group] = _probes(config, group, every, say, needed=group in blank)
    found = _picked(config, kept, probes)
    for group, several in probes.items():
        _check(config, group, several, found)
    if found != kept and (config.ldos.energies == "auto" or found.bands_per_electron):
        with atomic_path(_path(config)) as temporary:
            temporary.write_text(json.dumps(asdict(found), indent=1) + "\n")
        low, high, step = found.energies
        say(f"probes: LDOS from {low:g} to {high:g} eV every {step:g} eV{_bands_said(found)}")
    return found


@contextmanager
def _locked(folder: Path) -> Iterator[Job]:
    """A folder, once no other process has it."""
    while True:
        with Job(folder) as job:
            if job is not None:
                yield job
                return
        time.sleep(0.5)


def _bands_said(found: Window) -> str:
    return "".join(f", {n:.2f} bands per electron in {g}" for g, n in found.bands_per_electron.items())


def _path(config: GenerateConfig) -> Path:
    return config.runs_folder / "probes.json"


def _kept(config: GenerateConfig) -> Window:
    """What was picked before; without energies if nothing was."""
    try:
        tree = json.loads(_path(config).read_text())
        energies, bands = tuple(tree["energies"]), dict(tree["bands_per_electron"])
    except (OSError, ValueError, KeyError, TypeError):
        return Window((), {})  # type: ignore[arg-type]
    wanted = config.ldos.energies
    bands = {g: n for g, n in bands.items() if g in config.groups and config.groups[g].n_bands == "auto"}
    return Window(energies if wanted == "auto" else wanted, bands)  # type: ignore[arg-type]


def _worthwhile(config: GenerateConfig, group: str) -> bool:
    """Whether a probe costs much less than what it may save."""
    return int(np.prod(config.groups[group].kpoints)) >= 4 * int(np.prod(mesh(config, group)))


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


def _probes(
    config: GenerateConfig, group: str, every: list[Structure], say: Say, needed: bool
) -> list[Probe]:
    """Of the most and the least dense structure of a group; none if they fail and nothing needs them."""
    members = [s for s in every if s.group == group]
    volumes = [s.atoms.get_volume() / electrons(s, config) for s in members]
    first, last = int(np.argmin(volumes)), int(np.argmax(volumes))
    chosen = [members[first]]
    if volumes[last] > volumes[first] * (1 + ALIKE):
        chosen.append(members[last])
    found = []
    for structure in chosen:
        try:
            found.append(_probe(config, structure))
        except MalaxError as error:
            if needed:
                raise InputError(
                    f"probe of {structure.name}: {error}; or give ldos.energies and n_bands"
                ) from error
            say(f"probe of {structure.name}: {error}; energies and bands were not checked beforehand")
    return found


def _probe(config: GenerateConfig, structure: Structure) -> Probe:
    """The probe of a structure, made now or before; waits for another process that is making it.

    It may take several runs of pw.x with more and more bands, each in the place of the one before; what the
    last of them said is kept.
    """
    group = config.groups[structure.group]
    n_bands = _first_guess(config, structure) if group.n_bands == "auto" else group.n_bands
    with _locked(config.runs_folder / f"probe-{structure.name}") as job:
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


def _picked(config: GenerateConfig, kept: Window, probes: dict[str, list[Probe]]) -> Window:
    """The recipe's blanks filled from the probes; what was picked before stays."""
    widths = COMPLETE_WIDTHS["gaussian"] * config.ldos.sigma
    energies = config.ldos.energies
    if energies == "auto":
        energies = kept.energies or _range([p for several in probes.values() for p in several], config)
    bands = dict(kept.bands_per_electron)
    for group, several in probes.items():
        if config.groups[group].n_bands == "auto" and group not in bands:
            bands[group] = max(
                (1 + int(np.searchsorted(np.maximum.accumulate(p.minima), p.needed + widths + HEADROOM)))
                / p.electrons
                for p in several
            )
    return Window(energies, bands)


def _range(probes: list[Probe], config: GenerateConfig) -> Energies:
    """Two energies per sigma, from below the lowest states to above the highest occupied ones."""
    step = config.ldos.sigma / 2
    low = float(np.floor(min(p.start for p in probes) - 2 * config.ldos.sigma - MARGIN))
    high = max(p.needed for p in probes) + COMPLETE_WIDTHS["gaussian"] * config.ldos.sigma + HEADROOM
    return low, round(low + step * float(np.ceil((high - low) / step)), 9), step


def _check(config: GenerateConfig, group: str, probes: list[Probe], found: Window) -> None:
    """InputError if a probe has states where the LDOS would have none."""
    low, high, _ = found.energies
    remedy = ":"
    if config.ldos.energies == "auto":
        remedy = (
            f" (picked before from {low:g} to {high:g} eV): remove {_path(config)} and the snapshots in "
            f"{config.out}, which share these energies, or give ldos.energies that"
        )
    for p in probes:
        said = f"group {group}, coarse run of {p.name}"
        if low > p.start:
            raise InputError(
                f"{said}: ldos.energies start at {low:g} eV, above the lowest states{remedy} start at "
                f"{np.floor(p.start - MARGIN):g} eV"
            )
        if high < p.needed:
            raise InputError(
                f"{said}: ldos.energies end at {high:g} eV, but states are needed up to {p.needed:.1f} eV"
                f"{remedy} end at {np.ceil(p.needed + MARGIN):g} eV"
            )
        reach = p.minima[-1] - COMPLETE_WIDTHS["gaussian"] * config.ldos.sigma
        if config.groups[group].n_bands != "auto" and reach < p.needed:
            raise InputError(
                f"{said}: n_bands of {len(p.minima)} make the LDOS complete up to {reach:.1f} eV, but states "
                f"are needed up to {p.needed:.1f} eV: more bands are needed (n_bands: auto picks them)"
            )
