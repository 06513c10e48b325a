"""The exchange-correlation energy of n + n_c and the integral of its potential over n."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from malax.energies.functionals import Functional, evaluate, find_functional
from malax.energies.sphere import GSphere, as_field
from malax.grid import Grid
from malax.units import BOHR, HARTREE

CHUNK = 1 << 13
"""Grid points per pass: about 40 temporaries of this size, which should fit a cache."""


def xc_energy(
    density: np.ndarray | torch.Tensor,
    core_density: np.ndarray | torch.Tensor | None,
    grid: Grid,
    functional: str = "PBE",
    ecutrho: float | None = None,
) -> tuple[float | torch.Tensor, float | torch.Tensor]:
    """E_xc[n + n_c] and int v_xc[n + n_c] n, both in eV.

    v_xc is the exact derivative of the energy on this grid, gradients being those of plane waves inside the
    sphere; so is QE's (but for points of negative density, see ``functionals.evaluate``).

    Parameters
    ----------
    density : (nx, ny, nz) valence electrons in 1/A^3
    core_density : the same of the core charge (NLCC), or None
    grid : the grid of both
    functional : "PZ", "PW", "PBE", "PBESOL", or any of QE's spellings
    ecutrho : cutoff of the plane waves in eV; None is the largest sphere inside the grid

    Returns
    -------
    Two floats for NumPy, two 0-d tensors (differentiable) for torch. InputError for another functional or a
    density that does not fit the grid.
    """
    chosen = find_functional(functional)
    field = as_field(density, grid)
    sphere = GSphere(grid, ecutrho, field.device)
    core = None
    if core_density is not None:
        core = sphere.coefficients(as_field(core_density, grid, "core density").to(field.device))
    exc, vxc_rho = exchange_correlation(sphere.coefficients(field), core, sphere, chosen)
    return (exc, vxc_rho) if isinstance(density, torch.Tensor) else (float(exc), float(vxc_rho))


def exchange_correlation(
    density: torch.Tensor, core: torch.Tensor | None, sphere: GSphere, functional: Functional
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same from plane-wave coefficients (nx, ny, nz//2+1) inside ``sphere``; 0-d tensors in eV.

    int v n = int (df/dn n + 2 df/dsigma grad(n + n_c) . grad n): no divergence is needed.
    """
    total = density if core is None else density + core
    n = sphere.field(density)
    n_total = n if core is None else sphere.field(total)
    fields = [n_total, n]
    if functional.is_gga:
        fields += _gradient_products(density, None if core is None else total, sphere)
    columns = [field.reshape(-1) for field in fields]
    differentiable = torch.is_grad_enabled() and any(column.requires_grad for column in columns)
    sums = torch.zeros(2, dtype=torch.float64, device=sphere.device)
    for start in range(0, columns[0].numel(), CHUNK):
        block = [column[start : start + CHUNK] for column in columns]
        if differentiable:
            # recomputed in the backward pass, or the temporaries of all points would be held
            sums = sums + checkpoint(sums_over_points, functional, *block, use_reentrant=False)
        else:
            sums = sums + sums_over_points(functional, *block)
    scale = HARTREE / BOHR**3 * sphere.grid.point_volume
    return sums[0] * scale, sums[1] * scale


def _gradient_products(
    density: torch.Tensor, total: torch.Tensor | None, sphere: GSphere
) -> list[torch.Tensor]:
    """|grad(n + n_c)|^2 and grad(n + n_c) . grad n, (nx, ny, nz) in 1/A^8; ``total`` None is n itself."""
    zero = torch.zeros(sphere.grid.shape, dtype=torch.float64, device=sphere.device)
    sigma, product = zero, zero
    for axis in range(3):
        slope = sphere.derivative(density, axis)
        slope_total = slope if total is None else sphere.derivative(total, axis)
        sigma = sigma + slope_total**2
        product = product + slope_total * slope
    return [sigma, product]


def sums_over_points(
    functional: Functional,
    n_total: torch.Tensor,
    n: torch.Tensor,
    sigma: torch.Tensor | None = None,
    product: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sums over points of f and of v n in Hartree/bohr^3; the arguments in powers of 1/A."""
    f, f_n, f_sigma = evaluate(functional, n_total * BOHR**3, None if sigma is None else sigma * BOHR**8)
    v_n = (f_n * n).sum() * BOHR**3
    if f_sigma is not None and product is not None:
        v_n = v_n + 2 * (f_sigma * product).sum() * BOHR**8
    return torch.stack([f.sum(), v_n])
