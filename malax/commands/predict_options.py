"""What was asked of ``malax predict``, and whether it goes together."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ase import Atoms

from malax.errors import InputError


@dataclass(frozen=True)
class PredictOptions:
    """The options of the command, as they were given."""

    output: Path | None = None
    index: str = "-1"
    species: str | None = None
    format: str | None = None
    temperatures: tuple[float, ...] = ()
    grid: tuple[int, int, int] | None = None
    spacing: float | None = None
    repeat: tuple[int, int, int] | None = None
    descriptors: str = "native"
    precision: str = "float32"
    cube: bool = False
    ldos: bool = False
    xsf: bool = False
    dos: bool = False
    extxyz: bool = False
    qe_save: Path | None = None
    pseudo: tuple[str, ...] = ()
    kpoints: tuple[int, int, int] | None = None
    ecutwfc: float | None = None
    bands: int | None = None
    qe_hdf5: bool = False
    preview: bool = False
    tables: tuple[Path, ...] = ()
    max_time: float | None = None
    dry_run: bool = False
    ranks: int | None = None
    fit_check: bool = True
    json_only: bool = False
    overwrite: bool = False

    @property
    def beside(self) -> dict[str, str]:
        """What else is written beside OUT.h5: option -> ending."""
        endings = {"cube": ".cube", "preview": ".preview.cube"}
        endings |= {"xsf": ".xsf", "dos": ".dos", "extxyz": ".xyz"}
        return {name: ending for name, ending in endings.items() if getattr(self, name)}


@dataclass(frozen=True)
class Structure:
    """One structure to predict and what to call it."""

    label: str
    atoms: Atoms

    @property
    def formula(self) -> str:
        return self.atoms.get_chemical_formula()


def seconds(text: str) -> float:
    """A time as schedulers write it: seconds, M:S, H:M:S or D-H:M:S.

    Raises
    ------
    InputError
        it is none of these, or not positive.
    """
    found = re.fullmatch(r"(?:(\d+)-)?((?:\d+:){0,2})(\d+(?:\.\d*)?)", text.strip())
    total = 0.0
    if found:
        days, upper, last = found.groups()
        for part in [*filter(None, upper.split(":")), last]:
            total = 60 * total + float(part)
        total += 86400 * int(days or 0)
    if total <= 0 or (found and found.group(1) and found.group(2).count(":") != 2):
        raise InputError(f"--max-time {text!r} is no time; examples: 3600 (seconds), 3:50:00, 1-00:00:00")
    return total


def check_options(options: PredictOptions) -> None:
    """InputError for options that exclude or need each other."""
    if options.grid is not None and options.spacing is not None:
        raise InputError("--grid and --spacing exclude each other; give one of them")
    if options.ranks is not None and not options.dry_run:
        raise InputError("--ranks goes with --dry-run; a run has the ranks that mpiexec -n starts")
    named = [*options.beside, *(["ldos"] if options.ldos else [])]
    if options.output is None and named:
        raise InputError(f"--{named[0]} needs -o OUT.h5, beside which it is written")
    with_save = {
        "pseudo": options.pseudo, "kpoints": options.kpoints, "ecutwfc": options.ecutwfc,
        "bands": options.bands, "qe-hdf5": options.qe_hdf5,
    }  # fmt: skip
    given = [name for name, value in with_save.items() if value]
    if options.qe_save is None and given:
        raise InputError(f"--{given[0]} goes with --qe-save DIR, the folder for pw.x")
    if options.kpoints is not None and min(options.kpoints) < 1:
        raise InputError(
            f"--kpoints needs three positive integers, got {' '.join(map(str, options.kpoints))}"
        )
    if options.repeat is not None and min(options.repeat) < 1:
        raise InputError(f"--repeat needs three positive integers, got {' '.join(map(str, options.repeat))}")
