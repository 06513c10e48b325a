"""Exchange and correlation: known values, derivatives, invariances, thresholds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from malax.energies import functionals as fn
from malax.energies import xc as xc_module
from malax.energies import xc_energy
from malax.energies.functionals import FUNCTIONALS, evaluate, find_functional
from malax.errors import InputError
from malax.grid import Grid
from malax.units import BOHR, HARTREE

CELL = np.array([[4.1, 0.0, 0.0], [1.3, 3.9, 0.0], [-0.9, 1.1, 4.6]])
NAMES = ["PZ", "PW", "PBE", "PBESOL"]


def bumpy(grid: Grid, mean: float, seed: int = 0) -> np.ndarray:
    """A smooth positive density (1/A^3) of a few plane waves."""
    rng = np.random.default_rng(seed)
    scaled = np.stack(np.meshgrid(*[np.arange(n) / n for n in grid.shape], indexing="ij"), axis=-1)
    field = np.ones(grid.shape)
    for _ in range(6):
        wave = rng.integers(-2, 3, 3)
        field += 0.14 * np.cos(2 * np.pi * (scaled @ wave + rng.random()))
    return mean * field


def at_rs(rs: float) -> torch.Tensor:
    return torch.tensor([3 / (4 * math.pi * rs**3)], dtype=torch.float64)


@pytest.mark.parametrize(
    "rs, expected", [(1.0, -0.0600), (2.0, -0.0448), (5.0, -0.0282), (10.0, -0.0186), (20.0, -0.0115)]
)
@pytest.mark.parametrize("name", ["PZ", "PW"])
def test_correlation_of_the_uniform_gas(name, rs, expected):
    """Ceperley and Alder's quantum Monte Carlo energies (PRL 45, 566 (1980)), which both fits follow."""
    eps, _ = fn.lda_correlation(name, at_rs(rs))
    assert eps.item() == pytest.approx(expected, abs=5e-4)


def test_exchange_of_the_uniform_gas():
    """-0.4582 / rs hartree per electron."""
    n = at_rs(2.5)
    f, f_n = fn.lda_exchange(n)
    assert (f / n).item() == pytest.approx(-0.4581652932831429 / 2.5, rel=1e-14)
    assert f_n.item() == pytest.approx(4 / 3 * (f / n).item(), rel=1e-14)


