"""Structures from any file that ASE reads. LAMMPS files know types, not elements: those must be told."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import ase.io
from ase import Atoms
from ase.data import atomic_numbers
from ase.io.formats import UnknownFileTypeError, filetype, ioformats, string2index

from malax.errors import FileError, InputError

_LAMMPS = ("lammps-data", "lammps-dump-text", "lammps-dump-binary")


def read_structures(
    path: str | os.PathLike[str],
    index: str = "-1",
    species: Sequence[str] | None = None,
    format: str | None = None,
) -> list[Atoms]:
    """Read one or more structures.

    Parameters
    ----------
    path : a file that ASE reads (QE input and output, POSCAR, cif, xyz, trajectories, LAMMPS, ...)
    index : which images, as in ASE: "-1" the last, "0" the first, ":" all, "::10" every tenth
    species : elements of the LAMMPS types 1, 2, ...
    format : ASE's name of the format, if the file does not say

    Raises
    ------
    FileError
        the file is missing, truncated, empty, or of no known format.
    InputError
        LAMMPS types without ``species``, an unknown element, an index that makes no sense.
    """
    path = Path(path)
    if not path.is_file():
        raise FileError(f"{path} does not exist or is not a file; a structure that ASE can read is needed")
    chosen = _index(index)
    found = format or _sniffed(path) or _guessed(path)
    if found not in ioformats:
        asked = (
            f"--format {format} is no format of ASE" if format else "its format is not known; give --format"
        )
        raise FileError(f"{path} cannot be read as a structure: {asked}")
    options = _lammps_options(path, found, species) if found in _LAMMPS else {}
    if species is not None and found not in _LAMMPS:
        raise InputError(f"{path} is {found}, which names its elements; --species is for LAMMPS files")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # parallel=False: under mpi4py ASE would make this a collective call
            images = ase.io.read(path, index=chosen, format=found, parallel=False, **options)
    except KeyError as error:
        raise FileError(f"{path}: {_key_problem(error, found, species)}") from error
    except Exception as error:  # readers of ASE raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FileError(f"{path} cannot be read as {found}, image {index}: {reason[:120]}") from error
    images = images if isinstance(images, list) else [images]
    if not images:
        raise InputError(f"{path}: no image is in --index {index}")
    return [Atoms(a.symbols, positions=a.positions, cell=a.cell, pbc=a.pbc) for a in images]


def as_atoms(structure: Any) -> Atoms:
    """A structure as ASE's Atoms: Atoms themselves, or an ordered periodic Structure of pymatgen.

    pymatgen need not be installed; its structures are known by ``lattice``, ``species``, ``cart_coords``.
    InputError for anything else, and for sites that several elements share.
    """
    if isinstance(structure, Atoms):
        return structure
    parts = [getattr(structure, name, None) for name in ("lattice", "cart_coords")]
    matrix = getattr(parts[0], "matrix", None)
    if matrix is None or parts[1] is None:
        raise InputError(
            f"{type(structure).__name__} is no structure: ase.Atoms or a pymatgen Structure is needed"
        )
    if not getattr(structure, "is_ordered", True):
        raise InputError("the pymatgen structure has sites that several elements share; order it first")
    symbols = [getattr(one, "symbol", None) or str(one) for one in structure.species]
    return Atoms(symbols, positions=parts[1], cell=matrix, pbc=getattr(parts[0], "pbc", True))


def _index(text: str) -> Any:
    try:
        return string2index(re.fullmatch(r"-?\d+|(-?\d+)?:(-?\d+)?(:-?\d+)?:?", text)[0])  # type: ignore[index]
    except (TypeError, ValueError) as error:
        raise InputError(f"--index {text!r} is no index; examples: -1, 0, :, ::10, 5:20:5") from error


def _guessed(path: Path) -> str | None:
    try:
        return filetype(str(path))
    except (UnknownFileTypeError, UnicodeDecodeError, OSError):
        return None


def _sniffed(path: Path) -> str | None:
    """LAMMPS files by their content: ASE knows them by names that they seldom have."""
    with open(path, errors="replace") as file:
        head = [line.split("#")[0].split() for line in islice(file, 60)]
    if head and head[0][:2] == ["ITEM:", "TIMESTEP"]:
        return "lammps-dump-text"
    has_box = any(line[2:4] == ["xlo", "xhi"] for line in head)
    return "lammps-data" if has_box and any(line[1:] == ["atoms"] for line in head) else None


def _lammps_options(path: Path, found: str, species: Sequence[str] | None) -> dict[str, Any]:
    if species is None:
        if found == "lammps-dump-text" and _names_elements(path):
            return {}
        raise InputError(
            f"{path} is {found} and holds numbered types; name their elements, e.g. --species Al,Be"
        )
    unknown = [symbol for symbol in species if symbol not in atomic_numbers or symbol == "X"]
    if unknown:
        raise InputError(f"--species: {unknown[0]!r} is no element; element symbols such as Al,Be are needed")
    if found == "lammps-data":
        return {"Z_of_type": {i + 1: atomic_numbers[symbol] for i, symbol in enumerate(species)}}
    return {"specorder": list(species)}


def _names_elements(path: Path) -> bool:
    """Whether a dump has a column of element names."""
    with open(path, errors="replace") as file:
        for line in file:
            if line.startswith("ITEM: ATOMS"):
                return "element" in line.split()
    return False


def _key_problem(error: KeyError, found: str, species: Sequence[str] | None) -> str:
    if found in _LAMMPS and species is not None:
        return f"type {error.args[0]} has no element: --species names {len(species)}"
    return f"cannot be read as {found} ({error!r})"
