"""From malax into Quantum ESPRESSO: a predicted density as pw.x's save folder, with inputs for pw.x."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms
from ase.cell import Cell

from malax import shipped
from malax.errors import FileError, InputError, MachineError
from malax.io.charge_density import plane_waves, sphere_of_waves, write_charge_density
from malax.io.files import atomic_path, check_output, sha256
from malax.io.pw_input import Value, pw_input
from malax.io.pw_xml import PredictedRun, write_xml
from malax.io.upf import Pseudopotential
from malax.units import RYDBERG

if TYPE_CHECKING:
    from malax.emulator import Emulator
    from malax.result import Result

PREFIX = "malax"
K_SPACING = 0.2
"""Default spacing of k-points in 1/A (with the factor 2 pi)."""
PATH_DENSITY = 10.0
"""k-points per 1/A of the path through the Brillouin zone (ASE's bandpath)."""


@dataclass(frozen=True)
class SaveOptions:
    """How a save folder is written.

    Attributes
    ----------
    pseudo_files : element -> UPF file; for the others the file that the model names is looked for
    kpoints : mesh of scf.in and nscf.in; None is the coarsest with a spacing of at most `K_SPACING`
    ecutwfc : eV; None is ecutrho / 4, which norm-conserving pseudopotentials use
    n_bands : of nscf.in and bands.in; None is half as many again as are occupied, and four more
    hdf5 : charge-density.hdf5 instead of .dat, for a pw.x that is built with HDF5
    """

    pseudo_files: Mapping[str, Path]
    kpoints: tuple[int, int, int] | None = None
    ecutwfc: float | None = None
    n_bands: int | None = None
    hdf5: bool = False
    overwrite: bool = False

    @property
    def density_name(self) -> str:
        return "charge-density.hdf5" if self.hdf5 else "charge-density.dat"


def save_folder(
    result: Result, emulator: Emulator, folder: str | os.PathLike[str], options: SaveOptions
) -> list[Path]:
    """Write what pw.x needs to go on from a predicted density.

    ::

        FOLDER/malax.save/       charge-density.dat, data-file-schema.xml, the pseudopotentials
        FOLDER/nscf.in           eigenvalues on a mesh of k-points
        FOLDER/bands.in          the band structure along ASE's path
        FOLDER/scf.in            a self-consistent cycle that starts from the density, in
        FOLDER/scf/malax.save/   a copy of it, since pw.x overwrites what it starts from

    to be run as ``pw.x -in nscf.in`` in FOLDER. pw.x chooses its own FFT grid: waves beyond the sphere of
    ecutrho are cut, as in any density of pw.x.

    Parameters
    ----------
    result : a whole result (`Result.gather`)
    emulator : the model that made it

    Raises
    ------
    InputError
        see `find_pseudopotentials`; a model that does not know its ecutrho; a cutoff that cannot be right.
    FileError, MachineError
        a folder that cannot be made, files that exist.
    """
    if not result.is_whole:
        raise InputError("a save folder needs the whole density: call res.gather(), then use rank 0's")
    atoms, folder = _rounded(result.atoms), Path(folder)
    files = find_pseudopotentials(emulator, atoms.get_chemical_symbols(), options.pseudo_files)
    ecutwfc, ecutrho = check_cutoffs(emulator, files, options)
    terms = result.energies.as_dict()
    miller = sphere_of_waves(atoms.cell.array, ecutrho)
    # neutral to the last digit: pw.x would rescale the density in an scf but not in nscf
    neutral = _electrons(emulator, atoms) / (result.density.mean() * atoms.get_volume())
    run = PredictedRun(
        atoms=atoms,
        pseudo_files={element: path.name for element, path in files.items()},
        functional=emulator.info.xc,
        ecutwfc=ecutwfc,
        ecutrho=ecutrho,
        fft_shape=result.grid.shape,
        n_waves=len(miller),
        temperature=result.temperature,
        n_electrons=_electrons(emulator, atoms),
        fermi_level=result.fermi_level,
        energies={name: value for name, value in terms.items() if value is not None},
        ultrasoft=any(emulator.pseudopotentials[element].kind == "US" for element in files),
    )
    inputs = _inputs(run, options)
    targets = planned_files(folder, options)
    for target in targets:
        make_folder(target.parent)
        check_output(target, options.overwrite)
    for path in files.values():
        for place in (folder, folder / f"{PREFIX}.save"):
            with atomic_path(place / path.name) as temporary:
                shutil.copyfile(path, temporary)
    for target in targets:
        if target.suffix == ".in":
            with atomic_path(target, options.overwrite) as temporary:
                temporary.write_text(inputs[target.name])
        elif target.name == options.density_name:
            # scf.in with one k-point uses Gamma's real wavefunctions and half of the waves
            half = target.parent.parent.name == "scf" and run_mesh(atoms, options) == (1, 1, 1)
            waves = sphere_of_waves(atoms.cell.array, ecutrho, gamma_only=True) if half else miller
            values = plane_waves(result.density, waves) * neutral
            write_charge_density(
                target, atoms.cell.array, waves, values, gamma_only=half, overwrite=options.overwrite
            )
        else:
            write_xml(target, run, overwrite=options.overwrite)
    return targets


def planned_files(folder: str | os.PathLike[str], options: SaveOptions) -> list[Path]:
    """The files that `save_folder` writes besides the pseudopotentials."""
    folder, save = Path(folder), f"{PREFIX}.save"
    return [
        folder / save / options.density_name,
        folder / save / "data-file-schema.xml",
        folder / "scf" / save / options.density_name,
        *(folder / f"{name}.in" for name in ("scf", "nscf", "bands")),
    ]


def find_pseudopotentials(
    emulator: Emulator, symbols: Iterable[str], given: Mapping[str, Path]
) -> dict[str, Path]:
    """The UPF file of each element: the one given, or one of the name and hash that the model knows.

    Looked for in the working folder, in $ESPRESSO_PSEUDO, and beside the shipped model.

    Raises
    ------
    InputError
        a model without pseudopotentials, an element that the structure does not have, no file, or a file
        that is not the one that the model was trained with.
    """
    elements = list(dict.fromkeys(symbols))
    for element in given:
        if element not in elements:
            raise InputError(f"--pseudo {element}=...: the structure has {', '.join(elements)} only")
    found = {}
    for element in elements:
        known = emulator.pseudopotentials.get(element)
        if known is None:
            raise InputError(f"the model holds no pseudopotential of {element}: no pw.x can go on from it")
        path = given[element] if element in given else _search(known)
        if path is None:
            raise InputError(
                f"no pseudopotential of {element} at hand: give --pseudo {element}=PATH, the file "
                f"{known.name} with SHA-256 {known.sha256[:12]}..."
            )
        if not path.is_file():
            raise FileError(f"--pseudo {element}={path}: there is no such file")
        if sha256(path) != known.sha256:
            raise InputError(
                f"--pseudo {element}={path} is not the file that the model was trained with: that is "
                f"{known.name} with SHA-256 {known.sha256[:12]}..., this one has {sha256(path)[:12]}..."
            )
        found[element] = path
    return found


def _search(known: Pseudopotential) -> Path | None:
    places = [Path(), shipped.model().parent]
    if os.environ.get("ESPRESSO_PSEUDO"):
        places.insert(1, Path(os.environ["ESPRESSO_PSEUDO"]))
    for place in places:
        path = place / known.name
        if path.is_file() and sha256(path) == known.sha256:
            return path
    return None


def check_cutoffs(emulator: Emulator, elements: Iterable[str], options: SaveOptions) -> tuple[float, float]:
    """ecutwfc and ecutrho in eV, as they will be read from the inputs. InputError if they cannot be right."""
    ecutrho = emulator.info.ecutrho
    if ecutrho is None:
        raise InputError("the model does not know the ecutrho of its training: no save folder can be written")
    kinds = {emulator.pseudopotentials[element].kind for element in elements}
    if options.ecutwfc is None and "US" in kinds:
        raise InputError(
            "the model has ultrasoft pseudopotentials: give --ecutwfc, that of its training in Ry"
        )
    ecutwfc = ecutrho / 4 if options.ecutwfc is None else options.ecutwfc
    if not 0 < ecutwfc <= ecutrho / 4 * (1 + 1e-9):
        raise InputError(
            f"ecutwfc of {ecutwfc / RYDBERG:g} Ry: with the model's ecutrho of {ecutrho / RYDBERG:g} Ry it "
            f"must be positive and at most {ecutrho / 4 / RYDBERG:g} Ry"
        )
    return round(ecutwfc / RYDBERG, 8) * RYDBERG, round(ecutrho / RYDBERG, 8) * RYDBERG


def _electrons(emulator: Emulator, atoms: Atoms) -> float:
    return float(sum(emulator.info.valence[symbol] for symbol in atoms.get_chemical_symbols()))


def _rounded(atoms: Atoms) -> Atoms:
    """The structure as the inputs will say it: the order of the waves hangs on the cell's last digit."""
    cell = atoms.cell.array.round(12)
    return Atoms(atoms.symbols, positions=atoms.positions.round(10), cell=cell, pbc=True)


def _inputs(run: PredictedRun, options: SaveOptions) -> dict[str, str]:
    """Name -> text of the inputs of pw.x."""
    n_bands = options.n_bands or int(np.ceil(0.75 * run.n_electrons)) + 4
    mesh = run_mesh(run.atoms, options)
    system: dict[str, Value] = {
        "ecutwfc": round(run.ecutwfc / RYDBERG, 8),
        "ecutrho": round(run.ecutrho / RYDBERG, 8),
    }
    threshold = {"conv_thr": float(f"{1e-9 * len(run.atoms):.1e}")}

    def text(calculation: str, kpoints: tuple[int, int, int] | np.ndarray, outdir: str) -> str:
        start: dict[str, Value] = {"startingpot": "file"} if calculation == "scf" else {}
        return pw_input(
            run.atoms,
            run.pseudo_files,
            temperature=run.temperature,
            n_bands=None if calculation == "scf" else n_bands,
            kpoints=kpoints,
            namelists={"system": system, "electrons": {**threshold, **start}},
            prefix=PREFIX,
            calculation=calculation,
            outdir=outdir,
        )

    return {
        "scf.in": text("scf", mesh, "./scf"),
        # never in the form of Gamma alone, which would want another charge-density than bands.in
        "nscf.in": text("nscf", np.zeros((1, 3)) if mesh == (1, 1, 1) else mesh, "."),
        "bands.in": text("bands", band_path(run.atoms).kpts, "."),
    }


def run_mesh(atoms: Atoms, options: SaveOptions) -> tuple[int, int, int]:
    """The mesh that was asked for, else the coarsest whose spacing is at most `K_SPACING`."""
    if options.kpoints is not None:
        return options.kpoints
    lengths = 2 * np.pi * np.linalg.norm(atoms.cell.reciprocal(), axis=1)
    nx, ny, nz = (max(1, int(np.ceil(n / K_SPACING - 1e-9))) for n in lengths)
    return nx, ny, nz


def band_path(atoms: Atoms):  # noqa: ANN201 - ASE's BandPath, which has no types
    """ASE's path through the Brillouin zone of the cell. InputError if ASE cannot tell its lattice."""
    try:
        path = Cell(atoms.cell.array).bandpath(density=PATH_DENSITY, pbc=True)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise InputError(f"ASE knows no path through the Brillouin zone of this cell: {error}") from error
    return path


def make_folder(folder: Path) -> None:
    """Make a folder and those above it. FileError, MachineError if that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise FileError(f"{folder} is not a folder") from error
    except OSError as error:
        raise MachineError(f"cannot make the folder {folder}: {error.strerror}") from error
