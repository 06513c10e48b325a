"""DOS, density, band energy and entropy: closed forms, identities, twins, invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from dos_examples import GRID, SPACING, VARIANCE, free_electron_dos, smooth_ldos

from malax.errors import InputError
from malax.observables import (
    from_dos,
    from_ldos,
    highest_temperature,
    occupation_weights,
)
from malax.units import BOLTZMANN

VOLUME = 66.4


@pytest.mark.parametrize("unbroaden", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 1e-3, 10.0, 298.0, 2000.0])
def test_constant_dos_in_closed_form(temperature: float, unbroaden: bool) -> None:
    """Three states per eV from the first energy on: all by Sommerfeld's two terms, which are exact here."""
    n, level = 30.0, 3.0
    # the hat of the first energy begins one spacing lower: 3 * Delta/2 electrons more
    mu = (n - level * SPACING / 2) / level + GRID[0]
    result = from_dos(np.full(181, level), GRID, temperature, n, 0.0, unbroaden)
    kt = BOLTZMANN * temperature
    # the correction sees the kinks of the ramp, d'' = +-3/Delta at its ends: -(v/2)(3/Delta)(e_-1 - e_0)
    v = SPACING**2 / 6 if unbroaden else 0.0
    ramp = SPACING / 2 * (GRID[0] - SPACING / 3)
    band = level * ((mu**2 - GRID[0] ** 2) / 2 + ramp + (math.pi * kt) ** 2 / 6 + v / 2)
    assert result.fermi_level == pytest.approx(mu, abs=1e-11)
    assert result.n_electrons == pytest.approx(n, abs=1e-11)
    assert result.band_energy == pytest.approx(band, abs=1e-10)
    assert result.entropy_term == pytest.approx(-level * (math.pi * kt) ** 2 / 3, abs=1e-11)


@pytest.mark.parametrize("n", [1.0, 6.0, 20.0])
def test_free_electrons_at_zero_temperature(n: float) -> None:
    """D = 1.3 sqrt(e + 5) up to mu, in closed form.

    The weights are a trapezoidal sum below the Fermi level; what its first cell misses of the root is
    zeta(-1/2) Delta^(3/2) electrons and zeta(-3/2) Delta^(5/2) eV.
    """
    result = from_dos(free_electron_dos(), GRID, 0.0, n)
    depth = (1.5 * (n / 1.3 + 0.207886225 * SPACING**1.5)) ** (2 / 3)
    band = 1.3 * (0.4 * depth**2.5 - 0.025485202 * SPACING**2.5) - 5 * n
    assert result.fermi_level == pytest.approx(depth - 5, abs=2e-4)
    assert result.band_energy == pytest.approx(band, abs=2e-4)
    assert abs(result.entropy_term) < 1e-100


def test_small_temperatures_approach_zero() -> None:
    dos = free_electron_dos()
    cold = from_dos(dos, GRID, 0.0, 11.0, VARIANCE)
    for temperature in (1e-200, 1e-9, 1e-3, 0.1, 1.0, 5.0):
        result = from_dos(dos, GRID, temperature, 11.0, VARIANCE)
        bound = 50 * (BOLTZMANN * temperature) ** 2 + 1e-7
        assert abs(result.fermi_level - cold.fermi_level) < bound
        assert abs(result.band_energy - cold.band_energy) < bound
        assert abs(result.entropy_term) < bound


