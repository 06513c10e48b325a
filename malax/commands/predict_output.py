"""What ``malax predict`` writes and prints of a result."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from malax.comm import on_root
from malax.commands.console import Console, number
from malax.commands.predict_options import PredictOptions, Structure
from malax.errors import InputError
from malax.io.files import check_output
from malax.io.qe_text import pw_energies

if TYPE_CHECKING:
    from malax.result import Result


def output_paths(options: PredictOptions, n_results: int) -> list[Path]:
    """The file of each result, checked before anything is computed: OUT.h5, or OUT_0000.h5, OUT_0001.h5..."""
    output = options.output
    if output is None:
        return []
    if output.suffix == "":
        output = output.with_suffix(".h5")
    if output.suffix not in (".h5", ".hdf5"):
        raise InputError(f"-o {output}: results are HDF5 files; a name ending in .h5 is needed")
    paths = [output]
    if n_results > 1:
        paths = [output.with_name(f"{output.stem}_{i:04d}{output.suffix}") for i in range(n_results)]
    for path in paths:
        # with a table what is there may be a finished part of the series: `Series` looks
        check_outputs(path, options, options.overwrite or bool(options.tables))
    return paths


def check_outputs(path: Path, options: PredictOptions, overwrite: bool) -> None:
    """Refuse early what could not be written late."""
    for suffix in (path.suffix, *options.beside.values()):
        target = path.with_suffix(suffix)
        if target in options.tables:
            raise InputError(f"--table {target} is also the name of an output of -o {path}; give another")
        check_output(target, overwrite)


def write(result: Result, path: Path | None, options: PredictOptions) -> list[Path]:
    """Collective: every rank writes its part."""
    if path is None:
        return []
    # what stood there was checked before the start: it may be replaced, or is this very result
    overwrite = options.overwrite or bool(options.tables)
    written = [result.save(path, overwrite)]
    for name, ending in options.beside.items():
        target = path.with_suffix(ending)
        _write_beside(result, name, target, overwrite)
        written.append(target)
    return written


def _write_beside(result: Result, name: str, target: Path, overwrite: bool) -> None:
    """One of the files of `PredictOptions.beside`; collective."""
    if name == "cube":
        result.write_cube(target, overwrite)
    elif name == "preview":
        from malax.preview import preview

        preview(result).write_cube(target, overwrite)
    elif name == "xsf":
        whole = density_alone(result)
        on_root(result.comm, lambda: None if whole is None else whole.write_xsf(target, overwrite))
    else:  # the same on all ranks, and small
        on_root(result.comm, lambda: getattr(result, f"write_{name}")(target, overwrite))


def density_alone(result: Result) -> Result | None:
    """The result with its whole density, but no other fields, on rank 0; None elsewhere; collective."""
    return dataclasses.replace(result, ldos=None, spread=None).gather()


def show(console: Console, structure: Structure, result: Result, written: list[Path], header: bool) -> None:
    """Print a result; ``header`` for the first of a structure."""
    atoms, grid = result.atoms, result.grid
    n_atoms = len(atoms)
    if header:
        spacing = " x ".join(f"{s:.3f}" for s in grid.spacing)
        console.say(f"structure    {structure.label}: {atoms.get_chemical_formula()}, {n_atoms} atoms")
        console.say(f"grid         {' x '.join(map(str, grid.shape))}, spacing {spacing} A")
        for concern in result.warnings:
            console.warn(concern)
        for note in result.notes:
            console.say(f"note         {note}")
    console.say(f"temperature  {result.temperature:g} K")
    console.say(f"Fermi level  {result.fermi_level:.4f} eV")
    console.say(f"electrons    {result.n_electrons:.6f}")
    rows = [
        [name, number(value, 6), number(None if value is None else value / n_atoms, 6)]
        for name, value in energy_rows(result)
    ]
    headers = ["energy", "eV", "eV/atom"]
    if result.spread is not None:
        console.say(f"members      {result.spread.n_members}, standard deviations behind the energies")
        console.say(f"Fermi level  +- {1e3 * result.spread.fermi_level_std:.1f} meV")
        headers.append("+- meV/atom")
        names = (*ENERGY_NAMES, "total_free", "internal")
        for row, name in zip(rows, names, strict=True):
            std = result.spread.std.get(name)
            row.append(number(None if std is None else 1e3 * std / n_atoms, 2))
    console.table(headers, rows)
    in_ry = pw_energies(result.energies.as_dict())
    if in_ry is not None:
        console.table(
            ["as pw.x prints it", "Ry"], [[name, number(value, 8)] for name, value in in_ry.items()]
        )
    total, peak = result.timings["total"], 1e-9 * result.provenance["peak_memory_bytes"]
    each = f"{1e3 * total / n_atoms:.1f} ms per atom; {peak:.2f} GB per rank"
    console.say(f"time         {total:.2f} s, {each}")
    for path in written:
        console.say(f"written      {path}")
    console.say()


ENERGY_NAMES = ("band", "hartree", "xc", "vxc_rho", "ewald", "entropy_term")
"""The Python names of the terms in the order of `energy_rows`."""


def energy_rows(result: Result) -> list[tuple[str, float | None]]:
    """The terms in the order of the formula, the total last."""
    terms = result.terms()
    return [
        ("band", terms["band"]),
        ("Hartree", terms["hartree"]),
        ("XC", terms["xc"]),
        ("int v_xc n", terms["vxc_rho"]),
        ("Ewald", terms["ewald"]),
        ("-TS", terms["entropy_term"]),
        ("total free energy", terms["total_free"]),
        ("internal energy", terms["internal"]),
    ]
