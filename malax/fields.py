"""Small tools for scalar fields on a periodic grid."""

from __future__ import annotations

import numpy as np

from malax.errors import InputError


def resample(field: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """A real field (nx, ny, nz) on another grid of the same cell, by Fourier interpolation.

    Plane waves that the new grid cannot hold are dropped; those that it adds are zero. A wave at the
    Nyquist frequency of an even axis is shared between +m and -m, so that a real field stays real.
    """
    if field.shape == tuple(shape):
        return field
    spectrum = np.fft.fftn(field)
    for axis, n in enumerate(shape):
        spectrum = _resized(spectrum, axis, n)
    scale = np.prod(shape) / field.size
    return np.ascontiguousarray(np.fft.ifftn(spectrum).real * scale)


def _resized(spectrum: np.ndarray, axis: int, n: int) -> np.ndarray:
    old = spectrum.shape[axis]
    if n == old:
        return spectrum
    s = np.moveaxis(spectrum, axis, 0)
    out = np.zeros((n, *s.shape[1:]), dtype=s.dtype)
    small = min(old, n)
    positive, negative = (small + 1) // 2, (small - 1) // 2
    out[:positive] = s[:positive]
    if negative:
        out[-negative:] = s[-negative:]
    if small % 2 == 0:
        half = small // 2
        if n > old:
            out[half] = out[-half] = s[half] / 2
        else:
            out[half] = (s[half] + s[-half]) / 2
    return np.moveaxis(out, 0, axis)


def percentage_error(density: np.ndarray, reference: np.ndarray) -> float:
    """(100/n) sum |dn|/|n| over points; vacuum, where a percentage means nothing, is left out."""
    there = np.abs(reference) > 1e-6 * np.abs(reference).max()
    return float(100 * np.mean(np.abs(density - reference)[there] / np.abs(reference[there])))


def plane(
    field: np.ndarray, cell: np.ndarray, axis: str, position: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A lattice plane of a field (nx, ny, nz) for plotting.

    Parameters
    ----------
    cell : (3, 3) rows, A
    axis : "x", "y" or "z": the plane holds the other two lattice vectors
    position : where the plane cuts the third, in fractions of it (the nearest grid plane is taken)

    Returns
    -------
    x, y : (m+1, n+1) coordinates in the plane in A, x along its first lattice vector
    values : (m+1, n+1), the last row and column repeating the first

    Raises
    ------
    InputError
        for another axis or a position that is not finite.
    """
    if axis not in ("x", "y", "z"):
        raise InputError(f"the axis of a slice is 'x', 'y' or 'z', got {axis!r}")
    if not np.isfinite(position):
        raise InputError(f"the position of a slice is a fraction of the cell, got {position}")
    cut = "xyz".index(axis)
    first, second = (i for i in range(3) if i != cut)
    n = field.shape[cut]
    values = np.take(field, int(np.floor(position * n + 0.5)) % n, axis=cut)
    values = np.pad(values, ((0, 1), (0, 1)), mode="wrap")
    u, v = cell[first], cell[second]
    length = np.linalg.norm(u)
    along = (u @ v) / length
    height = np.sqrt(max(v @ v - along**2, 0.0))
    s, t = np.meshgrid(*(np.linspace(0, 1, m) for m in values.shape), indexing="ij")
    return s * length + t * along, t * height, values
