"""Coarse runs of pw.x before the real ones: where the states lie, hence which energies and how many bands.

The most and the least dense structure of each group are run on few k-points. What the recipe leaves out
(``ldos.energies``, ``n_bands``) is picked from their eigenvalues; what it gives is refused if it is too
narrow, before the long runs. All snapshots of a recipe share one energy grid, so what was picked is kept in
``<runs>/probes.json`` and holds for whatever the recipe gets later.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from malax.coarse_probe import HEADROOM, MARGIN, Probe, electrons, locked, make_probe, mesh
from malax.errors import InputError, MachineError, MalaxError
from malax.io.files import atomic_path
from malax.io.harvest import COMPLETE_WIDTHS
from malax.recipe import GenerateConfig
from malax.structures import Structure

Energies = tuple[float, float, float]
Say = Callable[[str], None]

ALIKE = 0.02
"""Structures of a group whose volumes per electron differ by less (relative) have one probe."""


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
    with locked(config.runs_folder / "probes"):
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
            found.append(make_probe(config, structure))
        except OSError as error:
            folder = config.runs_folder
            raise MachineError(f"{error.filename or folder}: {error.strerror or error}") from error
        except MalaxError as error:
            if needed:
                raise InputError(
                    f"probe of {structure.name}: {error}; or give ldos.energies and n_bands"
                ) from error
            say(f"probe of {structure.name}: {error}; energies and bands were not checked beforehand")
    return found


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
