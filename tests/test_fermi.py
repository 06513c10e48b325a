"""The Fermi level: which root, its electrons, its derivatives, and when there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dos_examples import GRID, SPACING, VARIANCE, free_electron_dos, spiky_dos

from malax.errors import InputError
from malax.fermi import electrons_at, fermi_level
from malax.observables import from_dos, number_weights, occupation_weights


@pytest.mark.parametrize("unbroaden", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 30.0, 298.0, 3000.0])
@pytest.mark.parametrize("dos", [free_electron_dos(), spiky_dos()], ids=["free", "spiky"])
def test_the_electrons_are_found(dos: np.ndarray, temperature: float, unbroaden: bool) -> None:
    total = electrons_at(dos, GRID, 10.0, 0.0)
    for n in np.linspace(0.05, 0.9, 18) * total:
        result = from_dos(dos, GRID, temperature, n, VARIANCE, unbroaden)
        assert result.n_electrons == pytest.approx(n, rel=1e-9)
        if not unbroaden:
            assert electrons_at(dos, GRID, result.fermi_level, temperature) == pytest.approx(n, rel=1e-11)


@pytest.mark.parametrize("temperature", [0.0, 298.0])
def test_the_nearest_root_is_taken(temperature: float) -> None:
    """Against a scan so dense that it sees every root."""
    dos, variance = spiky_dos(), 0.1
    scan, step = np.linspace(-6, 12, 60_001, retstep=True)
    blocks = np.array_split(scan, 60)
    corrected = np.concatenate([number_weights(GRID, b, temperature, variance).numpy() @ dos for b in blocks])
    several = 0
    for n in np.linspace(0.06, 0.93, 37) * electrons_at(dos, GRID, 10.0, 0.0):
        uncorrected = fermi_level(dos, GRID, temperature, n, unbroaden=False)
        signs = np.sign(corrected - n)
        roots = scan[:-1][signs[:-1] != signs[1:]]
        several += len(roots) > 1
        mu = fermi_level(dos, GRID, temperature, n, variance)
        assert np.abs(roots - mu).min() < 1.1 * step, n
        assert abs(mu - uncorrected) < np.abs(roots - uncorrected).min() + 1.1 * step, n
    assert several > 3, "this DOS is meant to have several roots"


def test_gap_gives_its_middle() -> None:
    """Nine filled states, a gap from 0.1 to 2.9 eV: any level in it is a root."""
    dos = np.where((GRID < 0.05) | (GRID > 2.95), 2.0, 0.0)
    filled = 2 * SPACING * (GRID < 0.05).sum()
    for temperature in (0.0, 100.0):
        mu = fermi_level(dos, GRID, temperature, filled, unbroaden=False)
        # a hat reaches 0.1 eV into the gap from both sides
        assert mu == pytest.approx(1.5, abs=0.01)
        corrected = from_dos(dos, GRID, temperature, filled, VARIANCE)
        assert 0.1 < corrected.fermi_level < 2.9
        assert corrected.n_electrons == pytest.approx(filled, rel=1e-11)
    # nothing above the gap: every level up to the end of the grid is a root
    assert fermi_level(np.where(GRID < 0.05, 2.0, 0.0), GRID, 0.0, filled, unbroaden=False) > 0.1


def test_negative_dos_gives_the_lowest_level() -> None:
    """Above the sound energies a network may give anything: the number of electrons falls again there."""
    dos = np.where(GRID < 5, 1.0, -1.0)
    mu = fermi_level(dos, GRID, 300.0, 8.0, unbroaden=False)
    assert mu == pytest.approx(-6 + 8 - SPACING / 2, abs=1e-6)


@pytest.mark.parametrize("unbroaden", [False, True])
def test_free_energy_is_stationary_in_the_fermi_level(unbroaden: bool) -> None:
    """dF/dN = mu, F = E_band - TS: the thermodynamic identity behind one Fermi level for all."""
    dos, step = free_electron_dos(), 1e-4
    free = [
        (r := from_dos(dos, GRID, 1500.0, n, VARIANCE, unbroaden)).band_energy + r.entropy_term
        for n in (11.0 - step, 11.0 + step)
    ]
    mu = fermi_level(dos, GRID, 1500.0, 11.0, VARIANCE, unbroaden)
    assert (free[1] - free[0]) / (2 * step) == pytest.approx(mu, abs=1e-6)


@pytest.mark.parametrize("unbroaden", [False, True])
@pytest.mark.parametrize("temperature", [300.0, 4000.0])
def test_derivatives_through_the_fermi_level(temperature: float, unbroaden: bool) -> None:
    """First and second derivatives, the implicit ones of the Fermi level included."""
    grid = np.linspace(-2.0, 3.0, 26)
    dos = torch.tensor(1.5 + np.sin(grid), dtype=torch.float64, requires_grad=True)

    def outputs(d: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(vars(from_dos(d, grid, temperature, 3.7, VARIANCE, unbroaden)).values())

    assert torch.autograd.gradcheck(outputs, dos, eps=1e-5, atol=1e-7)
    assert torch.autograd.gradgradcheck(outputs, dos, eps=1e-5, atol=1e-6)
    # at fixed N the free energy changes by the change of the DOS at fixed mu: e f - TS - mu N
    result = from_dos(dos, grid, temperature, 3.7, VARIANCE, unbroaden)
    (gradient,) = torch.autograd.grad(result.band_energy + result.entropy_term, dos)
    w = occupation_weights(grid, float(result.fermi_level.detach()), temperature, VARIANCE, unbroaden)
    wanted = w.band_energy + w.entropy_term - result.fermi_level.detach() * w.number
    torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-9)


def test_no_gradient_through_an_open_gap_is_finite() -> None:
    """In a gap without thermal electrons dN/dmu is zero; the gradient must not be NaN."""
    values = np.where((GRID < 0.05) | (GRID > 2.95), 2.0, 0.0)
    dos = torch.tensor(values, requires_grad=True)
    result = from_dos(dos, GRID, 20.0, 2 * SPACING * (GRID < 0.05).sum(), unbroaden=False)
    (gradient,) = torch.autograd.grad(result.band_energy + result.entropy_term, dos)
    assert torch.isfinite(gradient).all()


def test_electrons_at_is_uncorrected() -> None:
    dos = free_electron_dos()
    mu = fermi_level(dos, GRID, 900.0, 11.0, unbroaden=False)
    assert electrons_at(dos, GRID, mu, 900.0) == pytest.approx(11.0, rel=1e-12)
    assert electrons_at(torch.from_numpy(dos), GRID, mu, 900.0) == electrons_at(dos, GRID, mu, 900.0)
    assert electrons_at(dos, GRID, mu + 0.1, 900.0) > 11.1


@pytest.mark.parametrize("unbroaden", [False, True])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_no_fermi_level_on_the_grid(kind: str, unbroaden: bool) -> None:
    dos = free_electron_dos()
    held = electrons_at(dos, GRID, 12.0, 298.0)
    wrapped = torch.from_numpy(dos) if kind == "torch" else dos
    with pytest.raises(
        InputError, match=f"no Fermi level .*75 electrons are wanted.* holds .*{held:.6g} up to 12"
    ):
        fermi_level(wrapped, GRID, 298.0, 75.0, VARIANCE, unbroaden)
    # below the grid
    with pytest.raises(InputError, match="no Fermi level"):
        fermi_level(np.ones(181), GRID, 298.0, 1e-3, VARIANCE, unbroaden)
    # hot electrons leave the grid
    with pytest.raises(InputError, match="at 100000 K"):
        fermi_level(wrapped, GRID, 1e5, 50.0, VARIANCE, unbroaden)


def test_corrected_electrons_do_not_suffice() -> None:
    """The uncorrected DOS has a level just below the end of the grid; a negative one there takes it away."""
    dos = np.exp(-((GRID / 2) ** 2))
    dos[-1], dos[-3] = 2.0, -0.5
    n = electrons_at(dos, GRID, 12.0, 1000.0) * (1 - 1e-6)
    assert fermi_level(dos, GRID, 1000.0, n, unbroaden=False) > 11.9
    with pytest.raises(InputError, match="the unbroadened DOS holds between"):
        fermi_level(dos, GRID, 1000.0, n, 0.5)


def test_bad_dos() -> None:
    with pytest.raises(InputError, match="DOS has shape"):
        from_dos(np.ones(180), GRID, 300.0, 1.0)
    with pytest.raises(InputError, match="DOS holds NaN"):
        from_dos(np.full(181, np.nan), GRID, 300.0, 1.0)


@pytest.mark.parametrize("error", [-5e-6, 5e-6])
def test_gap_of_an_ldos_with_rounding_errors(error: float) -> None:
    """The electrons below the gap are never quite those wanted: the level stays in the gap all the same."""
    x = (GRID - 3.0) / 0.2
    bands = np.exp(-((GRID + 1.0) ** 2) / 0.04) + np.exp(-(x**2))  # a band at -1 eV and one at 3 eV
    filled = float(np.exp(-((GRID + 1.0) ** 2) / 0.04).sum() * (GRID[1] - GRID[0]))
    for unbroaden in (False, True):
        found = from_dos(bands, GRID, 300.0, filled * (1 + error), 0.02, unbroaden)
        assert found.fermi_level == pytest.approx(1.0, abs=0.1)
        assert abs(found.entropy_term) < 1e-9
        assert found.band_energy == pytest.approx(-filled, rel=1e-5)
