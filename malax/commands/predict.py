"""``malax predict``: structures in, free energies out."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ase import Atoms

from malax.comm import Comm, on_root, world
from malax.commands.console import Console, number
from malax.errors import InputError
from malax.interruption import Interruption
from malax.io.files import check_output
from malax.io.qe_text import pw_energies
from malax.io.structures import read_structures

if TYPE_CHECKING:
    from malax.emulator import Emulator
    from malax.long_run import LongRun
    from malax.result import Result


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


def predict(model: Path, structures: Sequence[Path], options: PredictOptions) -> None:
    """Predict every structure at every temperature; print, and write what was asked for.

    Leading ``structures`` that are models (``*.malax``) make an ensemble with ``model``.
    """
    comm = world()
    models, structures = split_models(model, structures)
    console = Console(comm, options.json_only)
    _check_options(options)
    interruption = Interruption(comm, options.max_time)
    with interruption.watch():
        _predict_all(models, structures, options, comm, console, interruption)


def _predict_all(
    models: Sequence[Path],
    structures: Sequence[Path],
    options: PredictOptions,
    comm: Comm,
    console: Console,
    interruption: Interruption,
) -> None:
    todo = on_root(comm, lambda: _read(structures, options))
    n_each = max(1, len(options.temperatures))
    outputs = on_root(comm, lambda: output_paths(options, len(todo) * n_each))
    from malax.commands.estimate import check, dry_run  # torch: only now
    from malax.commands.series import Series, tiles_folder
    from malax.long_run import LongRun

    emulator = on_root(comm, lambda: _load(models))
    if options.dry_run:
        dry_run(emulator, todo, options, comm, console)
        return
    if options.fit_check:
        check(emulator, todo, outputs, options, comm)
    series = Series(options, todo, emulator, outputs, comm)
    objects: list[dict[str, Any]] = []
    for i, structure in enumerate(todo):
        keys = series.keys[i]
        if all(key in series.finished for key in keys):
            objects += [series.finished_object(key) for key in keys]
            continue
        if len(todo) > 1:
            interruption.check()
        paths = outputs[i * n_each : (i + 1) * n_each]
        long_run = LongRun(comm, tiles_folder(options, paths, i), interruption)
        try:
            results = _predict_one(emulator, structure, options, comm, console, long_run)
        except InputError:
            long_run.drop()  # the same command would fail again
            raise
        for j, result in enumerate(results):
            result.provenance["key"] = keys[j]
            written = _write(result, paths[j] if paths else None, options)
            written += series.save(result, i * n_each + j)
            series.add(structure, result, written, keys[j])
            _show(console, structure, result, written, header=j == 0)
            objects.append(
                {"structure": structure.label, **result.as_json(), "files": [str(p) for p in written]}
            )
        long_run.clear()
    before = sum("finished_before" in one for one in objects)
    if before:
        console.say(f"note         {before} of {len(objects)} results were finished by an earlier run")
    # one result is the object itself; several stand in a list
    from malax.differences import against_first

    several = {"results": objects, "differences": against_first(objects)}
    console.finish(objects[0] if len(objects) == 1 else several)


def _load(models: Sequence[Path]) -> Emulator:
    from malax.emulator import Emulator

    found = [Emulator.load(path) for path in models]
    return found[0] if len(found) == 1 else Emulator.combine(found)


def split_models(model: Path, others: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The models and the structures of ``MODEL [MODEL...] STRUCTURE...``; the last one is a structure."""
    n = 0
    while n < len(others) - 1 and others[n].suffix == ".malax":
        n += 1
    return [model, *others[:n]], list(others[n:])


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


def _check_options(options: PredictOptions) -> None:
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


def _read(paths: Sequence[Path], options: PredictOptions) -> list[Structure]:
    species = None if options.species is None else [s.strip() for s in options.species.split(",")]
    found = []
    for path in paths:
        images = read_structures(path, options.index, species, options.format)
        for i, atoms in enumerate(images):
            if options.repeat is not None:
                atoms = atoms.repeat(options.repeat)
            found.append(Structure(f"{path}" + (f"@{i}" if len(images) > 1 else ""), atoms))
    return found


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


def _predict_one(
    emulator: Emulator,
    structure: Structure,
    options: PredictOptions,
    comm: Comm,
    console: Console,
    long_run: LongRun,
) -> list[Result]:
    from malax.checks import ModelDomainWarning
    from malax.grid import Grid

    grid: Any = options.grid
    if options.spacing is not None:
        grid = Grid.from_spacing(structure.atoms.cell.array, options.spacing)
    with console.progress(f"predicting {structure.label}") as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore", ModelDomainWarning)  # they stand in the result and are printed below
        return emulator.predict_many(
            structure.atoms,
            options.temperatures or None,
            grid,
            comm,
            options.ldos,
            descriptors=options.descriptors,
            precision=options.precision,
            progress=progress,
            long_run=long_run,
        )


def _write(result: Result, path: Path | None, options: PredictOptions) -> list[Path]:
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


def _show(console: Console, structure: Structure, result: Result, written: list[Path], header: bool) -> None:
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
