"""The LDOS straight from pw.x's wavefunctions (``wfcN.dat`` or ``wfcN.hdf5`` in ``prefix.save``).

    d(eps, r) = sum_nk w_nk |psi_nk(r)|^2 K(eps - eps_nk),      the weights of all k summing to 2

in one pass over k, for norm-conserving pseudopotentials (with others |psi|^2 lacks the augmentation).
It replaces one pass of pp.x per energy, its 5-digit cubes, and its kernel, which depends on the smearing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch

from malax.errors import FileError, InputError
from malax.grid import Grid
from malax.io.fortran import FortranFile, hdf5_flag
from malax.io.pw_run import PwRun, broaden
from malax.io.symmetry import SymmetryMaps

MEMORY = 4 << 30
"""Bytes for the block of the LDOS that is accumulated at a time; more points mean more passes over k."""
BATCH = 64 << 20
"""Bytes of the wavefunctions in real space that are held at a time."""
DENSITY_TOLERANCE = 2e-3
"""Relative mean deviation of the density of the wavefunctions from the run's that is refused. Converged
runs have 1e-6; wavefunctions of another run, or symmetries read wrongly, several per cent."""


@dataclass(frozen=True, eq=False)
class Bands:
    """Wavefunctions of one k-point: psi_n(r) = sum_G c_nG e^(i(k+G)r) / sqrt(V), sum_G |c_nG|^2 = 1."""

    miller: np.ndarray
    """(G, 3) int"""
    coefficients: np.ndarray
    """(bands, G) complex64"""


def read_bands(path: Path, n_bands: int) -> Bands:
    """Read one ``wfcN.dat`` or ``wfcN.hdf5``.

    FileError if truncated, not finite, noncollinear, or with another number of bands.
    """
    reader = _read_hdf5 if path.suffix == ".hdf5" else _read_binary
    miller, coefficients, gamma_only, spinors = reader(path)
    if spinors != 1:
        raise FileError(f"{path} holds spinors; malax knows unpolarised wavefunctions")
    if coefficients.shape != (n_bands, len(miller)):
        raise FileError(
            f"{path} has {coefficients.shape[0]} bands of {coefficients.shape[1]} waves; the XML has "
            f"{n_bands} bands and the file's own list {len(miller)} waves: it belongs to another run"
        )
    if not np.isfinite(coefficients).all():
        raise FileError(f"{path} holds values that are not finite")
    if gamma_only:
        # only one of G and -G is stored; psi is real
        others = miller.any(axis=1)
        miller = np.concatenate([miller, -miller[others]])
        coefficients = np.concatenate([coefficients, coefficients[:, others].conj()], axis=1)
    return Bands(miller, coefficients)


def _read_binary(path: Path) -> tuple[np.ndarray, np.ndarray, bool, int]:
    with FortranFile(path) as file:
        head = file.read("i4")  # ik, xk(3) doubles, ispin, gamma_only, scale factor
        if len(head) != 11:
            raise FileError(f"{path} is not a wavefunction file of pw.x 6.4 or newer")
        gamma_only, scale = bool(head[8]), head[9:11].view("f8")[0]
        _, n_waves, spinors, n_bands = (int(n) for n in file.read("i4"))
        file.skip()
        miller = file.read("i4").reshape(-1, 3)
        coefficients = np.empty((n_bands, spinors * n_waves), dtype=np.complex64)
        for band in range(n_bands):
            values = file.read("c16")
            if len(values) != coefficients.shape[1]:
                raise FileError(f"{path}: band {band + 1} has {len(values)} waves, expected {n_waves}")
            coefficients[band] = values
    if scale != 1.0:
        coefficients *= scale
    return miller, coefficients, gamma_only, spinors


def _read_hdf5(path: Path) -> tuple[np.ndarray, np.ndarray, bool, int]:
    try:
        with h5py.File(path, "r") as file:
            miller = file["MillerIndices"][()].reshape(-1, 3)
            values = np.ascontiguousarray(file["evc"][()], dtype=np.float64)
            coefficients = values.reshape(len(values), -1).view(np.complex128) * file.attrs["scale_factor"]
            return (
                miller,
                coefficients.astype(np.complex64),
                hdf5_flag(file.attrs["gamma_only"]),
                int(file.attrs["npol"]),
            )
    except (OSError, KeyError, ValueError) as error:
        raise FileError(f"{path} is truncated or not a wavefunction file of pw.x: {error}") from error


def wavefunction_files(run: PwRun, save_dir: str | os.PathLike[str]) -> list[Path]:
    """The wavefunction file of each k-point in order; FileError that names the first one missing."""
    folder, paths = Path(save_dir), []
    for k in range(1, len(run.weights) + 1):
        found = [p for p in (folder / f"wfc{k}.dat", folder / f"wfc{k}.hdf5") if p.is_file()]
        if not found:
            raise FileError(
                f"{folder} has no wfc{k}.dat or wfc{k}.hdf5 ({len(run.weights)} k-points): run pw.x with "
                "disk_io='low' or more and keep its .save folder, or make cubes with pp.x"
            )
        paths.append(found[0])
    return paths


def ldos_blocks(
    run: PwRun,
    save_dir: str | os.PathLike[str],
    energies: np.ndarray,
    sigma: float,
    *,
    kernel: str = "gaussian",
    stride: int = 1,
    density: np.ndarray | None = None,
    memory: int = MEMORY,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[np.ndarray]:
    """Blocks (nx', ny, nz, E) float32 in 1/(eV A^3) of the LDOS, in C order of the grid's points.

    Parameters
    ----------
    energies : (E,) eV
    kernel, sigma : see ``espresso.broaden``; eV
    stride : keep every stride-th point of the run's FFT grid in each direction. Values there are exact:
        the waves are folded onto the coarser grid.
    density : (nx, ny, nz) in 1/A^3 on the run's grid; if given, the density of the occupied
        wavefunctions must equal it
    memory : bytes of LDOS accumulated at a time
    progress : called with (k-points done, all) after each k-point

    Raises
    ------
    InputError
        a stride that does not divide the grid.
    FileError
        missing or truncated wavefunctions, or ones that do not belong to the run.
    """
    grid = strided_grid(run, stride)
    paths = wavefunction_files(run, save_dir)
    maps = SymmetryMaps(run, grid)
    nx, ny, nz = grid.shape
    slab = max(1, min(nx, memory // (4 * ny * nz * (len(energies) + 1))))
    n_passes, deviation = -(-nx // slab), 0.0
    for number, x0 in enumerate(range(0, nx, slab)):
        x1 = min(nx, x0 + slab)
        total = torch.zeros((x1 - x0) * ny * nz, len(energies) + 1)
        for k, path in enumerate(paths):
            bands = read_bands(path, run.eigenvalues.shape[1])
            # one more column than energies: the occupations, whose LDOS is the density
            columns = torch.from_numpy(_columns(run, k, energies, kernel, sigma))
            for start, squares in _squares(bands, grid, maps):
                total.addmm_(squares[:, x0 * ny * nz : x1 * ny * nz].T, columns[start : start + len(squares)])
            if progress is not None:
                progress(number * len(paths) + k + 1, n_passes * len(paths))
        values = total.numpy()
        if density is not None:
            expected = density[::stride, ::stride, ::stride][x0:x1].reshape(-1)
            deviation += float(np.abs(values[:, -1] - expected).sum()) * grid.point_volume / run.n_electrons
            if deviation > DENSITY_TOLERANCE:
                raise FileError(
                    f"{Path(save_dir)}: the density of the wavefunctions differs from the charge density by "
                    f"{100 * deviation:.2f} % or more: they belong to different runs"
                )
        yield np.ascontiguousarray(values[:, :-1]).reshape(x1 - x0, ny, nz, -1)


def strided_grid(run: PwRun, stride: int) -> Grid:
    """Every stride-th point of the run's FFT grid; InputError if the stride does not divide it."""
    if stride < 1 or any(n % stride for n in run.fft_shape):
        raise InputError(
            f"a stride of {stride} does not divide the FFT grid {run.fft_shape}: choose a divisor"
        )
    return Grid(run.atoms.cell.array, tuple(n // stride for n in run.fft_shape))  # type: ignore[arg-type]


def _columns(run: PwRun, k: int, energies: np.ndarray, kernel: str, sigma: float) -> np.ndarray:
    """Factors (bands, E + 1) of |psi|^2 V: w K(eps - eps_nk) / V, and w f / V last."""
    broadened = broaden(run.eigenvalues[k], energies, kernel, sigma)
    factors = np.concatenate([broadened, run.occupation_numbers[k][:, None]], axis=1)
    return (factors * (run.weights[k] / run.grid.volume)).astype(np.float32)


def _squares(bands: Bands, grid: Grid, maps: SymmetryMaps) -> Iterator[tuple[int, torch.Tensor]]:
    """Batches (first band, |sum_G c_G e^iGr|^2 (bands, points) float32), symmetrised."""
    nx, ny, nz = grid.shape
    m = bands.miller % np.array(grid.shape)
    flat = torch.from_numpy((m[:, 0] * ny + m[:, 1]) * nz + m[:, 2])
    coefficients = torch.from_numpy(bands.coefficients)
    batch = max(1, BATCH // (8 * grid.n_points))
    for start in range(0, len(coefficients), batch):
        part = coefficients[start : start + batch]
        field = torch.zeros(len(part), grid.n_points, dtype=torch.complex64)
        # add, not set: on a strided grid several waves fold onto one
        field.index_add_(1, flat, part)
        psi = torch.fft.ifftn(field.reshape(-1, nx, ny, nz), dim=(1, 2, 3), norm="forward").reshape(
            len(part), -1
        )
        yield start, maps.average(psi.real.square() + psi.imag.square())
