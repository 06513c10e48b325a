"""Cube files: one scalar field on a grid, and the numbered LDOS series of pp.x.

Header: two comment lines; number of atoms and origin; per axis the number of points and the step
(bohr); the atoms; then the values, last axis fastest. Values have whatever unit the writer meant; this
module converts lengths only (bohr to Angstrom) and, for the LDOS series, 1/(Ry bohr^3) to 1/(eV A^3).
"""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from ase import Atoms

from malax.errors import FileError, InputError
from malax.grid import Grid
from malax.io.files import atomic_path
from malax.units import BOHR, RYDBERG

LDOS_UNIT = 1.0 / (RYDBERG * BOHR**3)
"""pp.x writes the LDOS in 1/(Ry bohr^3)."""


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
    # ASE and others look for the order of the loops in these words
    order = "OUTER LOOP: X, MIDDLE LOOP: Y, INNER LOOP: Z"
    lines = [comment.replace("\n", " ") or "scalar field, written by malax", order]
    lines.append(f"{len(atoms):5d}{0.0:14.8f}{0.0:14.8f}{0.0:14.8f}")
    for count, vector in zip(values.shape, atoms.cell.array / BOHR, strict=True):
        lines.append(f"{count:5d}" + "".join(f"{x / count:14.8f}" for x in vector))
    for number, position in zip(atoms.numbers, atoms.positions / BOHR, strict=True):
        lines.append(f"{number:5d}{float(number):14.8f}" + "".join(f"{x:14.8f}" for x in position))
    nz = values.shape[2]
    row = f"%{digits + 8}.{digits}E"
    # six to a line, a new line for each run along z, as Gaussian does
    form = "\n".join(row * min(6, nz - start) for start in range(0, nz, 6))
    with atomic_path(path, overwrite) as temporary, open(temporary, "w") as file:
        file.write("\n".join(lines) + "\n")
        for plane in values:
            file.write("\n".join(form % tuple(line) for line in plane.tolist()) + "\n")


def find_series(folder: str | os.PathLike[str]) -> list[Path]:
    """The numbered LDOS cubes of pp.x in a folder, sorted by number; empty if there are none.

    A file counts if its header is that of an LDOS cube and its name has a number (``tmp.pp001Al.cube``:
    padded to at least three digits, so names do not sort).

    Raises
    ------
    FileError
        several series, or a number that is missing in the series.
    """
    series: dict[tuple[str, ...], list[tuple[tuple[int, ...], Path]]] = {}
    for path in Path(folder).iterdir():
        parts = re.split(r"(\d+)", path.name)
        if len(parts) > 1 and path.is_file() and _title(path) is not None:
            key = tuple(parts[::2])
            series.setdefault(key, []).append((tuple(int(p) for p in parts[1::2]), path))
    if not series:
        return []
    (_, members), *more = series.items()
    numbers = np.array([n for n, _ in members])
    varying = np.flatnonzero(np.ptp(numbers, axis=0))
    if more or len(varying) > 1:
        raise FileError(f"{folder} has more than one series of LDOS cubes: leave one")
    by_number = {int(n[varying[0] if len(varying) else -1]): path for n, path in members}
    missing = sorted(set(range(min(1, *by_number), max(by_number) + 1)) - set(by_number))
    if missing:
        raise FileError(
            f"{folder}: LDOS cube {missing[0]:03d} is missing in the series like {members[0][1].name}"
        )
    return [by_number[number] for number in sorted(by_number)]


def _title(path: Path) -> tuple[float, float | None] | None:
    """Energy and broadening (eV) in the second line of an LDOS cube of pp.x; None for other files."""
    with open(path, "rb") as file:
        file.readline(400)
        text = file.readline(400).decode(errors="replace")
    energy = re.search(r"Energy\s*=\s*([-+.\dEe]+)", text)
    broadening = re.search(r"broadening\s*=\s*([-+.\dEe]+)", text)
    if not energy:
        return None
    return float(energy.group(1)), float(broadening.group(1)) if broadening else None


def series_broadening(paths: list[Path]) -> float | None:
    """The broadening sigma (eV) that the headers of a series give; None if they do not."""
    title = _title(paths[0])
    return None if title is None else title[1]


def read_ldos_series(
    paths: list[Path], grid: Grid, stride: int = 1, highest: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Energies (E,) in eV and LDOS (nx', ny', nz', E) float32 in 1/(eV A^3) of a series of cubes.

    Parameters
    ----------
    grid : the run's FFT grid, which each cube must have
    stride : keep every stride-th point in each direction
    highest : energy up to which the series must go (emax of pp.x's input)

    Raises
    ------
    FileError
        a cube is truncated, not finite, on another grid or cell, out of order, or missing at the end.
    """
    shape = tuple(-(-n // stride) for n in grid.shape)
    energies, values = np.empty(len(paths)), np.empty((*shape, len(paths)), dtype=np.float32)
    for index, path in enumerate(paths):
        title = _title(path)
        if title is None:
            raise FileError(
                f"{path}: no energy in the second line; LDOS cubes of pp.x (plot_num=3) are needed"
            )
        cube = read_cube(path)
        # cube files hold the step with 6 decimals, so the cell is good to n times that
        cells = np.abs(cube.grid.cell - grid.cell).max()
        if cube.grid.shape != grid.shape or cells > 2e-6 * max(grid.shape):
            raise FileError(
                f"{path}: grid {cube.grid.shape} or cell do not match the run's grid {grid.shape} and cell"
            )
        energies[index] = title[0]
        values[..., index] = cube.values[::stride, ::stride, ::stride] * LDOS_UNIT
    energies = _even(energies, paths)
    if highest is not None and energies[-1] < highest - 1e-3:
        raise FileError(
            f"{paths[-1]}: the series of LDOS cubes ends here, at {energies[-1]:g} eV, but the input of pp.x "
            f"asks for {highest:g} eV: the cubes after it are missing"
        )
    return energies, values


def _even(energies: np.ndarray, paths: list[Path]) -> np.ndarray:
    """The printed energies as an exactly even grid; FileError that names the first cube out of step."""
    if len(energies) < 3:
        raise FileError(f"{paths[0].parent}: only {len(energies)} LDOS cubes; 3 or more are needed")
    step = (energies[-1] - energies[0]) / (len(energies) - 1)
    even = energies[0] + step * np.arange(len(energies))
    wrong = np.flatnonzero(np.abs(energies - even) > 0.02 * abs(step))
    if step <= 0 or len(wrong):
        first = paths[int(wrong[0]) if len(wrong) else 0]
        raise FileError(f"{first}: its energy is out of step with the other LDOS cubes")
    return even
