"""From the (local) density of states to Fermi level, electrons, density, band energy and entropy term.

Pure functions. NumPy arrays go through the C++ kernel and give floats and arrays; torch tensors go through
the torch twin and give tensors that are differentiable in the (L)DOS, the Fermi level included. The formulas
are in :mod:`malax.occupations`. Energies in eV, DOS in 1/eV, LDOS in 1/(eV A^3), temperature in K.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from malax.errors import InputError
from malax.fermi import electrons_at, fermi_level
from malax.kernels import ldos_moments
from malax.occupations import (
    Array,
    EnergyAxis,
    Scalar,
    Weights,
    as_numpy,
    energy_axis,
    number_weights,
    occupation_weights,
)
from malax.units import BOLTZMANN

__all__ = [
    "DosObservables",
    "Observables",
    "Weights",
    "electrons_at",
    "fermi_level",
    "from_dos",
    "from_ldos",
    "highest_temperature",
    "number_weights",
    "occupation_weights",
]


@dataclass(frozen=True)
class DosObservables:
    """What a density of states gives: floats, or torch scalars if the DOS is a tensor.

    fermi_level : eV
    band_energy : sum of the occupied eigenvalues, eV
    entropy_term : -TS, eV
    n_electrons : electrons at ``fermi_level`` by the same weights (unbroadened if those are)
    """

    fermi_level: Scalar
    band_energy: Scalar
    entropy_term: Scalar
    n_electrons: Scalar


@dataclass(frozen=True)
class Observables(DosObservables):
    """As :class:`DosObservables`, and

    dos : (E,) float64, 1/eV
    density : the shape of the LDOS without its last axis, float64, 1/A^3
    """

    dos: Array
    density: Array


def from_dos(
    dos: Array,
    energy_grid: Array,
    temperature: float,
    n_electrons: float,
    broadening_variance: float = 0.0,
    unbroaden: bool = True,
) -> DosObservables:
    """Fermi level, band energy and entropy term of a DOS (E,) in 1/eV.

    Arguments and errors as in :func:`fermi_level`. Floats for a NumPy DOS; for a tensor float64 scalar
    tensors on its device, differentiable in it.
    """
    options = (temperature, broadening_variance, unbroaden)
    mu = fermi_level(dos, energy_grid, temperature, n_electrons, broadening_variance, unbroaden)
    weights = occupation_weights(energy_grid, mu, *options)
    values = dos.to(torch.float64) if isinstance(dos, torch.Tensor) else torch.from_numpy(as_numpy(dos))
    number, band, entropy = (values @ w for w in weights)
    if isinstance(dos, torch.Tensor):
        return DosObservables(mu, band, entropy, number)
    return DosObservables(mu, band.item(), entropy.item(), number.item())


def from_ldos(
    ldos: Array,
    energy_grid: Array,
    volume: float,
    temperature: float,
    n_electrons: float,
    broadening_variance: float = 0.0,
    unbroaden: bool = True,
) -> Observables:
    """Fermi level, DOS, density, band energy and entropy term of a local density of states.

    Parameters
    ----------
    ldos : (nx, ny, nz, E) or (P, E), any floating type and layout, 1/(eV A^3)
    volume : of the cell that the points fill, A^3
    others : as in :func:`fermi_level`

    Returns
    -------
    Observables; ``dos`` is the sum over points times volume / points, ``density`` (nx, ny, nz) or (P,)
    integrates to ``n_electrons``. NumPy for NumPy; for a tensor float64 tensors, differentiable in it.

    Raises
    ------
    InputError
        as :func:`fermi_level`, and for an LDOS that does not fit the energy grid or is not finite.
    """
    axis = energy_axis(energy_grid)
    flat = _checked_ldos(ldos, axis)
    if not (math.isfinite(volume) and volume > 0):
        raise InputError(f"the volume must be positive, got {volume} A^3")
    dos = _sum_over_points(flat) * (volume / len(flat))
    result = from_dos(dos, energy_grid, temperature, n_electrons, broadening_variance, unbroaden)
    weights = number_weights(energy_grid, result.fermi_level, temperature, broadening_variance, unbroaden)
    density = _weighted(flat, weights).reshape(np.shape(ldos)[:-1])
    return Observables(**vars(result), dos=dos, density=density)


def highest_temperature(
    energy_grid: Array, complete_to: float, fermi_level: float, occupation: float = 1e-6
) -> float:
    """The highest electronic temperature in K that a DOS known up to ``complete_to`` allows.

    It is the one at which the last energy of the grid that is not above ``complete_to`` (eV) is occupied by
    ``occupation``; 0 if that energy is not above the Fermi level.

    Raises
    ------
    InputError
        no energy of the grid is sound, or ``occupation`` is not between 0 and 1/2.
    """
    axis = energy_axis(energy_grid)
    if not 0 < occupation < 0.5:
        raise InputError(f"the highest tolerable occupation must lie between 0 and 0.5, got {occupation}")
    if not (math.isfinite(fermi_level) and complete_to >= axis.first):
        raise InputError(
            f"no temperature is allowed: the DOS is complete up to {complete_to:g} eV, "
            f"its energy grid begins at {axis.first:g} eV, and the Fermi level is {fermi_level:g} eV"
        )
    # a hair of tolerance: 10.4 must count as a point of a grid in steps of 0.1
    steps = math.floor(min((complete_to - axis.first) / axis.spacing + 1e-6, axis.n - 1))
    above = axis.first + steps * axis.spacing - fermi_level
    return max(above, 0.0) / (BOLTZMANN * math.log(1 / occupation - 1))


def _checked_ldos(ldos: Array, axis: EnergyAxis) -> Array:
    """(P, E): a tensor as it is, an array contiguous and float32 or float64."""
    if not isinstance(ldos, torch.Tensor):
        ldos = np.asarray(ldos)
    shape = tuple(ldos.shape)
    if len(shape) < 2 or shape[-1] != axis.n or 0 in shape:
        raise InputError(
            f"the LDOS has shape {shape}; it needs grid points and, on the last axis, "
            f"the {axis.n} energies of the energy grid"
        )
    if isinstance(ldos, torch.Tensor):
        if ldos.is_complex():
            raise InputError("the LDOS must be real, got complex numbers")
        return ldos.reshape(-1, axis.n)
    if ldos.dtype not in (np.float32, np.float64):
        ldos = as_numpy(ldos)
    return np.ascontiguousarray(ldos).reshape(-1, axis.n)


def _weighted(flat: Array, weights: torch.Tensor) -> Array:
    """(P,) float64 product of (P, E) and (E,)."""
    if isinstance(flat, np.ndarray):
        values, _ = ldos_moments(flat, weights.numpy()[None])
        return values
    return flat.to(torch.float64) @ weights


def _sum_over_points(flat: Array) -> Array:
    """(E,) float64 sum of (P, E), accumulated in double. It is finite only if every term is."""
    if isinstance(flat, np.ndarray):
        _, sums = ldos_moments(flat, np.zeros((0, flat.shape[1])))
        return sums
    total = flat.sum(dim=0, dtype=torch.float64)
    if not bool(torch.isfinite(total).all()):
        raise InputError("the LDOS holds NaN or infinite values")
    return total
