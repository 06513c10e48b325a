"""Fields as plane waves inside a sphere |G|^2 <= ecutrho: what a plane-wave DFT code keeps.

Coefficients have the layout of ``torch.fft.rfftn`` (nx, ny, nz//2+1) and are normalised so that
f(r) = sum_G f(G) exp(i G r).
"""

from __future__ import annotations

import math

import numpy as np
import torch

from malax.errors import InputError
from malax.grid import Grid, fft_friendly
from malax.units import BOHR, COULOMB

KINETIC = COULOMB * BOHR / 2
"""hbar^2 / 2 m_e in eV A^2: |G|^2 in 1/A^2 times this is a cutoff energy."""

_LARGEST_REFINEMENT = 4
"""A grid that would need this many times its points along an axis is refused, not refined."""


class GSphere:
    """The plane waves of a grid with hbar^2 |G|^2 / 2m <= ecutrho.

    Parameters
    ----------
    grid : the real-space grid
    ecutrho : cutoff in eV; None is the largest sphere inside the grid
    device : where fields and coefficients live

    Attributes
    ----------
    grid, device : as given
    g2 : (nx, ny, nz//2+1) float64, |G|^2 in 1/A^2
    inside : (nx, ny, nz//2+1) bool
    waves : the integers mx (nx,), my (ny,), mz (nz//2+1,) as float64: G = mx b1 + my b2 + mz b3
    weights : (nz//2+1,) how many waves, +G and -G, a coefficient stands for

    Raises
    ------
    InputError
        ``ecutrho`` is not positive, or the grid is too coarse for it.
    """

    def __init__(self, grid: Grid, ecutrho: float | None = None, device: torch.device | str = "cpu") -> None:
        self.grid = grid
        self.device = torch.device(device)
        self.g2_max = cutoff_g2(grid, ecutrho)
        nx, ny, nz = grid.shape
        self.waves = (
            torch.fft.fftfreq(nx, 1.0 / nx, dtype=torch.float64, device=device),
            torch.fft.fftfreq(ny, 1.0 / ny, dtype=torch.float64, device=device),
            torch.fft.rfftfreq(nz, 1.0 / nz, dtype=torch.float64, device=device),
        )
        self.g2 = self.component(0) ** 2 + self.component(1) ** 2 + self.component(2) ** 2
        self.inside = self.g2 <= self.g2_max
        self.weights = torch.full((nz // 2 + 1,), 2.0, dtype=torch.float64, device=device)
        self.weights[0] = 1.0
        # the Nyquist plane of an even nz needs no weight of its own: it lies outside of every sphere

    def component(self, axis: int) -> torch.Tensor:
        """Cartesian component ``axis`` of all G, (nx, ny, nz//2+1) in 1/A."""
        mx, my, mz = (m * float(b) for m, b in zip(self.waves, self.grid.reciprocal[:, axis], strict=True))
        return mx[:, None, None] + my[None, :, None] + mz[None, None, :]

    def coefficients(self, field: torch.Tensor) -> torch.Tensor:
        """Plane-wave coefficients of a field (nx, ny, nz); zero outside of the sphere."""
        return torch.fft.rfftn(field, norm="forward") * self.inside

    def field(self, coefficients: torch.Tensor) -> torch.Tensor:
        """The field (nx, ny, nz) of these coefficients."""
        return torch.fft.irfftn(coefficients, s=self.grid.shape, norm="forward")

    def derivative(self, coefficients: torch.Tensor, axis: int) -> torch.Tensor:
        """The field (nx, ny, nz) of the derivative along Cartesian ``axis``, in 1/A."""
        return self.field(coefficients * (1j * self.component(axis)))


def as_field(density: np.ndarray | torch.Tensor, grid: Grid, what: str = "density") -> torch.Tensor:
    """``density`` as a float64 tensor on its own device, checked against the grid.

    Raises
    ------
    InputError
        it is not real, has another shape than the grid, or is not finite.
    """
    field = torch.as_tensor(density)
    if field.is_complex() or field.dtype == torch.bool:
        raise InputError(f"the {what} must be real numbers, got {field.dtype}")
    field = field.to(torch.float64)
    if tuple(field.shape) != grid.shape:
        raise InputError(f"the {what} has shape {tuple(field.shape)}, the grid has {grid.shape}")
    if not torch.isfinite(field).all():
        bad = int((~torch.isfinite(field)).sum())
        raise InputError(f"the {what} is not finite at {bad} of {field.numel()} grid points")
    return field


def refined_grid(grid: Grid, ecutrho: float) -> Grid:
    """``grid``, or the smallest FFT-friendly finer grid that holds the sphere ``ecutrho`` (eV).

    Raises
    ------
    InputError
        more than 4 times the points along an axis would be needed.
    """
    if ecutrho / KINETIC <= grid.largest_sphere:
        return grid
    lengths = np.linalg.norm(grid.cell, axis=1)
    m_max = np.floor(math.sqrt(ecutrho / KINETIC) * lengths / (2 * math.pi) + 1e-9)
    needed = [max(old, fft_friendly(int(2 * m + 1))) for old, m in zip(grid.shape, m_max, strict=True)]
    if any(new > _LARGEST_REFINEMENT * old for new, old in zip(needed, grid.shape, strict=True)):
        raise InputError(
            f"the grid {grid.shape} is too coarse for ecutrho = {ecutrho:.6g} eV, which needs "
            f"{tuple(needed)} points; give a finer density or a smaller ecutrho"
        )
    return Grid(grid.cell, (needed[0], needed[1], needed[2]))


def interpolate(field: torch.Tensor, shape: tuple[int, int, int]) -> torch.Tensor:
    """Trigonometric interpolation of a real field (nx, ny, nz) onto a grid that is nowhere coarser.

    The waves of the old grid are kept and none is added, so sums over the cell do not change. A
    Nyquist wave (even old size) becomes the cosine that has its values on the old points.
    """
    for axis, (old, new) in enumerate(zip(field.shape, shape, strict=True)):
        if new == old:
            continue
        waves = torch.fft.rfft(field, dim=axis, norm="forward")
        if old % 2 == 0:
            # for the old grid the last wave counted once, on the new grid it and its conjugate count
            factor = torch.ones(waves.shape[axis], dtype=torch.float64, device=field.device)
            factor[-1] = 0.5
            waves = waves * factor.reshape([-1 if a == axis else 1 for a in range(3)])
        field = torch.fft.irfft(waves, n=new, dim=axis, norm="forward")
    return field


def cutoff_g2(grid: Grid, ecutrho: float | None) -> float:
    """The largest |G|^2 in 1/A^2."""
    if ecutrho is None:
        return grid.largest_sphere
    if not (math.isfinite(ecutrho) and ecutrho > 0):
        raise InputError(f"ecutrho must be a positive energy in eV, got {ecutrho}")
    if ecutrho / KINETIC > grid.largest_sphere:
        raise InputError(
            f"the grid {grid.shape} is too coarse for ecutrho = {ecutrho:.6g} eV: its largest sphere is "
            f"{grid.largest_sphere * KINETIC:.6g} eV"
        )
    # a hair of tolerance: a wave exactly on the sphere belongs to it whatever the rounding
    return ecutrho / KINETIC * (1 + 1e-10)
