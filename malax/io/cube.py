"""Cube files: one scalar field on a grid. `cube_series` reads the numbered LDOS series of pp.x.

Header: two comment lines; number of atoms and origin; per axis the number of points and the step
(bohr); the atoms; then the values, last axis fastest. Values have whatever unit the writer meant; lengths are
converted (bohr to Angstrom).
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from ase import Atoms

from malax.errors import FileError, InputError
from malax.grid import Grid
from malax.io.cube_text import fixed_columns
from malax.io.files import atomic_path
from malax.units import BOHR


@dataclass(frozen=True, eq=False)
class Cube:
    """A scalar field: comment lines, atoms, grid, origin (3,) in A, values (nx, ny, nz)."""

    comments: tuple[str, str]
    atoms: Atoms
    grid: Grid
    origin: np.ndarray
    values: np.ndarray


def read_cube(path: str | os.PathLike[str]) -> Cube:
    """Read a cube file of QE, Gaussian or malax. Values keep the file's unit.

    Raises
    ------
    FileError
        missing, truncated, several fields in one file, or not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise FileError(f"{path} does not exist; a cube file is needed")
    with open(path, "rb") as file:
        try:
            comments, atoms, grid, origin = _read_header(file)
        except (ValueError, IndexError, InputError) as error:
            raise FileError(f"{path} is not a cube file: {error}") from error
        start = file.tell()
        values = fixed_columns(file, grid.shape)
        if values is None:
            file.seek(start)
            values = _parse(file.read(), path)
    if values.size != grid.n_points:
        what = "is truncated" if values.size < grid.n_points else "holds more than one field"
        raise FileError(
            f"{path} {what}: {values.size} values where its grid {grid.shape} has {grid.n_points} points"
        )
    if not np.isfinite(values).all():
        raise FileError(f"{path} holds values that are not finite")
    return Cube(comments, atoms, grid, origin, values.reshape(grid.shape))


def _read_header(file) -> tuple[tuple[str, str], Atoms, Grid, np.ndarray]:
    comments = tuple(file.readline().decode(errors="replace").strip() for _ in range(2))
    first = file.readline().split()
    n_atoms, origin = int(first[0]), np.array(first[1:4], dtype=np.float64)
    axes = [line.split() for line in islice(file, 3)]
    counts = np.array([int(a[0]) for a in axes])
    # Gaussian: a negative number of points means that the lengths are in Angstrom
    unit = 1.0 if (counts < 0).all() else BOHR
    counts = np.abs(counts)
    steps = np.array([a[1:4] for a in axes], dtype=np.float64) * unit
    rows = np.array([line.split()[:5] for line in islice(file, abs(n_atoms))], dtype=np.float64).reshape(
        -1, 5
    )
    if len(rows) != abs(n_atoms):
        raise ValueError("the header ends early")
    if n_atoms < 0:
        file.readline()  # the numbers of the orbitals
    cell = steps * counts[:, None]
    atoms = Atoms(numbers=rows[:, 0].astype(int), positions=rows[:, 2:] * unit, cell=cell, pbc=True)
    return comments, atoms, Grid(cell, tuple(counts)), origin * unit  # type: ignore[return-value, arg-type]


def _parse(text: bytes, path: Path) -> np.ndarray:
    """Whitespace-separated numbers, parsed in C; FileError if something is no number."""
    try:
        return _numbers(text)
    except ValueError:
        pass
    try:
        # Fortran drops the E of three-digit exponents: 0.12345-102
        return _numbers(re.sub(rb"(\d)([-+]\d{3})\b", rb"\1E\2", text))
    except ValueError as error:
        raise FileError(f"{path} is truncated or damaged: it holds something that is no number") from error


def _numbers(text: bytes) -> np.ndarray:
    with warnings.catch_warnings():
        # numpy stops at what it cannot read, with this warning only
        warnings.simplefilter("error", DeprecationWarning)
        try:
            return np.fromstring(text, dtype=np.float64, sep=" ")
        except DeprecationWarning as error:
            raise ValueError(str(error)) from error


def write_cube(
    path: str | os.PathLike[str],
    atoms: Atoms,
    values: np.ndarray,
    comment: str = "",
    digits: int = 9,
    overwrite: bool = True,
) -> None:
    """Write a field (nx, ny, nz) on the cell's grid as a cube file (lengths in bohr, values as they are).

    Parameters
    ----------
    comment : first line
    digits : after the point

    Raises
    ------
    InputError
        values are not three-dimensional or not finite.
    FileError, MachineError
        see ``malax.io.files.atomic_path``.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 3 or not np.isfinite(values).all():
        raise InputError(f"a cube file needs a finite field (nx, ny, nz), got shape {values.shape}")
    nz = values.shape[2]
    form = "".join(value_forms(nz, digits))
    with atomic_path(path, overwrite) as temporary, open(temporary, "w") as file:
        file.write(header(atoms, values.shape, comment))
        for plane in values:
            file.write("".join(form % tuple(line) for line in plane.tolist()))


def header(atoms: Atoms, shape: Sequence[int], comment: str) -> str:
    """What stands before the values of a cube file on a grid (nx, ny, nz) of the cell."""
    # ASE and others look for the order of the loops in these words
    order = "OUTER LOOP: X, MIDDLE LOOP: Y, INNER LOOP: Z"
    lines = [comment.replace("\n", " ") or "scalar field, written by malax", order]
    lines.append(f"{len(atoms):5d}{0.0:14.8f}{0.0:14.8f}{0.0:14.8f}")
    for count, vector in zip(shape, atoms.cell.array / BOHR, strict=True):
        lines.append(f"{count:5d}" + "".join(f"{x / count:14.8f}" for x in vector))
    for number, position in zip(atoms.numbers, atoms.positions / BOHR, strict=True):
        lines.append(f"{number:5d}{float(number):14.8f}" + "".join(f"{x:14.8f}" for x in position))
    return "\n".join(lines) + "\n"


def value_forms(nz: int, digits: int = 9) -> list[str]:
    """How each value of a run along z is written: six to a line, a new line for each run."""
    row = f"%{digits + 8}.{digits}E"
    # six to a line, a new line for each run along z, as Gaussian does
    return [row + ("\n" if z % 6 == 5 or z == nz - 1 else "") for z in range(nz)]
