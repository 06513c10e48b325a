"""Exchange-correlation energy densities of the unpolarised electron gas, in Hartree atomic units.

Each function gives the energy per volume f and its derivatives with respect to the density n
and to sigma = |grad n|^2, written out, so that potentials need no automatic differentiation (which works
through them all the same). The constants are Quantum ESPRESSO's.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from malax.errors import InputError
from malax.io.upf import functional_name

LDA_DENSITY = 1e-10
"""Below this |n| (1/bohr^3) the local part is zero."""

GGA_DENSITY = 1e-6
"""Below this |n| (1/bohr^3) the gradient part is zero."""

GGA_SIGMA = 1e-10
"""Below this |grad n|^2 (1/bohr^8) the gradient part is zero."""

PW92_A = 0.031091
"""QE's constant A of Perdew and Wang; libxc's PBE has 0.0310907, which moves the energy by 4e-7 of itself."""

KAPPA = 0.804
GAMMA = (1 - math.log(2)) / math.pi**2


class Functional(NamedTuple):
    """A functional: its local correlation, and the coefficients mu and beta of its gradient part."""

    name: str
    correlation: str
    mu: float = 0.0
    beta: float = 0.0

    @property
    def is_gga(self) -> bool:
        return self.mu > 0


# PBE: Perdew, Burke, Ernzerhof, PRL 77, 3865 (1996); PBEsol: Perdew et al., PRL 100, 136406 (2008)
FUNCTIONALS = {
    f.name: f
    for f in (
        Functional("PZ", "PZ"),
        Functional("PW", "PW"),
        Functional("PBE", "PW", mu=0.2195149727645171, beta=0.06672455060314922),
        Functional("PBESOL", "PW", mu=10 / 81, beta=0.046),
    )
}


def find_functional(name: str) -> Functional:
    """The functional of this name (any of QE's spellings). InputError for one that malax does not have."""
    functional = FUNCTIONALS.get(functional_name(name))
    if functional is None:
        raise InputError(
            f"the functional {name.strip()!r} is not supported; there are: {', '.join(FUNCTIONALS)}"
        )
    return functional


def evaluate(
    functional: Functional, n: torch.Tensor, sigma: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """f, df/dn, df/dsigma at each point, with QE's thresholds; df/dsigma is None for an LDA.

    Where n < 0 (ripples of a plane-wave density in vacuum) f is odd in n and both derivatives even, as in QE.
    So there, and only there, df/dsigma has the wrong sign: the band energies of QE belong to that potential.
    """
    size = n.abs()
    on = size > LDA_DENSITY
    safe = torch.where(on, size, 1.0)
    exchange, exchange_n = lda_exchange(safe)
    eps, eps_n = lda_correlation(functional.correlation, safe)
    f = exchange + safe * eps
    f_n = exchange_n + eps + safe * eps_n
    f = torch.where(on, f, 0.0)
    f_n = torch.where(on, f_n, 0.0)
    f_sigma = None
    if functional.is_gga:
        if sigma is None:
            raise ValueError(f"{functional.name} needs sigma")
        on = (size > GGA_DENSITY) & (sigma > GGA_SIGMA)
        safe = torch.where(on, size, 1.0)
        gx = gga_exchange(functional, safe, torch.where(on, sigma, 1.0))
        gc = gga_correlation(functional, safe, torch.where(on, sigma, 1.0))
        f = f + torch.where(on, gx[0] + gc[0], 0.0)
        f_n = f_n + torch.where(on, gx[1] + gc[1], 0.0)
        f_sigma = torch.where(on, gx[2] + gc[2], 0.0)
    return f * torch.sign(n), f_n, f_sigma


def lda_exchange(n: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Slater's f = -3/4 (3/pi)^(1/3) n^(4/3), and df/dn."""
    eps = -0.75 * (3 / math.pi) ** (1 / 3) * n ** (1 / 3)
    return eps * n, 4 / 3 * eps


def lda_correlation(name: str, n: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlation energy per electron eps and d eps/dn; ``name`` is "PZ" or "PW"."""
    rs = (3 / (4 * math.pi) / n) ** (1 / 3)
    eps, eps_rs = (perdew_zunger if name == "PZ" else perdew_wang)(rs)
    return eps, -eps_rs * rs / (3 * n)


def perdew_zunger(rs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """eps and d eps/d rs of Perdew, Zunger, PRB 23, 5048 (1981)."""
    log = torch.log(rs)
    dense = 0.0311 * log - 0.048 + 0.0020 * rs * log - 0.0116 * rs
    dense_rs = 0.0311 / rs + 0.0020 * (log + 1) - 0.0116
    root = torch.sqrt(rs)
    denominator = 1 + 1.0529 * root + 0.3334 * rs
    dilute = -0.1423 / denominator
    dilute_rs = 0.1423 / denominator**2 * (0.5 * 1.0529 / root + 0.3334)
    is_dense = rs < 1
    return torch.where(is_dense, dense, dilute), torch.where(is_dense, dense_rs, dilute_rs)


def perdew_wang(rs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """eps and d eps/d rs of Perdew, Wang, PRB 45, 13244 (1992),."""
    a, a1, b1, b2, b3, b4 = PW92_A, 0.21370, 7.5957, 3.5876, 1.6382, 0.49294
    root = torch.sqrt(rs)
    x = 2 * a * root * (b1 + root * (b2 + root * (b3 + root * b4)))
    x_rs = a / root * (b1 + root * (2 * b2 + root * (3 * b3 + root * 4 * b4)))
    log = torch.log1p(1 / x)
    eps = -2 * a * (1 + a1 * rs) * log
    eps_rs = -2 * a * (a1 * log - (1 + a1 * rs) * x_rs / (x * (x + 1)))
    return eps, eps_rs


def gga_exchange(
    functional: Functional, n: torch.Tensor, sigma: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the gradient adds to Slater's exchange: f_x(n) (F(s) - 1), and its derivatives.

    F - 1 = mu s^2 / (1 + mu s^2 / kappa), s = |grad n| / (2 k_F n).
    """
    slater, slater_n = lda_exchange(n)
    s2_sigma = 1 / (4 * (3 * math.pi**2) ** (2 / 3) * n ** (8 / 3))
    s2 = s2_sigma * sigma
    denominator = 1 + functional.mu / KAPPA * s2
    enhancement = functional.mu * s2 / denominator
    enhancement_s2 = functional.mu / denominator**2
    f_n = slater_n * enhancement - slater * enhancement_s2 * (8 / 3) * s2 / n
    return slater * enhancement, f_n, slater * enhancement_s2 * s2_sigma


def gga_correlation(
    functional: Functional, n: torch.Tensor, sigma: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """PBE's n H(n, t), and its derivatives.

    H = gamma ln(1 + beta/gamma Q), Q = u (1 + y)/(1 + y + y^2), y = A u, u = t^2,
    A = (beta/gamma) / (exp(-eps/gamma) - 1), t = |grad n| / (2 k_s n).
    """
    beta = functional.beta
    eps, eps_n = lda_correlation(functional.correlation, n)
    u_sigma = math.pi / (16 * (3 * math.pi**2) ** (1 / 3)) * n ** (-7 / 3)
    u = u_sigma * sigma
    a = beta / GAMMA / torch.expm1(-eps / GAMMA)
    a_n = a * a / beta * torch.exp(-eps / GAMMA) * eps_n
    y = a * u
    d = 1 + y + y * y
    q = u * (1 + y) / d
    q_u = (1 + 2 * y) / (d * d)
    q_a = -u * u * y * (2 + y) / (d * d)
    h = GAMMA * torch.log1p(beta / GAMMA * q)
    h_q = beta / (1 + beta / GAMMA * q)
    f_n = h + h_q * (n * q_a * a_n - 7 / 3 * q_u * u)
    return n * h, f_n, n * h_q * q_u * u_sigma