def test_pbe_limits():
    """F -> 1 + kappa and eps_c + H -> 0 for steep, F -> 1 + mu s^2 for flat densities."""
    pbe, n = FUNCTIONALS["PBE"], at_rs(2.0)
    slater, _ = fn.lda_exchange(n)
    s2 = 4 * (3 * math.pi**2) ** (2 / 3) * n ** (8 / 3)
    assert (fn.gga_exchange(pbe, n, 1e9 * s2)[0] / slater).item() == pytest.approx(0.804, rel=1e-6)
    assert (fn.gga_exchange(pbe, n, 1e-6 * s2)[0] / slater).item() == pytest.approx(1e-6 * pbe.mu, rel=1e-5)
    eps, _ = fn.lda_correlation("PW", n)
    steep = fn.gga_correlation(pbe, n, 1e9 * s2)[0] / n
    assert steep.item() == pytest.approx(-eps.item(), rel=1e-6)
    # mu = beta pi^2 / 3: the linear response of the uniform gas is left as it is
    assert pbe.mu == pytest.approx(pbe.beta * math.pi**2 / 3, rel=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_written_derivatives(name):
    """df/dn and df/dsigma against automatic differentiation of f, over all regimes."""
    rng = np.random.default_rng(1)
    n = torch.tensor(10 ** rng.uniform(-4, 1.5, 500), requires_grad=True)
    sigma = torch.tensor(n.detach().numpy() ** (8 / 3) * 10 ** rng.uniform(-3, 3, 500), requires_grad=True)
    functional = FUNCTIONALS[name]
    f, f_n, f_sigma = evaluate(functional, n, sigma if functional.is_gga else None)
    if not functional.is_gga:
        (auto_n,) = torch.autograd.grad(f.sum(), n)
        torch.testing.assert_close(f_n, auto_n, rtol=1e-11, atol=0)
        return
    auto_n, auto_sigma = torch.autograd.grad(f.sum(), (n, sigma))
    torch.testing.assert_close(f_n, auto_n, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(f_sigma, auto_sigma, rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_potential_is_the_derivative_of_the_energy(name):
    """vxc_rho is d/ds E_xc[(1+s) n + n_c], and autograd's v is dE/dn, both against finite differences."""
    grid = Grid(CELL, (10, 9, 12))
    n, core = bumpy(grid, 0.2), bumpy(grid, 0.3, seed=1)
    _, vxc_rho = xc_energy(n, core, grid, name)
    h = 1e-4
    up, down = (xc_energy((1 + s) * n, core, grid, name)[0] for s in (h, -h))
    assert vxc_rho == pytest.approx((up - down) / (2 * h), rel=1e-7)

    density = torch.tensor(n, requires_grad=True)
    (potential,) = torch.autograd.grad(xc_energy(density, core, grid, name)[0], density)
    assert (potential.numpy() * n).sum() == pytest.approx(vxc_rho, rel=1e-12)
    change = bumpy(grid, 0.01, seed=2)
    slope = xc_energy(n + h * change, core, grid, name)[0] - xc_energy(n - h * change, core, grid, name)[0]
    assert (potential.numpy() * change).sum() == pytest.approx(slope / (2 * h), rel=1e-7)


@pytest.mark.parametrize("name", ["PZ", "PBE"])
def test_vxc_rho_is_differentiable(name):
    grid = Grid(CELL, (6, 5, 7))
    n, core = bumpy(grid, 0.2), bumpy(grid, 0.3, seed=1)
    density = torch.tensor(n, requires_grad=True)
    (gradient,) = torch.autograd.grad(xc_energy(density, core, grid, name)[1], density)
    change, h = bumpy(grid, 0.01, seed=2), 1e-4
    slope = xc_energy(n + h * change, core, grid, name)[1] - xc_energy(n - h * change, core, grid, name)[1]
    assert (gradient.numpy() * change).sum() == pytest.approx(slope / (2 * h), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_uniform_density(name):
    """Without a gradient every functional is its LDA: E = V n eps(n)."""
    grid, rs = Grid(CELL, (4, 5, 6)), 2.0
    n = at_rs(rs)
    exc, vxc_rho = xc_energy(np.full(grid.shape, n.item() / BOHR**3), None, grid, name)
    correlation, slope = fn.lda_correlation(FUNCTIONALS[name].correlation, n)
    exchange = -0.4581652932831429 / rs
    electrons = n.item() / BOHR**3 * grid.volume
    assert exc == pytest.approx(HARTREE * electrons * (exchange + correlation.item()), rel=1e-12)
    potential = 4 / 3 * exchange + correlation.item() + (n * slope).item()
    assert vxc_rho == pytest.approx(HARTREE * electrons * potential, rel=1e-12)


def test_does_not_depend_on_the_passes(monkeypatch):
    grid = Grid(CELL, (10, 9, 12))
    n = bumpy(grid, 0.2)
    whole = xc_energy(n, None, grid, "PBE")
    monkeypatch.setattr(xc_module, "CHUNK", 100)
    assert xc_energy(n, None, grid, "PBE") == pytest.approx(whole, rel=1e-13)


def test_same_physics_in_another_cell():
    """A doubled cell has twice the energy; a field moved by grid vectors or mirrored axes the same."""
    grid = Grid(CELL, (10, 9, 12))
    n = bumpy(grid, 0.2)
    once = np.array(xc_energy(n, None, grid, "PBE"))
    doubled = Grid(CELL * [[2], [1], [1]], (20, 9, 12))
    cutoff = 200.0
    twice = xc_energy(np.concatenate([n, n]), None, doubled, "PBE", cutoff)
    np.testing.assert_allclose(twice, 2 * np.array(xc_energy(n, None, grid, "PBE", cutoff)), rtol=1e-12)
    moved = np.roll(n, (3, 2, 5), (0, 1, 2))
    np.testing.assert_allclose(xc_energy(moved, None, grid, "PBE"), once, rtol=1e-12)
    swapped = Grid(CELL[[1, 0, 2]], (9, 10, 12))
    np.testing.assert_allclose(xc_energy(n.swapaxes(0, 1).copy(), None, swapped, "PBE"), once, rtol=1e-12)


def test_thresholds_of_quantum_espresso():
    """Local part above 1e-10, gradient part above n = 1e-6 and sigma = 1e-10 (bohr units)."""
    pbe, lda = FUNCTIONALS["PBE"], FUNCTIONALS["PW"]
    n = torch.tensor([0.9e-10, 1.1e-10, 0.9e-6, 1.1e-6, 0.1, 0.1], dtype=torch.float64)
    sigma = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.9e-10, 1.1e-10], dtype=torch.float64)
    f, f_n, f_sigma = evaluate(pbe, n, sigma)
    local = evaluate(lda, n, None)[0]
    assert f[0] == f_n[0] == 0 and f[1] != 0
    assert (f_sigma != 0).tolist() == [False, False, False, True, False, True]
    # (at the last point the gradient part is there, but below rounding)
    assert (f == local)[:5].tolist() == [True, True, True, False, True]
    assert torch.isfinite(torch.stack([f, f_n, f_sigma])).all()


def test_negative_density():
    """Ripples below zero: the energy is odd, the derivative even."""
    n = torch.tensor([0.02, -0.02], dtype=torch.float64)
    sigma = torch.full((2,), 0.01, dtype=torch.float64)
    f, f_n, _ = evaluate(FUNCTIONALS["PBE"], n, sigma)
    assert f[1] == -f[0] and f_n[1] == f_n[0]


def test_gradients_stay_finite_at_vanishing_density():
    grid = Grid(CELL, (6, 6, 6))
    n = np.zeros(grid.shape)
    n[2:4, 2:4, 2:4] = 0.5
    density = torch.tensor(n, requires_grad=True)
    sum(xc_energy(density, None, grid, "PBE")).backward()
    assert torch.isfinite(density.grad).all()


@pytest.mark.parametrize("name", ["B3LYP", "SCAN", "SLA PW TPSS TPSS", "revPBE", ""])
def test_unknown_functional_is_refused_by_name(name):
    with pytest.raises(InputError, match=f"{name!r} is not supported.*PZ, PW, PBE, PBESOL"):
        find_functional(name)


@pytest.mark.parametrize(
    "density, message",
    [
        (np.ones((4, 4, 5)), r"shape \(4, 4, 5\), the grid has \(4, 4, 4\)"),
        (np.full((4, 4, 4), np.nan), "not finite at 64 of 64"),
        (np.ones((4, 4, 4)) * 1j, "real numbers"),
    ],
)
def test_unusable_density(density, message):
    with pytest.raises(InputError, match=message):
        xc_energy(density, None, Grid(CELL, (4, 4, 4)), "PBE")
