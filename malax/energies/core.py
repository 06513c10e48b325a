"""The core charge n_c of the nonlinear core correction, on the grid.

n_c(G) = sum_species f_s(|G|) S_s(G), where f_s is the radial Fourier transform of the pseudopotential's core
charge, by Quantum ESPRESSO's Simpson rule to 10 bohr, and S_s the structure factor.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from ase import Atoms

from malax.energies.sphere import GSphere
from malax.energies.structure_factor import structure_factors
from malax.errors import InputError
from malax.grid import Grid, same_cell
from malax.io.upf import RADIAL_CUTOFF, Pseudopotential

_CHUNK = 1 << 16


def core_density(
    atoms: Atoms,
    grid: Grid,
    pseudopotentials: dict[str, Pseudopotential],
    ecutrho: float | None = None,
) -> np.ndarray:
    """Core charge density (nx, ny, nz) in 1/A^3; zero where no pseudopotential has an NLCC.

    Parameters
    ----------
    atoms : the structure; its cell must be the grid's
    grid : where the density is wanted
    pseudopotentials : element -> parsed pseudopotential
    ecutrho : cutoff of its plane waves in eV; None is the largest sphere inside the grid

    Raises
    ------
    InputError
        the cell is not the grid's, or an element has no pseudopotential.
    """
    if not same_cell(atoms.cell.array, grid.cell):
        raise InputError("the grid does not belong to the structure: their cells differ")
    sphere = GSphere(grid, ecutrho)
    coefficients = core_coefficients(
        torch.as_tensor(atoms.positions), atoms.get_chemical_symbols(), sphere, pseudopotentials
    )
    if coefficients is None:
        return np.zeros(grid.shape)
    return sphere.field(coefficients).numpy()


def core_coefficients(
    positions: torch.Tensor,
    symbols: list[str],
    sphere: GSphere,
    pseudopotentials: dict[str, Pseudopotential],
) -> torch.Tensor | None:
    """Plane-wave coefficients (nx, ny, nz//2+1) of the core charge; None if there is none.

    ``positions`` (N, 3) in A may require a gradient.
    """
    with_core = []
    for symbol in sorted(set(symbols)):
        if symbol not in pseudopotentials:
            raise InputError(f"no pseudopotential for {symbol}")
        if pseudopotentials[symbol].core_density is not None:
            with_core.append(symbol)
    if not with_core:
        return None
    cell = torch.as_tensor(sphere.grid.cell, device=sphere.device)
    scaled = positions.to(sphere.device, torch.float64) @ torch.linalg.inv(cell)
    columns = sphere.inside.any(dim=2).nonzero()
    rows = (columns[:, 0], columns[:, 1])
    magnitude = sphere.g2[rows].sqrt()
    inside = sphere.inside[rows]
    total = torch.zeros(magnitude.shape, dtype=torch.complex128, device=sphere.device)
    for symbol in with_core:
        mine = torch.tensor([i for i, s in enumerate(symbols) if s == symbol], device=sphere.device)
        weights = torch.ones(len(mine), dtype=torch.float64, device=sphere.device)
        factors = structure_factors(scaled[mine], weights, sphere.waves, columns)
        radial = torch.zeros_like(magnitude)
        radial[inside] = form_factor(pseudopotentials[symbol], magnitude[inside], sphere.g2_max**0.5)
        total = total + factors * radial
    coefficients = torch.zeros(sphere.g2.shape, dtype=torch.complex128, device=sphere.device)
    return coefficients.index_put(rows, total / sphere.grid.volume)


def form_factor(pseudopotential: Pseudopotential, g: torch.Tensor, g_max: float) -> torch.Tensor:
    """4 pi int r^2 n_c(r) sin(Gr)/(Gr) dr in electrons, at each of the wave numbers ``g`` <= ``g_max`` (1/A).

    A transform of something that ends at 10 bohr is band-limited in G, so its Chebyshev series on
    [0, g_max] converges to rounding once the degree exceeds half the phase g_max x 10 bohr; the
    radial integral is done at that many wave numbers instead of at every one.
    """
    degree = int(g_max * RADIAL_CUTOFF / 2) + 40
    angles = (np.arange(degree) + 0.5) * (math.pi / degree)
    values = radial_transform(pseudopotential, g_max / 2 * (1 + np.cos(angles)))
    # discrete cosine transform by its definition: degree is about 100
    series = np.cos(np.outer(np.arange(degree), angles)) @ values * (2 / degree)
    series[0] /= 2
    x = (2 / g_max) * g - 1
    return torch.cat([_clenshaw(series, part) for part in x.split(_CHUNK)])


def _clenshaw(series: np.ndarray, x: torch.Tensor) -> torch.Tensor:
    """sum_k series_k T_k(x)."""
    b1, b2 = torch.zeros_like(x), torch.zeros_like(x)
    twice = 2 * x
    for coefficient in series[:0:-1]:
        b1, b2 = twice * b1 - b2 + float(coefficient), b1
    return x * b1 - b2 + float(series[0])


def radial_transform(pseudopotential: Pseudopotential, g: np.ndarray) -> np.ndarray:
    """The integral of :func:`form_factor` by QE's Simpson rule, at wave numbers ``g`` (n,) in 1/A."""
    core = pseudopotential.core_density
    if core is None:
        return np.zeros(len(g))
    # QE takes the mesh up to and with the first point beyond 10 bohr, and one less if that is even
    # (the tolerance: 10.00 bohr in a file must still be 10 bohr after conversion)
    beyond = np.nonzero(pseudopotential.r > RADIAL_CUTOFF * (1 + 1e-12))[0]
    n = int(beyond[0]) + 1 if len(beyond) else len(core)
    n = 2 * ((n + 1) // 2) - 1
    r = pseudopotential.r[:n]
    simpson = np.full(n, 2 / 3)
    simpson[1::2] = 4 / 3
    simpson[[0, -1]] = 1 / 3
    weights = simpson * pseudopotential.rab[:n] * 4 * math.pi * r**2 * core[:n]
    return np.sinc(np.outer(g, r) / math.pi) @ weights
