"""Functionals against libxc (through pyscf), point by point."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from malax.energies import functionals
from malax.energies.functionals import FUNCTIONALS, evaluate

libxc = pytest.importorskip("pyscf.dft.libxc", reason="no pyscf (pip install malax[test])")

CODES = {
    "PZ": "LDA_X,LDA_C_PZ",
    "PW": "LDA_X,LDA_C_PW",
    "PBE": "GGA_X_PBE,GGA_C_PBE",
    "PBESOL": "GGA_X_PBE_SOL,GGA_C_PBE_SOL",
}


def samples() -> tuple[np.ndarray, np.ndarray]:
    """Densities from 0.003 to 30 /bohr^3, |grad n| / n^(4/3) from 0.1 to 10: above all thresholds."""
    rng = np.random.default_rng(0)
    n = 10 ** rng.uniform(-2.5, 1.5, 2000)
    return n, n ** (4 / 3) * 10 ** rng.uniform(-1, 1, 2000)


def compare(name: str) -> tuple[float, float, float]:
    """Largest relative deviations of the energy, df/dn and df/dsigma."""
    n, gradient = samples()
    zero = np.zeros_like(n)
    f, f_n, f_sigma = evaluate(FUNCTIONALS[name], torch.tensor(n), torch.tensor(gradient**2))
    rho = np.array([n, gradient, zero, zero]) if FUNCTIONALS[name].is_gga else n
    eps, potential, _, _ = libxc.eval_xc(CODES[name], rho, spin=0, deriv=1)
    sigma_error = 0.0 if f_sigma is None else np.abs(f_sigma.numpy() / potential[1] - 1).max()
    return np.abs(f.numpy() / (n * eps) - 1).max(), np.abs(f_n.numpy() / potential[0] - 1).max(), sigma_error


@pytest.mark.parametrize("name", ["PZ", "PW"])
def test_lda(name):
    energy, potential, _ = compare(name)
    assert energy < 1e-13 and potential < 1e-13


@pytest.mark.parametrize("name", ["PBE", "PBESOL"])
def test_gga_with_the_constant_of_libxc(name, monkeypatch):
    monkeypatch.setattr(functionals, "PW92_A", 0.0310907)
    energy, potential, sigma = compare(name)
    # df/dsigma is the sum of exchange and correlation, which nearly cancel at some points
    assert energy < 1e-13 and potential < 1e-13 and sigma < 1e-9


@pytest.mark.parametrize("name", ["PBE", "PBESOL"])
def test_gga_with_the_constant_of_qe(name):
    energy, potential, _ = compare(name)
    assert 1e-8 < energy < 1e-6 and potential < 1e-6