@pytest.mark.parametrize("unbroaden", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numpy_and_torch_twins(dtype: type, unbroaden: bool) -> None:
    ldos = smooth_ldos().astype(dtype)
    a = from_ldos(ldos, GRID, VOLUME, 800.0, 9.0, VARIANCE, unbroaden)
    b = from_ldos(torch.from_numpy(ldos), torch.from_numpy(GRID), VOLUME, 800.0, 9.0, VARIANCE, unbroaden)
    assert isinstance(a.density, np.ndarray) and isinstance(b.density, torch.Tensor)
    assert isinstance(a.fermi_level, float) and isinstance(a.band_energy, float)
    assert a.density.shape == b.density.shape == (3, 4, 5)
    assert a.density.dtype == a.dos.dtype == np.float64 and b.density.dtype == b.dos.dtype == torch.float64
    for name in ("fermi_level", "band_energy", "entropy_term", "n_electrons"):
        assert getattr(a, name) == pytest.approx(getattr(b, name).item(), rel=1e-12)
    np.testing.assert_allclose(a.dos, b.dos.numpy(), rtol=1e-13)
    np.testing.assert_allclose(a.density, b.density.numpy(), rtol=1e-11)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the twin on the GPU is not tested")
def test_twin_on_the_gpu() -> None:
    ldos = torch.from_numpy(smooth_ldos()).requires_grad_()
    on_gpu = ldos.detach().cuda().requires_grad_()
    a, b = (from_ldos(d, GRID, VOLUME, 800.0, 9.0, VARIANCE) for d in (ldos, on_gpu))
    assert b.density.is_cuda and b.dos.is_cuda and b.fermi_level.is_cuda
    for name in ("fermi_level", "band_energy", "entropy_term", "density"):
        x, y = getattr(a, name).sum(), getattr(b, name).sum()
        assert x.item() == pytest.approx(y.item(), rel=1e-12)
        gradients = (
            torch.autograd.grad(v, d, retain_graph=True)[0].cpu() for v, d in ((x, ldos), (y, on_gpu))
        )
        torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


def test_ldos_adds_up() -> None:
    ldos = smooth_ldos()
    result = from_ldos(ldos, GRID, VOLUME, 800.0, 9.0, VARIANCE)
    np.testing.assert_allclose(result.dos, ldos.reshape(-1, 181).mean(axis=0) * VOLUME, rtol=1e-13)
    assert result.density.mean() * VOLUME == pytest.approx(9.0, rel=1e-12)
    assert result.n_electrons == pytest.approx(9.0, rel=1e-12)
    from_its_dos = from_dos(result.dos, GRID, 800.0, 9.0, VARIANCE)
    assert from_its_dos.band_energy == result.band_energy and from_its_dos.fermi_level == result.fermi_level
    # the density is that of each point alone
    weights = occupation_weights(GRID, result.fermi_level, 800.0, VARIANCE).number.numpy()
    np.testing.assert_allclose(result.density, ldos @ weights, rtol=1e-12)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_layout_and_order_do_not_matter(kind: str) -> None:
    """Points in another order, arrays that are not contiguous, other byte orders and types."""
    ldos = smooth_ldos()
    wrap = torch.from_numpy if kind == "torch" else np.asarray
    reference = from_ldos(ldos, GRID, VOLUME, 800.0, 9.0, VARIANCE)

    def check(array: np.ndarray, density: np.ndarray) -> None:
        result = from_ldos(wrap(array), GRID, VOLUME, 800.0, 9.0, VARIANCE)
        assert float(result.fermi_level) == pytest.approx(reference.fermi_level, rel=1e-12)
        assert float(result.band_energy) == pytest.approx(reference.band_energy, rel=1e-12)
        np.testing.assert_allclose(np.asarray(result.density), density, rtol=1e-11)

    order = np.random.default_rng(1).permutation(60)
    check(ldos.reshape(60, 181)[order], reference.density.ravel()[order])
    check(ldos.transpose(2, 0, 1, 3), reference.density.transpose(2, 0, 1))
    check(np.asfortranarray(ldos), reference.density)
    padded = np.full((3, 4, 5, 362), np.nan)
    padded[..., ::2] = ldos
    check(padded[..., ::2], reference.density)
    if kind == "numpy":
        check(ldos.astype(">f8"), reference.density)


def test_supercell_is_twice_the_cell() -> None:
    ldos = smooth_ldos()
    one = from_ldos(ldos, GRID, VOLUME, 800.0, 9.0, VARIANCE)
    two = from_ldos(np.concatenate([ldos, ldos]), GRID, 2 * VOLUME, 800.0, 18.0, VARIANCE)
    assert two.fermi_level == pytest.approx(one.fermi_level, rel=1e-12)
    assert two.band_energy == pytest.approx(2 * one.band_energy, rel=1e-12)
    assert two.entropy_term == pytest.approx(2 * one.entropy_term, rel=1e-12)
    np.testing.assert_allclose(two.density[3:], one.density, rtol=1e-12)


def test_energy_zero_is_free() -> None:
    """Shifting all energies shifts the Fermi level, and the band energy by that much per electron."""
    dos = free_electron_dos()
    a, b = (from_dos(dos, GRID + shift, 800.0, 9.0, VARIANCE) for shift in (0.0, 137.31))
    assert b.fermi_level - a.fermi_level == pytest.approx(137.31, abs=1e-9)
    assert b.band_energy - a.band_energy == pytest.approx(9 * 137.31, abs=1e-8)
    assert b.entropy_term == pytest.approx(a.entropy_term, abs=1e-10)


def test_derivatives_of_an_ldos() -> None:
    grid = np.linspace(-2.0, 3.0, 11)
    rng = np.random.default_rng(5)
    ldos = torch.tensor(0.1 + 0.05 * rng.random((2, 1, 2, 11)), dtype=torch.float64, requires_grad=True)

    def outputs(d: torch.Tensor) -> tuple[torch.Tensor, ...]:
        result = from_ldos(d, grid, 20.0, 6000.0, 5.0, VARIANCE)
        return result.density, result.dos, result.band_energy, result.entropy_term, result.fermi_level

    assert torch.autograd.gradcheck(outputs, ldos, eps=1e-5, atol=1e-7)
    float32 = ldos.detach().to(torch.float32).requires_grad_()
    (gradient,) = torch.autograd.grad(outputs(float32)[2], float32)
    (exact,) = torch.autograd.grad(outputs(ldos)[2], ldos)
    torch.testing.assert_close(gradient.double(), exact, rtol=1e-4, atol=1e-5)


def test_without_gradient_nothing_is_recorded() -> None:
    dos = torch.from_numpy(free_electron_dos())
    assert not from_dos(dos, GRID, 300.0, 9.0).band_energy.requires_grad
    with torch.no_grad():
        assert not from_dos(dos.requires_grad_(), GRID, 300.0, 9.0).band_energy.requires_grad


def test_highest_temperature() -> None:
    limit = highest_temperature(GRID, 10.43, 7.85)
    # the last energy of the grid that is complete is 10.4 eV
    assert 1 / (1 + math.exp((10.4 - 7.85) / (BOLTZMANN * limit))) == pytest.approx(1e-6, rel=1e-9)
    assert highest_temperature(GRID, 10.4, 7.85) == pytest.approx(limit, rel=1e-12)
    assert highest_temperature(GRID, 10.4, 7.85, 1e-3) > limit
    at_the_end = highest_temperature(GRID, 12.0, 7.85)
    assert highest_temperature(GRID, math.inf, 7.85) == at_the_end > limit
    assert highest_temperature(GRID, 7.0, 7.85) == 0.0
    for complete_to in (-6.5, math.nan):
        with pytest.raises(InputError, match="no temperature is allowed"):
            highest_temperature(GRID, complete_to, 0.0)
    with pytest.raises(InputError, match="between 0 and 0.5"):
        highest_temperature(GRID, 10.4, 7.85, 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ldos": np.zeros((3, 4, 5, 180))}, "181 energies"),
        ({"ldos": np.zeros(181)}, "needs grid points"),
        ({"ldos": np.zeros((0, 181))}, "needs grid points"),
        ({"ldos": np.full((2, 181), np.nan)}, "NaN"),
        ({"ldos": np.full((2, 181), np.inf, dtype=np.float32)}, "NaN or infini"),
        ({"ldos": np.zeros((2, 181), dtype=complex)}, "real"),
        ({"ldos": np.zeros((2, 181))}, "no Fermi level"),
        ({"volume": 0.0}, "volume"),
        ({"volume": math.nan}, "volume"),
        ({"n_electrons": 0.0}, "electrons must be positive"),
        ({"n_electrons": math.nan}, "electrons must be positive"),
        ({"temperature": -3.0}, "temperature"),
        ({"broadening_variance": -1.0}, "variance"),
        ({"energy_grid": GRID**3}, "not uniform"),
    ],
)
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_bad_input(kind: str, change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {
        "ldos": smooth_ldos(),
        "energy_grid": GRID,
        "volume": VOLUME,
        "temperature": 300.0,
        "n_electrons": 9.0,
        **change,
    }
    if kind == "torch":
        arguments["ldos"] = torch.from_numpy(arguments["ldos"])
    with pytest.raises(InputError, match=message):
        from_ldos(**arguments)  # type: ignore[arg-type]
