"""Exact integrals of Fermi functions over a piecewise linear (L)DOS, as weights on the energy grid.

With kT > 0 and x = (eps - mu)/kT let F_s(x) = -Li_s(-e^-x), so that F_0 is the Fermi function,
F_1 = ln(1 + e^-x) and F_s' = -F_(s-1). A curve that is linear between the points of a uniform energy grid
is a sum of hat functions, and the integral of a hat times g is the second difference
D2[G]_i = (G_(i+1) - 2 G_i + G_(i-1))/Delta of any G with G'' = g, on the grid extended by one spacing at
both ends. Hence the weights that turn an LDOS or a DOS into numbers (docs: "Integration over energy"):

    electrons     w_N = D2[F_2] kT^2
    band energy   w_E = D2[x F_2 + 2 F_3] kT^3 + mu w_N
    -TS           w_S = -D2[x F_2 + 3 F_3] kT^3
    Omega         w_O = w_S + w_E - mu w_N = -D2[F_3] kT^3

F_2 and F_3 grow as x^2 and x^3 below the Fermi level, where the differences would cancel. So every hat is
first folded to the side x >= 0 by f(x) = 1 - f(-x); what the fold leaves behind is known in closed form.
The folded terms vanish with kT: T = 0 is an ordinary case, not a division by zero.

Unbroadening: a curve d that carries the variance v stands, to second order, for d - (v/2) d''; this is the
same as subtracting (v/2) w'' from each weight, w'' being D2 of the integrand itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
import torch

from malax.errors import InputError
from malax.polylog import decaying
from malax.units import BOLTZMANN

Array: TypeAlias = np.ndarray | torch.Tensor
Scalar: TypeAlias = float | torch.Tensor

ZERO_KT = 1e-170
"""kT in eV that stands for zero: energies divided by it still fit a float, its square is zero."""

STEP_KT = 1e-7
"""Smallest kT in eV in the correction's Fermi function. At T = 0 the corrected number of electrons jumps
at every point of the energy grid, and the Fermi level may lie on such a jump; this keeps the jump a ramp
that floats resolve, at the cost of shifts of 1e-7 eV."""


class EnergyAxis(NamedTuple):
    """A checked uniform energy grid: first + i * spacing (eV), i = 0..n-1."""

    first: float
    spacing: float
    n: int

    @property
    def last(self) -> float:
        return self.first + self.spacing * (self.n - 1)

    def nodes(self, device: torch.device | str = "cpu", extra: int = 0) -> torch.Tensor:
        """Energies (n + 2 extra,) in eV, extended by ``extra`` spacings at both ends."""
        steps = torch.arange(-extra, self.n + extra, dtype=torch.float64, device=device)
        return self.first + self.spacing * steps


def energy_axis(energy_grid: Array) -> EnergyAxis:
    """Check an energy grid (E,) in eV: 3 or more finite energies, increasing, uniform to 1e-4 of the spacing.

    Raises
    ------
    InputError
        which says what is wrong with it.
    """
    energies = as_numpy(energy_grid)
    if energies.ndim != 1 or len(energies) < 3:
        raise InputError(
            f"the energy grid must be one-dimensional with 3 energies or more, got shape {energies.shape}"
        )
    if not np.isfinite(energies).all():
        raise InputError("the energy grid holds NaN or infinite energies")
    first, last, n = float(energies[0]), float(energies[-1]), len(energies)
    if not last > first:
        raise InputError(f"the energy grid must increase, but goes from {first:g} to {last:g} eV")
    spacing = (last - first) / (n - 1)
    deviation = np.abs(energies - np.linspace(first, last, n))
    worst = int(deviation.argmax())
    if deviation[worst] > 1e-4 * spacing:
        raise InputError(
            f"the energy grid is not uniform: energy {worst} is {energies[worst]:g} eV, where a spacing of "
            f"{spacing:g} eV from {first:g} to {last:g} eV wants {first + worst * spacing:g} eV"
        )
    return EnergyAxis(first, spacing, n)


class Weights(NamedTuple):
    """Weights (E,), float64, whose product with a DOS (or LDOS) is the number (or its density).

    number : electrons
    band_energy : sum of occupied eigenvalues, eV
    entropy_term : -TS, eV
    """

    number: torch.Tensor
    band_energy: torch.Tensor
    entropy_term: torch.Tensor


def occupation_weights(
    energy_grid: Array,
    fermi_level: Scalar,
    temperature: float,
    broadening_variance: float = 0.0,
    unbroaden: bool = True,
) -> Weights:
    """Weights of electrons, band energy and -TS on an energy grid.

    Parameters
    ----------
    energy_grid : (E,) uniform, eV
    fermi_level : eV; a tensor makes the weights differentiable in it, one of shape (K,) makes them (K, E)
    temperature : electronic temperature in K, >= 0
    broadening_variance : variance of the kernel of the (L)DOS in eV^2 (sigma^2/2 for exp(-(e/sigma)^2),
        pi^2 sigma^2/3 for a Fermi-Dirac one); Delta^2/6 of the linear interpolation is added to it
    unbroaden : False leaves out the whole correction

    Returns
    -------
    Weights of torch tensors (E,), float64

    Raises
    ------
    InputError
        for an energy grid that is not uniform, or a temperature, variance or Fermi level that makes no sense.
    """
    axis = energy_axis(energy_grid)
    mu, y, kt = _relative_nodes(axis, fermi_level, temperature)
    number, energy, entropy = _exact_weights(y, kt, axis.spacing)
    variance = total_variance(axis, broadening_variance, unbroaden)
    if variance > 0:
        f = torch.sigmoid(-y / max(kt, STEP_KT))
        z = _side(y) * y / kt
        minus_ts = -kt * (decaying(1, z) + z * torch.sigmoid(-z))
        number = number - variance / 2 * _second_difference(f, axis.spacing)
        energy = energy - variance / 2 * _second_difference(y * f, axis.spacing)
        entropy = entropy - variance / 2 * _second_difference(minus_ts, axis.spacing)
    return Weights(number, energy + mu * number, entropy)


def number_weights(
    energy_grid: Array,
    fermi_levels: Array | float,
    temperature: float,
    broadening_variance: float = 0.0,
    unbroaden: bool = True,
) -> torch.Tensor:
    """Weights of the number of electrons at several Fermi levels (K,) in one call: (K, E), float64.

    One Fermi level () gives (E,). Arguments and errors as in :func:`occupation_weights`, of whose ``number``
    these are the rows; differentiable in the Fermi levels.
    """
    axis = energy_axis(energy_grid)
    _, y, kt = _relative_nodes(axis, fermi_levels, temperature)
    number = _exact_number(y, kt, axis.spacing)
    variance = total_variance(axis, broadening_variance, unbroaden)
    if variance > 0:
        f = torch.sigmoid(-y / max(kt, STEP_KT))
        number = number - variance / 2 * _second_difference(f, axis.spacing)
    return number


def total_variance(axis: EnergyAxis, broadening_variance: float, unbroaden: bool) -> float:
    """Variance in eV^2 that the correction removes: of the kernel, and Delta^2/6 of the interpolation."""
    if not (math.isfinite(broadening_variance) and broadening_variance >= 0):
        raise InputError(f"the broadening variance must be finite and >= 0 eV^2, got {broadening_variance}")
    return broadening_variance + axis.spacing**2 / 6 if unbroaden else 0.0


def thermal_energy(temperature: float) -> float:
    """kT in eV of a temperature in K; zero becomes :data:`ZERO_KT`."""
    if not (math.isfinite(temperature) and temperature >= 0):
        raise InputError(f"the electronic temperature must be finite and >= 0 K, got {temperature}")
    return max(BOLTZMANN * temperature, ZERO_KT)


def as_numpy(values: Array | float) -> np.ndarray:
    """A detached float64 NumPy copy or view of an array or tensor on any device."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    try:
        if np.iscomplexobj(values):
            raise TypeError("complex numbers")
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"an array of real numbers is needed: {error}") from error


