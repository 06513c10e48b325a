"""Energies at several volumes -> equilibrium volume and bulk modulus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from malax.errors import InputError

EV_PER_A3 = 160.21766208
"""GPa in one eV/A^3 (exact: the elementary charge over 1e-30 m^3, in 1e9 Pa)."""


@dataclass(frozen=True, eq=False)
class EquationOfState:
    """The equation of state of Birch and Murnaghan, third order (F. Birch, Phys. Rev. 71, 809 (1947)).

    In x = V^(-2/3) it is a cubic polynomial, E(x) = sum_k c_k x^k, so its fit is linear.

    Attributes
    ----------
    coefficients : (4,) c_k; energies in eV/atom, volumes in A^3/atom
    volume : A^3/atom at the minimum
    bulk_modulus : GPa, V d2E/dV2 at the minimum
    residual : largest deviation of the fitted energies, eV/atom
    """

    coefficients: np.ndarray
    volume: float
    bulk_modulus: float
    residual: float

    def energy(self, volumes: np.ndarray) -> np.ndarray:
        """Energies in eV/atom at volumes in A^3/atom."""
        return np.polynomial.polynomial.polyval(np.asarray(volumes) ** (-2 / 3), self.coefficients)


def fit(volumes: Sequence[float] | np.ndarray, energies: Sequence[float] | np.ndarray) -> EquationOfState:
    """Least squares through energies (eV/atom) at volumes (A^3/atom), at least five.

    Raises
    ------
    InputError
        too few volumes, or no minimum among them.
    """
    v, e = np.asarray(volumes, dtype=np.float64), np.asarray(energies, dtype=np.float64)
    if len(np.unique(v.round(6))) < 5:
        raise InputError(f"an equation of state needs five volumes, there are {len(np.unique(v.round(6)))}")
    x = v ** (-2 / 3)
    # around the mean: powers of nearly equal numbers are nearly dependent
    curve = np.polynomial.Polynomial.fit(x, e - e.mean(), 3).convert() + e.mean()
    slope, curvature = curve.deriv(), curve.deriv(2)
    roots = [r.real for r in slope.roots() if abs(r.imag) < 1e-12 and curvature(r.real) > 0]
    inside = [r for r in roots if x.min() <= r <= x.max()]
    if not inside:
        raise InputError(
            f"the energies have no minimum between {v.min():.2f} and {v.max():.2f} A^3/atom: other volumes "
            "are needed"
        )
    volume = float(inside[0] ** (-1.5))
    # d2E/dV2 at the minimum: E''(x) (dx/dV)^2, dx/dV = -(2/3) V^(-5/3)
    modulus = volume * float(curvature(inside[0])) * (2 / 3 * volume ** (-5 / 3)) ** 2
    residual = float(np.abs(curve(x) - e).max())
    return EquationOfState(curve.coef, volume, modulus * EV_PER_A3, residual)
