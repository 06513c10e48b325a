"""The electron density of pw.x in prefix.save, ``charge-density.dat`` or ``.hdf5``: read and written.

Both hold the plane waves of the density, rho(G) = 1/V int rho(r) e^(-iGr) dr in 1/bohr^3, in pw.x's own
order. pw.x looks at the order only, not at the Miller indices in the file, so a file for it must have exactly
that order (`sphere_of_waves`).
"""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np

from malax.errors import FileError, InputError
from malax.grid import Grid
from malax.io.files import atomic_path
from malax.io.fortran import FortranFile, hdf5_flag, write_record
from malax.units import BOHR, HARTREE

SAME_LENGTH = 1e-8
"""|G|^2 that differ by less, in units of (2 pi / alat)^2, are equal to pw.x when it sorts its waves."""


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


def write_charge_density(
    path: str | os.PathLike[str],
    cell: np.ndarray,
    miller: np.ndarray,
    coefficients: np.ndarray,
    *,
    gamma_only: bool = False,
    overwrite: bool = True,
) -> Path:
    """Write ``charge-density.dat`` (Fortran records) or, by its name, ``charge-density.hdf5``.

    Which of the two pw.x reads is decided when it is compiled (Debian's: .dat).

    Parameters
    ----------
    cell : (3, 3) A, rows
    miller : (n, 3) of `sphere_of_waves`
    coefficients : (n,) complex, 1/A^3

    Raises
    ------
    InputError
        another ending of the name, or arrays that do not fit each other.
    FileError, MachineError
        see `malax.io.files.atomic_path`.
    """
    path = Path(path)
    if path.suffix not in (".dat", ".hdf5"):
        raise InputError(f"{path}: pw.x reads charge-density.dat or charge-density.hdf5")
    if miller.shape != (len(coefficients), 3) or not np.isfinite(coefficients).all():
        raise InputError("plane waves and coefficients do not fit each other, or are not finite")
    miller = np.ascontiguousarray(miller, dtype="<i4")
    values = np.ascontiguousarray(coefficients * BOHR**3, dtype="<c16")
    reciprocal = np.ascontiguousarray(2 * np.pi * np.linalg.inv(np.asarray(cell) / BOHR).T, dtype="<f8")
    with atomic_path(path, overwrite) as temporary:
        if path.suffix == ".dat":
            with open(temporary, "wb") as file:
                write_record(file, np.array([gamma_only, len(miller), 1], dtype="<i4").tobytes())
                for array in (reciprocal, miller, values):
                    write_record(file, array.tobytes())
        else:
            with h5py.File(temporary, "w") as file:
                flag = np.bytes_(".TRUE." if gamma_only else ".FALSE.")
                file.attrs.update(gamma_only=flag, ngm_g=np.int32(len(miller)), nspin=np.int32(1))
                indices = file.create_dataset("MillerIndices", data=miller)
                for i, vector in enumerate(reciprocal):
                    indices.attrs[f"bg{i + 1}"] = vector
                file["rhotot_g"] = values.view("<f8")
    return path


def plane_waves(density: np.ndarray, miller: np.ndarray) -> np.ndarray:
    """Coefficients (n,) of the waves ``miller`` (n, 3) of a real field (nx, ny, nz), in the field's unit.

    Waves that the field's grid does not resolve (2 |m| >= n) get 0.
    """
    shape = np.array(density.shape)
    waves = np.fft.rfftn(density) / density.size
    resolved = (2 * np.abs(miller) < shape).all(axis=1)
    coefficients = np.zeros(len(miller), dtype=np.complex128)
    m = miller[resolved]
    # rfftn keeps the half with m_z >= 0; of the other half it has the conjugates
    turned = m[:, 2] < 0
    m = np.where(turned[:, None], -m, m) % shape
    found = waves[m[:, 0], m[:, 1], m[:, 2]]
    coefficients[resolved] = np.where(turned, found.conj(), found)
    return coefficients


def sphere_of_waves(cell: np.ndarray, ecutrho: float, gamma_only: bool = False) -> np.ndarray:
    """Miller indices (n, 3) int32 of all waves with |G|^2 <= ecutrho, in the order of pw.x.

    pw.x (subroutine ggen) runs over the first, second, third index, each ascending, and sorts by |G|^2;
    waves whose |G|^2 agree to `SAME_LENGTH` stay as they came. ``gamma_only``: of G and -G that whose first
    index that is not 0 is positive.

    Parameters
    ----------
    cell : (3, 3) A, rows, as pw.x gets it: its first row is pw.x's unit of length (ibrav = 0)
    ecutrho : eV
    """
    vectors = np.asarray(cell, dtype=np.float64) / BOHR
    alat = float(np.linalg.norm(vectors[0]))
    reciprocal = np.linalg.inv(vectors).T * alat
    # hbar^2 G^2 / 2m <= ecutrho; in Hartree atomic units G^2 / 2
    largest = 2 * ecutrho / HARTREE / (2 * np.pi / alat) ** 2
    ends = np.floor(np.sqrt(largest) * np.linalg.norm(vectors, axis=1) / alat).astype(int)
    ranges = [np.arange(-n, n + 1) for n in ends]
    found, lengths = [], []
    for i in ranges[0] if not gamma_only else range(ends[0] + 1):
        j, k = np.meshgrid(ranges[1], ranges[2], indexing="ij")
        m = np.stack([np.full(j.size, i), j.ravel(), k.ravel()], axis=-1)
        if gamma_only and i == 0:
            m = m[(m[:, 1] > 0) | ((m[:, 1] == 0) & (m[:, 2] >= 0))]
        g = m[:, :1] * reciprocal[0] + m[:, 1:2] * reciprocal[1] + m[:, 2:] * reciprocal[2]
        square = (g**2).sum(axis=1)
        inside = square <= largest
        found.append(m[inside])
        lengths.append(square[inside])
    miller, squares = np.concatenate(found), np.concatenate(lengths)
    rising = np.argsort(squares, kind="stable")
    shell = np.empty(len(squares), dtype=np.int64)
    shell[rising] = np.cumsum(np.diff(squares[rising], prepend=-1.0) >= SAME_LENGTH)
    return miller[np.argsort(shell, kind="stable")].astype(np.int32)
