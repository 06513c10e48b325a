"""The Fermi level of a density of states: which root is meant, how it is found, how it is differentiated."""

from __future__ import annotations

import math
from functools import partial
from typing import Protocol

import numpy as np
import torch
from scipy.optimize import brentq

from malax.errors import InputError
from malax.occupations import (
    STEP_KT,
    Array,
    EnergyAxis,
    Scalar,
    as_numpy,
    energy_axis,
    number_weights,
    thermal_energy,
    total_variance,
)

TOLERANCE = 1e-12
"""Relative error of the number of electrons below which a Fermi level counts as found."""

GAP_TOLERANCE = 1e-4
"""Relative error of the number of electrons that an LDOS may have below a gap: 13 bits and the tails of its
kernel make a few 1e-6, the start of its energies up to 5e-5."""

GAP = 0.1
"""Width (eV) of the interval within `GAP_TOLERANCE` from which it counts as a gap. The DOS in it is at most
1/500 of the electrons per eV; that of aluminium is 60 times as large."""

FLAT = 1e-10
"""dN/dmu / N (1/eV) below which the Fermi level of a gapped DOS is taken as a constant for autograd."""


class Count(Protocol):
    """Electrons at Fermi levels (K,) eV -> (K,)."""

    def __call__(self, levels: np.ndarray) -> np.ndarray: ...


def fermi_level(
    dos: Array,
    energy_grid: Array,
    temperature: float,
    n_electrons: float,
    broadening_variance: float = 0.0,
    unbroaden: bool = True,
) -> Scalar:
    """Fermi level in eV at which a DOS holds ``n_electrons``.

    The uncorrected number of electrons grows with the Fermi level and gives a first one: the lowest, should
    a negative DOS make several; the middle, where a gap makes a whole interval. Of the corrected number,
    which need not be monotonic, the root nearest to that one is taken.

    In the gap of an LDOS with rounding errors the number may miss ``n_electrons`` by a little everywhere, so
    that the root lies at the edge of a band. A gap of `GAP` within `GAP_TOLERANCE` therefore gives its
    middle, and the number of electrons there stands for ``n_electrons``. Where no band stands above
    the gap (fixed occupations without empty bands) it reaches to the end of the energies.

    Parameters
    ----------
    dos : (E,) 1/eV
    energy_grid, temperature, broadening_variance, unbroaden : as in :func:`occupation_weights`
    n_electrons : wanted electrons, > 0

    Returns
    -------
    float; for a tensor a float64 scalar tensor on its device, differentiable (twice) in the DOS by the
    implicit function theorem

    Raises
    ------
    InputError
        no Fermi level on the energy grid gives that number; arguments of wrong shape or value.
    """
    axis = energy_axis(energy_grid)
    if not (math.isfinite(n_electrons) and n_electrons > 0):
        raise InputError(f"the number of electrons must be positive, got {n_electrons}")
    variance = total_variance(axis, broadening_variance, unbroaden)
    count = partial(_count, checked_dos(dos, axis), energy_grid, temperature)
    mu = _middle_of_gap(count, axis, n_electrons)
    in_gap = mu is not None
    if mu is None:
        mu = _uncorrected_level(count, axis, temperature, n_electrons)
    if variance > 0 and not in_gap:
        corrected = partial(count, variance=broadening_variance, unbroaden=True)
        mu = _nearest_root(corrected, mu, axis, math.sqrt(variance), temperature, n_electrons)
    if not isinstance(dos, torch.Tensor):
        return mu
    level = torch.tensor(mu, dtype=torch.float64, device=dos.device)
    if in_gap or not (dos.requires_grad and torch.is_grad_enabled()):
        return level
    options = (energy_grid, temperature, broadening_variance, unbroaden)
    return _implicit_level(dos.to(torch.float64), level, n_electrons, options)


def electrons_at(dos: Array, energy_grid: Array, fermi_level: float, temperature: float) -> float:
    """Electrons that a DOS (E,) in 1/eV holds at a given Fermi level (eV), without any correction.

    This is the honest measure of a DOS beside a DFT calculation: solving for the Fermi level hides the error.
    """
    values = checked_dos(dos, energy_axis(energy_grid))
    return float(_count(values, energy_grid, temperature, np.array(float(fermi_level))))


def checked_dos(dos: Array, axis: EnergyAxis) -> np.ndarray:
    """A DOS as detached float64 NumPy (E,); InputError if it does not fit the energies or is not finite."""
    values = as_numpy(dos)
    if values.shape != (axis.n,):
        raise InputError(f"the DOS has shape {values.shape}, but the energy grid has {axis.n} energies")
    if not np.isfinite(values).all():
        raise InputError("the DOS holds NaN or infinite values")
    return values


def _count(
    dos: np.ndarray,
    energy_grid: Array,
    temperature: float,
    levels: np.ndarray,
    variance: float = 0.0,
    unbroaden: bool = False,
) -> np.ndarray:
    """Electrons of a DOS at Fermi levels of any shape."""
    weights = number_weights(energy_grid, torch.as_tensor(levels), temperature, variance, unbroaden)
    return weights.numpy() @ dos


def _uncorrected_level(count: Count, axis: EnergyAxis, temperature: float, n_electrons: float) -> float:
    """The lowest Fermi level of the uncorrected DOS, or the middle of the interval that a gap makes of it."""
    interval = _interval(count, axis, n_electrons, TOLERANCE)
    if interval is None:
        held = count(axis.nodes().numpy()[[0, -1]])
        raise InputError(
            f"no Fermi level on the energy grid: {n_electrons:.6g} electrons are wanted, but at "
            f"{temperature:g} K the DOS holds {held[0]:.6g} up to {axis.first:g} eV "
            f"and {held[-1]:.6g} up to {axis.last:g} eV"
        )
    return sum(interval) / 2


