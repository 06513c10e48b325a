"""The options of the commands, and those that take several values after one name, which typer cannot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

# every command

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
Descriptors = Annotated[
    str, typer.Option("--descriptors", metavar="native|lammps", help="Who computes descriptors.")
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        metavar="float32|bfloat16",
        help="Of the products between hidden layers; bfloat16 costs accuracy.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the configuration."),
]
Schema = Annotated[bool, typer.Option("--schema", help="Print every key of the configuration.")]

# malax generate

Recipe = Annotated[Path | None, typer.Argument(metavar="CONFIG.yaml", help="The recipe.")]
Runs = Annotated[list[Path] | None, typer.Option("--from", metavar="DIR...", help="Finished QE runs.")]
Snapshots = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="OUT", help="A file, or a folder for several runs."),
]
Sigma = Annotated[float | None, typer.Option(metavar="EV", help="With --from: width of the LDOS kernel.")]
Stride = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="With --from: keep every N-th point of the LDOS.")
]
Energies = Annotated[
    tuple[float, float, float] | None,
    typer.Option(metavar="LOW HIGH STEP", help="With --from: energies of the LDOS in eV."),
]
Only = Annotated[
    list[str] | None, typer.Option("--only", metavar="NAME...", help="Of the recipe these structures.")
]
Jobs = Annotated[
    str | None,
    typer.Option("--jobs", metavar="slurm|pbs", help="Write a job array instead of running anything."),
]
Active = Annotated[
    Path | None,
    typer.Option("--active", metavar="MODEL", help="Of the recipe those that the model knows least."),
]
Take = Annotated[int, typer.Option("--take", metavar="N", min=1, help="With --active: how many.")]

# malax predict

Structures = Annotated[
    list[Path],
    typer.Argument(metavar="STRUCTURE", help="Any file that ASE reads; more models may come before."),
]
Output = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="OUT.h5", help="Write the result (several: OUT_0000.h5, ...)."),
]
Index = Annotated[str, typer.Option(help="Images of a trajectory, e.g. ::10. Default: the last.")]
Species = Annotated[str | None, typer.Option(metavar="Al,Be", help="Elements of LAMMPS types 1, 2, ...")]
Format = Annotated[str | None, typer.Option(metavar="F", help="ASE's name of the file format.")]
Temperature = Annotated[
    list[float] | None,
    typer.Option(metavar="K ...", help="Electronic temperatures. Default: the lowest of the training."),
]
GridPoints = Annotated[tuple[int, int, int] | None, typer.Option(metavar="NX NY NZ", help="Grid points.")]
Spacing = Annotated[float | None, typer.Option(metavar="A", help="Largest grid spacing.")]
Repeat = Annotated[tuple[int, int, int] | None, typer.Option(metavar="A B C", help="Repeat the cell first.")]
Cube = Annotated[bool, typer.Option("--cube", help="Write the density beside OUT.h5 as OUT.cube.")]
Ldos = Annotated[bool, typer.Option("--ldos", help="Write the whole LDOS into OUT.h5, too.")]
Xsf = Annotated[bool, typer.Option("--xsf", help="Write the density as OUT.xsf.")]
Dos = Annotated[bool, typer.Option("--dos", help="Write the DOS as OUT.dos, as dos.x does.")]
Extxyz = Annotated[bool, typer.Option("--extxyz", help="Write structure and energies as OUT.xyz.")]
QeSave = Annotated[
    Path | None, typer.Option("--qe-save", metavar="DIR", help="Write pw.x's save folder and inputs.")
]
Pseudo = Annotated[
    list[str] | None, typer.Option("--pseudo", metavar="Al=PATH", help="With --qe-save: a UPF file.")
]
Kpoints = Annotated[
    tuple[int, int, int] | None, typer.Option(metavar="N N N", help="With --qe-save: mesh of k-points.")
]
Ecutwfc = Annotated[float | None, typer.Option(metavar="RY", help="With --qe-save. Default: ecutrho / 4.")]
Bands = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="With --qe-save: bands of nscf.in and bands.in.")
]
QeHdf5 = Annotated[bool, typer.Option("--qe-hdf5", help="With --qe-save: for a pw.x built with HDF5.")]
Preview = Annotated[
    bool, typer.Option("--preview", help="Write a coarse density beside OUT.h5 as OUT.preview.cube.")
]
TableFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--table", metavar="T.csv T.xyz", help="A row per result, added as they finish; goes on if killed."
    ),
]
MaxTime = Annotated[
    str | None,
    typer.Option(metavar="[D-]H:M:S", help="Save and end after this time; the same command goes on."),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Say what memory, time and disk it takes; compute and write nothing."),
]
Ranks = Annotated[
    int | None,
    typer.Option(metavar="P", min=1, help="With --dry-run: of how many ranks. Default: those here."),
]
NoFitCheck = Annotated[
    bool, typer.Option("--no-fit-check", help="Start even if memory or disk seem too small for it.")
]

_LISTS = {
    "--temperature": float,
    "--from": str,
    "--set": str,
    "--pseudo": str,
    "--only": str,
    "--table": str,
    "--data": str,
}
"""Options that take several values after one name, as in ``--temperature 298 933``."""


def spread(arguments: Sequence[str]) -> list[str]:
    """Give each of several values its own option name: ``--temperature 298 933`` -> ``--temperature 298
    --temperature 933``."""
    spread_out: list[str] = []
    current: str | None = None
    n_values = 0
    for argument in arguments:
        if argument in _LISTS:
            current, n_values = argument, 0
            spread_out.append(argument)
            continue
        if current is not None and n_values > 0 and _is_value(argument, current):
            spread_out.append(current)
        elif n_values > 0:
            current = None
        n_values += 1
        spread_out.append(argument)
    return spread_out


def _is_value(argument: str, option: str) -> bool:
    if _LISTS[option] is float:
        try:
            float(argument)
        except ValueError:
            return False
        return True
    return not argument.startswith("-") and (option != "--set" or "=" in argument)