def _relative_nodes(
    axis: EnergyAxis, fermi_level: Array | float, temperature: float
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """mu (..., 1), the extended grid relative to it (..., E+2) and kT, all in eV."""
    # dtype at once: as_tensor of a float alone would round it to float32
    mu = torch.as_tensor(fermi_level, dtype=torch.float64)[..., None]
    if not bool(torch.isfinite(mu).all()):
        raise InputError("the Fermi level is NaN or infinite")
    return mu, axis.nodes(mu.device, extra=1) - mu, thermal_energy(temperature)


def _second_difference(values: torch.Tensor, spacing: float) -> torch.Tensor:
    """D2: (..., E+2) on the extended grid -> (..., E)."""
    return (values[..., 2:] - 2 * values[..., 1:-1] + values[..., :-2]) / spacing


def _side(y: torch.Tensor) -> torch.Tensor:
    """+1 from the Fermi level upward, -1 below. A constant for autograd: |y| = side * y has no kink then."""
    return torch.where(y >= 0, 1.0, -1.0).to(y)


def _folded_difference(
    folded: torch.Tensor,
    y: torch.Tensor,
    spacing: float,
    parity: float,
    beyond: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """D2[G] of every hat after its reflection to the side q >= 0 of the Fermi level.

    ``folded`` is G(|y|) on the extended grid. At most one neighbour of a hat lies across the Fermi level, at
    q = -|y|, where G(q) = parity * G(|y|) + beyond(q) by the inversion formula; |q| <= Delta there.
    """
    sides = _side(y)
    side = sides[..., 1:-1]
    total = -2 * folded[..., 1:-1]
    for neighbour in (slice(None, -2), slice(2, None)):
        q, g = side * y[..., neighbour], folded[..., neighbour]
        total = total + torch.where(side == sides[..., neighbour], g, parity * g + beyond(q))
    return total / spacing


def _exact_number(y: torch.Tensor, kt: float, spacing: float, f2: torch.Tensor | None = None) -> torch.Tensor:
    """w_N; ``f2`` is kT^2 F_2(|y|/kT) where the caller has it."""
    if f2 is None:
        f2 = kt**2 * decaying(2, _side(y) * y / kt)
    number = _folded_difference(f2, y, spacing, -1.0, lambda q: q**2 / 2 + (math.pi * kt) ** 2 / 6)
    # what a reflected hat holds is missing from a full one
    return torch.where(y[..., 1:-1] < 0, spacing - number, number)


def _exact_weights(
    y: torch.Tensor, kt: float, spacing: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """w_N, w_E with energies from the Fermi level, and w_S."""
    distance = _side(y) * y
    z = distance / kt
    f2, f3 = kt**2 * decaying(2, z), kt**3 * decaying(3, z)
    moment = distance * f2 + 2 * f3
    pi_kt2 = (math.pi * kt) ** 2
    energy = _folded_difference(moment, y, spacing, 1.0, lambda q: q**3 / 6 - pi_kt2 * q / 6)
    # y f(y) = y + |y| f(|y|) below the Fermi level; the entropy is even
    energy = energy + spacing * torch.where(y < 0, y, 0.0)[..., 1:-1]
    entropy = -_folded_difference(moment + f3, y, spacing, 1.0, lambda q: -pi_kt2 * q / 3)
    return _exact_number(y, kt, spacing, f2), energy, entropy
