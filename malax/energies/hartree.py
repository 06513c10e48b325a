"""The Hartree energy: electrons as a classical charge cloud, without its mean (G = 0)."""

from __future__ import annotations

import math

import numpy as np
import torch

from malax.energies.sphere import GSphere, as_field
from malax.grid import Grid
from malax.units import COULOMB


def hartree_energy(
    density: np.ndarray | torch.Tensor, grid: Grid, ecutrho: float | None = None
) -> float | torch.Tensor:
    """E_H = 2 pi e^2 V sum_{G != 0} |n(G)|^2 / |G|^2 in eV.

    Parameters
    ----------
    density : (nx, ny, nz) in 1/A^3
    grid : the grid it is given on
    ecutrho : cutoff of the plane waves in eV; None is the largest sphere inside the grid

    Returns
    -------
    A float for NumPy, a 0-d tensor (differentiable) for torch. InputError for a density that does not
    fit the grid or is not finite.
    """
    field = as_field(density, grid)
    sphere = GSphere(grid, ecutrho, field.device)
    energy = hartree(sphere.coefficients(field), sphere)
    return energy if isinstance(density, torch.Tensor) else float(energy)


def hartree(coefficients: torch.Tensor, sphere: GSphere) -> torch.Tensor:
    """The same from plane-wave coefficients of the density inside ``sphere``; 0-d tensor in eV."""
    g2 = sphere.g2.clone()
    g2[0, 0, 0] = 1.0
    kernel = sphere.weights / g2
    kernel[0, 0, 0] = 0.0
    power = coefficients.real**2 + coefficients.imag**2
    return 2 * math.pi * COULOMB * sphere.grid.volume * (power * kernel).sum()
