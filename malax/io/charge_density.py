"""The electron density that pw.x leaves in prefix.save: ``charge-density.dat`` or ``.hdf5``."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np

from malax.errors import FileError, InputError
from malax.grid import Grid
from malax.io.fortran import FortranFile, hdf5_flag
from malax.units import BOHR


def read_charge_density(save_dir: str | os.PathLike[str], grid: Grid) -> np.ndarray:
    """Electron density (nx, ny, nz) in 1/A^3 from ``charge-density.dat`` or ``.hdf5`` of a prefix.save.

    Parameters
    ----------
    grid : the dense FFT grid of the run (``PwRun.grid``)

    Raises
    ------
    FileError
        missing, truncated, not finite, spin-polarised, or waves that are not on the grid.
    """
    folder = Path(save_dir)
    for name, reader in (("charge-density.dat", _density_binary), ("charge-density.hdf5", _density_hdf5)):
        path = folder / name
        if path.is_file():
            gamma_only, n_spin, miller, coefficients = reader(path)
            if n_spin != 1:
                raise FileError(f"{path} is spin-polarised; malax knows unpolarised densities")
            try:
                return to_real_space(grid, miller, coefficients, gamma_only) / BOHR**3
            except InputError as error:
                raise FileError(f"{path}: {error}") from error
    raise FileError(
        f"{folder} has no charge-density.dat or charge-density.hdf5: keep the .save folder of pw.x"
    )


def to_real_space(grid: Grid, miller: np.ndarray, coefficients: np.ndarray, gamma_only: bool) -> np.ndarray:
    """Real field f(r) = sum_G c_G e^(iGr) of waves (n, 3) and coefficients (n,), by FFT.

    ``gamma_only``: only one of G and -G is listed.
    """
    if len(miller) == 0 or len(miller) != len(coefficients) or not np.isfinite(coefficients).all():
        raise InputError("plane-wave coefficients are missing or not finite")
    if (2 * np.abs(miller) > np.array(grid.shape)).any():
        raise InputError(f"plane waves up to {np.abs(miller).max(axis=0)} do not fit the grid {grid.shape}")
    field = np.zeros(grid.shape, dtype=np.complex128)
    field[tuple((miller % np.array(grid.shape)).T)] = coefficients
    if gamma_only:
        others = miller.any(axis=1)
        field[tuple((-miller[others] % np.array(grid.shape)).T)] = coefficients[others].conj()
    return np.ascontiguousarray(np.fft.ifftn(field).real) * grid.n_points


def _density_binary(path: Path) -> tuple[bool, int, np.ndarray, np.ndarray]:
    with FortranFile(path) as file:
        gamma_only, _, n_spin = file.read("i4")
        file.skip()
        miller = file.read("i4").reshape(-1, 3)
        return bool(gamma_only), int(n_spin), miller, file.read("c16")


def _density_hdf5(path: Path) -> tuple[bool, int, np.ndarray, np.ndarray]:
    try:
        with h5py.File(path, "r") as file:
            coefficients = file["rhotot_g"][()].reshape(-1).view(np.complex128)
            miller = file["MillerIndices"][()].reshape(-1, 3)
            return hdf5_flag(file.attrs["gamma_only"]), int(file.attrs["nspin"]), miller, coefficients
    except (OSError, KeyError, ValueError) as error:
        raise FileError(f"{path} is truncated or not a charge density of pw.x: {error}") from error
