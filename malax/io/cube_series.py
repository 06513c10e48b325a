"""The LDOS as pp.x writes it: one text cube per energy, numbered. Hundreds of files, transposed on the way.

Cubes have one energy each, a snapshot has all energies of a point together. The cubes are read by several
threads into a file (energies, points) of float32, which is then read block by block of points: what is in
memory at a time is a few cubes, or one block.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from malax.errors import FileError, MachineError
from malax.grid import Grid
from malax.io.cube import read_cube
from malax.units import BOHR, RYDBERG

LDOS_UNIT = 1.0 / (RYDBERG * BOHR**3)
"""pp.x writes the LDOS in 1/(Ry bohr^3)."""
BLOCK = 32 << 20
"""Bytes of the LDOS that are handed on at a time."""


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
        if len(parts) > 1 and path.is_file() and title(path) is not None:
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


def title(path: Path) -> tuple[float, float | None] | None:
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
    said = title(paths[0])
    return None if said is None else said[1]


@dataclass
class CubeSeries:
    """A series of cubes that has been read: energies (E,) in eV and sums over the points, 1/(eV A^3).

    ``blocks`` gives the LDOS (points, E) float32 in C order of the points, once. `close` is for those whose
    blocks are never asked for.
    """

    energies: np.ndarray
    sums: np.ndarray
    shape: tuple[int, int, int]
    spool: IO[bytes]

    def close(self) -> None:
        """Let go of the file behind it."""
        self.spool.close()

    def blocks(self) -> Iterator[np.ndarray]:
        """The LDOS block by block; the file behind it is gone afterwards."""
        n_points, n_energies = int(np.prod(self.shape)), len(self.energies)
        rows = max(1, BLOCK // (4 * n_energies))
        with self.spool as file:
            for start in range(0, n_points, rows):
                count = min(rows, n_points - start)
                block = np.empty((n_energies, count), dtype=np.float32)
                for index in range(n_energies):
                    place = 4 * (index * n_points + start)
                    block[index] = np.frombuffer(os.pread(file.fileno(), 4 * count, place), np.float32)
                yield np.ascontiguousarray(block.T)


def open_series(
    paths: list[Path],
    grid: Grid,
    stride: int = 1,
    highest: float | None = None,
    *,
    folder: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CubeSeries:
    """Read a series of cubes, several at a time.

    Parameters
    ----------
    grid : the run's FFT grid, which each cube must have
    stride : keep every stride-th point in each direction
    highest : energy up to which the series must go (emax of pp.x's input)
    folder : where the intermediate file goes (4 bytes per point and energy, gone at the end); None is
        that of the cubes
    threads : None is one per core
    progress : is called with (cubes done, all)

    Raises
    ------
    FileError
        a cube is truncated, not finite, on another grid or cell, out of order, or missing at the end.
    MachineError
        the disk cannot take the intermediate file.
    """
    shape = tuple(-(-n // stride) for n in grid.shape)
    n_points, done = int(np.prod(shape)), 0
    energies, sums = np.empty(len(paths)), np.empty(len(paths))
    spool = tempfile.TemporaryFile(dir=paths[0].parent if folder is None else folder)  # noqa: SIM115

    def convert(index: int) -> None:
        energies[index], values = ldos_values(paths[index], grid, stride)
        sums[index] = values.sum(dtype=np.float64)
        os.pwrite(spool.fileno(), values.data, 4 * n_points * index)

    try:
        with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
            for _ in pool.map(convert, range(len(paths))):
                done += 1
                if progress is not None:
                    progress(done, len(paths))
        energies = _even(energies, paths)
        _check_end(energies, highest, paths)
    except OSError as error:
        spool.close()
        raise MachineError(f"cannot write beside {paths[0]}: {error.strerror or error}") from error
    except BaseException:
        spool.close()
        raise
    return CubeSeries(energies, sums, shape, spool)  # type: ignore[arg-type]


def _check_end(energies: np.ndarray, highest: float | None, paths: list[Path]) -> None:
    """FileError unless a series goes up to what pp.x was asked for."""
    # inputs ask for a bit more, since pp.x rounds the number of steps down
    if highest is not None and energies[-1] < highest - 0.5 * (energies[1] - energies[0]):
        raise FileError(
            f"{paths[-1]}: the series of LDOS cubes ends here, at {energies[-1]:g} eV, but the input of pp.x "
            f"asks for {highest:g} eV: the cubes after it are missing"
        )


def ldos_values(path: Path, grid: Grid, stride: int) -> tuple[float, np.ndarray]:
    """Energy (eV) and values (points,) float32 in 1/(eV A^3) of one cube."""
    said = title(path)
    if said is None:
        raise FileError(f"{path}: no energy in the second line; LDOS cubes of pp.x (plot_num=3) are needed")
    cube = read_cube(path)
    # cube files hold the step with 6 decimals, so the cell is good to n times that
    cells = np.abs(cube.grid.cell - grid.cell).max()
    if cube.grid.shape != grid.shape or cells > 2e-6 * max(grid.shape):
        raise FileError(
            f"{path}: grid {cube.grid.shape} or cell do not match the run's grid {grid.shape} and cell"
        )
    kept = cube.values[::stride, ::stride, ::stride]
    values = np.empty(kept.shape, dtype=np.float32)
    np.multiply(kept, LDOS_UNIT, out=values, casting="same_kind")  # in double, without an array of them
    return said[0], values.reshape(-1)


def read_ldos_series(
    paths: list[Path], grid: Grid, stride: int = 1, highest: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Energies (E,) in eV and the whole LDOS (nx', ny', nz', E) float32 in 1/(eV A^3): see `open_series`."""
    series = open_series(paths, grid, stride, highest)
    return series.energies, np.concatenate(list(series.blocks())).reshape(*series.shape, -1)


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
