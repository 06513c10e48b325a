"""F_s(x) = -Li_s(-e^-x), s = 0..3: the Fermi function and its repeated integrals, in float64 torch.

F_0(x) = 1/(e^x + 1), F_1(x) = ln(1 + e^-x), F_s' = -F_(s-1).
"""

from __future__ import annotations

import math
from typing import Any

import torch

from malax.errors import InputError


def _alternating_series(s: int, terms: int = 24) -> list[float]:
    """Coefficients p_k of u^k in F_s = sum_k p_k u^k, u = e^-x in [0, 1], k = 1..terms.

    Cohen, Rodriguez Villegas, Zagier, Exp. Math. 9, 3 (2000), algorithm 1: the relative error is below
    5.8^-terms for alternating sums of moments, as u^k / k^s are. In exact integers until the division.
    """
    d, following = 1, 3
    for _ in range(terms):
        d, following = following, 6 * following - d
    b, c = -1, -d
    coefficients = []
    for k in range(terms):
        c = b - c
        coefficients.append(c / (d * (k + 1) ** s))
        b = b * 2 * (k + terms) * (k - terms) // ((2 * k + 1) * (k + 1))
    return coefficients


_SERIES = {s: _alternating_series(s) for s in (2, 3)}


def _series(s: int, x: torch.Tensor) -> torch.Tensor:
    """F_s(x) for x >= 0 and s = 1, 2, 3, without autograd."""
    u = torch.exp(-x)
    if s == 1:
        return torch.log1p(u)
    *lower, highest = _SERIES[s]
    total = torch.full_like(u, highest)
    for coefficient in reversed(lower):
        total.mul_(u).add_(coefficient)
    return total.mul_(u)


class _Decaying(torch.autograd.Function):
    """F_s on x >= 0, s = 1, 2, 3, differentiable to any order by F_s' = -F_(s-1)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, s: int) -> torch.Tensor:
        ctx.s = s
        ctx.save_for_backward(x)
        return _series(s, x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        lower = torch.sigmoid(-x) if ctx.s == 1 else _Decaying.apply(x, ctx.s - 1)
        return -grad * lower, None


def fermi_integral(s: int, x: torch.Tensor) -> torch.Tensor:
    """F_s(x) = -Li_s(-e^-x) for s = 0, 1, 2, 3 and any real x, in float64, differentiable in x.

    For x < 0 by the inversion formulas F_1 = -x + F_1(-x), F_2 = x^2/2 + pi^2/6 - F_2(-x) and
    F_3 = -(x^3 + pi^2 x)/6 + F_3(-x).

    Raises
    ------
    InputError
        for another s.
    """
    if s not in (0, 1, 2, 3):
        raise InputError(f"fermi_integral knows s = 0, 1, 2, 3, got {s}")
    x = x.to(torch.float64)
    if s == 0:
        return torch.sigmoid(-x)
    sign = torch.where(x >= 0, 1.0, -1.0).to(x)
    folded = decaying(s, sign * x)
    if s == 1:
        return torch.where(x < 0, folded - x, folded)
    if s == 2:
        return torch.where(x < 0, x**2 / 2 + math.pi**2 / 6 - folded, folded)
    return torch.where(x < 0, folded - (x**3 + math.pi**2 * x) / 6, folded)


def decaying(s: int, x: torch.Tensor) -> torch.Tensor:
    """F_s(x) for x >= 0 (unchecked) and s = 1, 2, 3, without the branch for x < 0."""
    return _Decaying.apply(x, s)  # type: ignore[no-any-return,no-untyped-call]