def _middle_of_gap(count: Count, axis: EnergyAxis, n_electrons: float) -> float | None:
    """The middle of the gap (see `GAP`) in which ``n_electrons`` are reached; None if there is none."""
    if (exact := _interval(count, axis, n_electrons, TOLERANCE)) and exact[1] - exact[0] > GAP:
        return None  # every level in it is a root
    interval = _interval(count, axis, n_electrons, GAP_TOLERANCE)
    return None if interval is None or interval[1] - interval[0] < GAP else sum(interval) / 2


def _interval(
    count: Count, axis: EnergyAxis, n_electrons: float, tolerance: float
) -> tuple[float, float] | None:
    """The lowest Fermi levels with ``n_electrons`` to a relative tolerance; None if none has as many."""
    nodes = axis.nodes().numpy()
    held = count(nodes)
    low, high = n_electrons * (1 - tolerance), n_electrons * (1 + tolerance)
    upward = np.flatnonzero((held[:-1] < low) & (held[1:] >= low))
    if len(upward) == 0:
        return None
    k = int(upward[0])
    lowest = _root(lambda m: count(m) - low, nodes[k], nodes[k + 1])
    k += 1
    while k < axis.n - 1 and low <= held[k] <= high:
        k += 1
    if held[k] > high:
        highest = _root(lambda m: count(m) - high, max(lowest, nodes[k - 1]), nodes[k])
    else:  # the gap reaches the end of the grid, or the number falls again behind it
        highest = nodes[k] if held[k] >= low else nodes[k - 1]
    return float(lowest), float(highest)


def _nearest_root(
    count: Count, start: float, axis: EnergyAxis, broadening: float, temperature: float, n_electrons: float
) -> float:
    """The root nearest to ``start``, looked for in a window that widens until it covers the grid.

    The correction is -(v/2) N'', which raises every maximum of N and lowers every minimum: where N crosses
    ``n_electrons`` there is a root, unless a negative DOS at the very end of the grid takes it away.
    """
    if abs(count(np.array(start)) - n_electrons) <= TOLERANCE * n_electrons:
        return start
    kt = max(thermal_energy(temperature), STEP_KT)
    width = 4 * axis.spacing + 2 * broadening + kt
    while True:
        low, high = max(start - width, axis.first), min(start + width, axis.last)
        mesh = _mesh(axis, low, high, start, kt)
        excess = count(mesh) - n_electrons
        crossings = np.flatnonzero(np.sign(excess[:-1]) * np.sign(excess[1:]) <= 0)
        if len(crossings):
            break
        if low == axis.first and high == axis.last:
            held = excess + n_electrons
            raise InputError(
                f"no Fermi level on the energy grid: {n_electrons:.6g} electrons are wanted, but at "
                f"{temperature:g} K the unbroadened DOS holds between {held.min():.6g} and {held.max():.6g}"
            )
        width *= 2
    # the nearest root lies in the nearest crossing below or above the start
    middle = int(np.searchsorted(mesh, start))
    candidates = {int(crossings[crossings < middle][-1])} if (crossings < middle).any() else set()
    candidates |= {int(crossings[crossings >= middle][0])} if (crossings >= middle).any() else set()
    roots = [_root(lambda m: count(m) - n_electrons, mesh[i], mesh[i + 1]) for i in sorted(candidates)]
    return min(roots, key=lambda root: abs(root - start))


def _mesh(axis: EnergyAxis, low: float, high: float, start: float, kt: float) -> np.ndarray:
    """Fermi levels dense enough to bracket every root of the corrected number.

    It is smooth on the scale of the spacing, but for a step of width kT at each energy of the grid.
    """
    steps = kt * np.array([0.5, 1, 2, 4, 8])
    offsets = np.concatenate([np.arange(-4, 4) / 8 * axis.spacing, -steps, steps])
    mesh = (axis.nodes().numpy()[:, None] + offsets[np.abs(offsets) <= axis.spacing / 2]).ravel()
    return np.unique(np.concatenate([mesh[(mesh > low) & (mesh < high)], [low, start, high]]))


def _root(excess: Count, low: float, high: float) -> float:
    """The root between two levels of different sign (Brent), to the last digits."""
    return float(brentq(lambda m: float(excess(np.array(m))), low, high, xtol=1e-15, rtol=1e-15, maxiter=500))


def _implicit_level(
    dos: torch.Tensor, level: torch.Tensor, n_electrons: float, options: tuple[Array, float, float, bool]
) -> torch.Tensor:
    """The root ``level`` as a function of the DOS.

    Newton steps from a root change nothing in value, but carry the derivatives: one step the first, two the
    second as well. The electrons found at ``level`` stand for ``n_electrons``, so that rounding, however
    flat the number is, cannot move the level.
    """
    energy_grid, *rest = options
    mu = level.requires_grad_()
    held: torch.Tensor | None = None
    for _ in range(2):
        number = dos @ number_weights(energy_grid, mu, *rest)  # type: ignore[arg-type]
        (slope,) = torch.autograd.grad(number, mu, create_graph=True)
        if abs(slope.item()) < FLAT * n_electrons:
            return level.detach()
        held = number.detach() if held is None else held
        mu = mu - (number - held) / slope
    return mu
