"""The polylogarithms and the weights against high-precision arithmetic, closed forms and identities."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch

from malax.errors import InputError
from malax.occupations import energy_axis, number_weights, occupation_weights
from malax.polylog import fermi_integral
from malax.units import BOLTZMANN

FIRST, SPACING, N = -6.0, 0.125, 145
GRID = FIRST + SPACING * np.arange(N)
LEVELS = [-500.0, -6.0, 2.125, 3.21, 11.9, 500.0]
"""Far outside, at the end, on a point, between points, near the other end, far outside."""


@pytest.mark.parametrize("s", range(4))
@pytest.mark.parametrize("x", [-700.0, -50.0, -3.3, -1e-9, 0.0, 1e-12, 0.3, 1.0, 2.5, 7.0, 33.0, 700.0])
def test_polylogarithm_against_mpmath(s: int, x: float) -> None:
    with mpmath.workdps(400):
        wanted = -mpmath.polylog(s, -mpmath.exp(-mpmath.mpf(x)))
        got = fermi_integral(s, torch.tensor(x, dtype=torch.float64)).item()
        assert abs(got / wanted - 1) < 4e-16


@pytest.mark.parametrize("s", range(4))
def test_polylogarithm_derivatives(s: int) -> None:
    x = torch.tensor([-30.0, -1.2, 0.0, 0.4, 5.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: fermi_integral(s, v), x)
    assert torch.autograd.gradgradcheck(lambda v: fermi_integral(s, v), x)
    if s > 0:
        (slope,) = torch.autograd.grad(fermi_integral(s, x).sum(), x)
        torch.testing.assert_close(slope, -fermi_integral(s - 1, x), rtol=1e-14, atol=0)


def test_polylogarithm_refuses_other_orders() -> None:
    with pytest.raises(InputError, match="s = 0, 1, 2, 3, got 4"):
        fermi_integral(4, torch.zeros(1))


def hat_integrals(node: float, mu: float, temperature: float) -> list[mpmath.mpf]:
    """Integrals of hat times f, eps f and -T times entropy per state, by Gauss-Legendre quadrature."""
    kt, d = mpmath.mpf(BOLTZMANN) * temperature, mpmath.mpf(SPACING)

    def f(e: mpmath.mpf) -> mpmath.mpf:
        return 1 / (1 + mpmath.exp((e - mu) / kt))

    def minus_ts(e: mpmath.mpf) -> mpmath.mpf:
        x = abs(e - mu) / kt
        return -kt * (mpmath.log1p(mpmath.exp(-x)) + x / (1 + mpmath.exp(x)))

    def hat(e: mpmath.mpf) -> mpmath.mpf:
        return 1 - abs(e - node) / d

    # the Fermi function turns within some kT of mu: pieces of that size there
    pieces = {node - d, node, node + d}
    pieces |= {mpmath.mpf(mu) + i * kt * 6 for i in range(-10, 11) if abs(mu + i * kt * 6 - node) < d}
    return [
        mpmath.quad(lambda e, g=g: hat(e) * g(e), sorted(pieces)) for g in (f, lambda e: e * f(e), minus_ts)
    ]


@pytest.mark.parametrize("temperature", [1e-3, 1.0, 298.0, 5e3, 1e5])
@pytest.mark.parametrize("mu", LEVELS)
def test_weights_against_quadrature(mu: float, temperature: float) -> None:
    weights = occupation_weights(GRID, mu, temperature, unbroaden=False)
    near = int(np.clip((mu - FIRST) / SPACING, 1, N - 3))
    # second differences lose (kT/Delta)^2 or ^3 of the last digits: 1e-11 eV at 100 000 K
    tolerance = 1e-15 + 2e-16 * 20 * (1 + BOLTZMANN * temperature) ** 3
    with mpmath.workdps(30):
        for i in {0, near - 1, near, near + 1, near + 2, N - 1}:
            for got, wanted in zip(weights, hat_integrals(GRID[i], mu, temperature), strict=True):
                assert abs(got[i].item() - wanted) < tolerance * max(1, abs(mu)), (i, got[i].item(), wanted)


def test_relative_accuracy_of_rare_occupations() -> None:
    """Far above the Fermi level the weights are tiny, but still right to many digits."""
    weights = occupation_weights(GRID, 1.0, 300.0, unbroaden=False)
    # mpmath's quadrature ends at an absolute error: many digits for a relative one
    with mpmath.workdps(120):
        for i in (70, 80, 95):
            for got, wanted in zip(weights, hat_integrals(GRID[i], 1.0, 300.0), strict=True):
                assert abs(got[i].item() / wanted - 1) < 1e-13


def zero_temperature_weights(mu: float) -> tuple[np.ndarray, np.ndarray]:
    """Electrons and energy of each hat below mu, integrated as polynomials piece by piece."""
    number, energy = np.zeros(N), np.zeros(N)
    for i, node in enumerate(GRID):
        for low, slope in ((node - SPACING, 1 / SPACING), (node, -1 / SPACING)):
            high = min(low + SPACING, mu)
            if high > low:
                hat = np.polynomial.Polynomial([1 - slope * node, slope])
                for out, g in ((number, hat), (energy, hat * np.polynomial.Polynomial([0, 1]))):
                    out[i] += g.integ()(high) - g.integ()(low)
    return number, energy


@pytest.mark.parametrize("mu", [-7.0, -6.05, 2.125, 3.21, 12.06, 500.0])
def test_zero_temperature_is_the_closed_form(mu: float) -> None:
    number, energy = zero_temperature_weights(mu)
    weights = occupation_weights(GRID, mu, 0.0, unbroaden=False)
    np.testing.assert_allclose(weights.number, number, atol=1e-14)
    np.testing.assert_allclose(weights.band_energy, energy, atol=2e-13)
    assert weights.entropy_term.abs().max() < 1e-100


@pytest.mark.parametrize("unbroaden", [False, True])
@pytest.mark.parametrize("mu", [3.2, 2.125 + 0.03])
def test_small_temperatures_approach_zero(mu: float, unbroaden: bool) -> None:
    cold = occupation_weights(GRID, mu, 0.0, 0.02, unbroaden)
    for temperature in (1e-290, 1e-12, 1e-6, 1e-3, 1.0, 10.0):
        weights = occupation_weights(GRID, mu, temperature, 0.02, unbroaden)
        # Sommerfeld: pi^2/6 kT^2 times the slope of the hat, and as much times mu for the energy
        bound = math.pi**2 * (BOLTZMANN * temperature) ** 2 / SPACING
        for a, b, scale in zip(weights, cold, (1, abs(mu) + SPACING, SPACING), strict=True):
            assert torch.isfinite(a).all()
            assert (a - b).abs().max() <= bound * scale + 1e-14


@pytest.mark.parametrize("temperature", [0.0, 298.0, 2000.0])
def test_constant_dos(temperature: float) -> None:
    """The hats add up to one: the Sommerfeld expansion of a constant DOS ends after the first term."""
    mu, kt = 4.3, BOLTZMANN * temperature
    weights = occupation_weights(GRID, mu, temperature, unbroaden=False)
    number, energy, entropy = (w.sum().item() for w in weights)
    ramp, ramp_energy = SPACING / 2, SPACING / 2 * (FIRST - SPACING / 3)
    assert number == pytest.approx(mu - FIRST + ramp, abs=1e-12)
    sommerfeld = math.pi**2 / 6 * kt**2
    assert energy == pytest.approx((mu**2 - FIRST**2) / 2 + sommerfeld + ramp_energy, abs=1e-11)
    assert entropy == pytest.approx(-2 * sommerfeld, abs=1e-12)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 298.0, 2e4])
@pytest.mark.parametrize("unbroaden", [False, True])
@pytest.mark.parametrize("mu", LEVELS)
def test_grand_potential_gives_the_number(mu: float, unbroaden: bool, temperature: float) -> None:
    """dOmega/dmu = -N, weight by weight and correction included, on a grid point as well."""
    level = torch.tensor(mu, dtype=torch.float64, requires_grad=True)
    # at T = 0 on a grid point the corrected numbers jump: there is no derivative to test
    mu_of = level + (0.01 if unbroaden and temperature < 10 else 0.0)
    number, energy, entropy = occupation_weights(GRID, mu_of, temperature, 0.02, unbroaden)
    omega = energy - mu_of * number + entropy
    picks = torch.linspace(1, 2, N, dtype=torch.float64)
    (slope,) = torch.autograd.grad(omega @ picks, level)
    assert slope.item() == pytest.approx(-(number @ picks).item(), rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("unbroaden", [False, True])
def test_weights_gradcheck(unbroaden: bool) -> None:
    grid = GRID[60:75]
    for mu in (2.125, 2.3):
        level = torch.tensor(mu, dtype=torch.float64, requires_grad=True)

        def weights(m: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(occupation_weights(grid, m, 1500.0, 0.02, unbroaden))

        assert torch.autograd.gradcheck(weights, level, eps=1e-5)
        assert torch.autograd.gradgradcheck(weights, level, eps=1e-5)


def test_several_fermi_levels_at_once() -> None:
    levels = np.array([-1.0, 2.125, 7.77])
    rows = number_weights(GRID, levels, 500.0, 0.02)
    assert rows.shape == (3, N) and rows.dtype == torch.float64
    for row, level in zip(rows, levels, strict=True):
        alone = occupation_weights(GRID, float(level), 500.0, 0.02).number
        torch.testing.assert_close(row, alone, rtol=0, atol=0)
    together = occupation_weights(GRID, torch.from_numpy(levels), 500.0, 0.02)
    torch.testing.assert_close(together.number, rows, rtol=0, atol=0)
    assert together.band_energy.shape == (3, N)


def test_python_floats_keep_their_digits() -> None:
    """3.21 as float32 would be wrong by 5e-8 eV."""
    a = number_weights(GRID, 3.21, 300.0)
    b = number_weights(GRID, torch.tensor(3.21, dtype=torch.float64), 300.0)
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("spacing", [0.1, 0.05])
def test_unbroadening_is_right_to_second_order(spacing: float) -> None:
    """What is left of the broadening falls with the square of its variance; uncorrected, in proportion."""
    grid = np.arange(-10.0, 10.0 + spacing / 2, spacing)
    mu, temperature = 0.7, 1000.0

    def dos(variance: float) -> torch.Tensor:
        """Normal curves, the broadening only adds to their variances."""
        curves = [(1.0, -1.0, 1.2), (0.6, 2.0, 0.9)]
        return torch.from_numpy(
            sum(
                a * np.exp(-((grid - e) ** 2) / (2 * (v + variance))) / np.sqrt(2 * np.pi * (v + variance))
                for a, e, v in curves
            )
        )

    # on a smooth curve linear interpolation acts as a variance of Delta^2/6
    fine = occupation_weights(grid, mu, temperature, 0.0, True)
    exact = [(dos(0.0) @ w).item() for w in fine]
    for k, exact_k in enumerate(exact):
        errors = {}
        for variance in (0.04, 0.08):
            for unbroaden in (True, False):
                weights = occupation_weights(grid, mu, temperature, variance, unbroaden)
                errors[variance, unbroaden] = abs((dos(variance) @ weights[k]).item() - exact_k)
        assert errors[0.04, True] < 0.15 * errors[0.04, False]
        assert errors[0.08, True] / errors[0.04, True] == pytest.approx(4, rel=0.25)


def test_linear_interpolation_is_corrected_by_default() -> None:
    """Delta^2/6: with a variance of 0 the correction makes a coarse grid nearly as good as a fine one."""

    def energy(spacing: float, unbroaden: bool) -> float:
        grid = np.arange(-8.0, 8.0 + spacing / 2, spacing)
        dos = torch.from_numpy(np.exp(-(grid**2)))
        return (dos @ occupation_weights(grid, 0.4, 500.0, unbroaden=unbroaden).band_energy).item()

    exact = energy(0.005, True)
    assert abs(energy(0.2, True) - exact) < 0.05 * abs(energy(0.2, False) - exact)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (np.array([0.0, 1.0]), "3 energies or more"),
        (np.zeros((3, 3)), "one-dimensional"),
        (np.array([0.0, 1.0, np.nan]), "NaN"),
        (np.array([2.0, 1.0, 0.0]), "must increase"),
        (np.array([0.0, 1.0, 2.0, 3.1]), "not uniform: energy 2"),
        (np.array([0.0, 1.0, 1.0, 3.0]), "not uniform"),
        (np.array(["a", "b", "c"]), "real numbers"),
        (np.array([0, 1, 2j]), "real numbers"),
    ],
)
def test_bad_energy_grids(grid: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        energy_axis(grid)


def test_rounded_energies_are_accepted() -> None:
    """Energies written with a few digits (of a cube's header, or in float32) are still one uniform grid."""
    axis = energy_axis(torch.linspace(-6, 12, 181, dtype=torch.float32))
    assert axis.spacing == pytest.approx(0.1) and axis.last == pytest.approx(12.0) and axis.n == 181


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((math.nan, 300.0), "Fermi level"),
        ((0.0, -1.0), "temperature"),
        ((0.0, math.inf), "temperature"),
        ((0.0, 300.0, -0.1), "variance"),
        ((0.0, 300.0, math.nan), "variance"),
    ],
)
def test_bad_numbers(arguments: tuple[float, ...], message: str) -> None:
    for function in (occupation_weights, number_weights):
        with pytest.raises(InputError, match=message):
            function(GRID, *arguments)
