"""The bispectrum from its definition, written in torch: its derivatives are then torch's."""

from __future__ import annotations

from itertools import product
from math import factorial

import numpy as np
import torch
from references import clebsch_gordan

COMPLEX = torch.complex128


def bispectrum(
    positions, cell, points, weights, pbc, *, twojmax, cutoff, rfac0, rmin0, switchflag, bzeroflag
):
    """Bispectrum components (P, F), differentiable in positions (N, 3), cell (3, 3), points (P, 3).

    As `references.bispectrum`, which is for one point and has no derivatives.
    """
    rows = []
    for point in points:
        r, w = neighbours(positions, cell, point, weights, pbc, cutoff)
        distance = torch.linalg.norm(r, dim=1)
        theta = (distance - rmin0) * rfac0 * np.pi / (cutoff - rmin0)
        sign = torch.where(torch.sin(theta.detach()) >= 0, 1.0, -1.0)
        x, y, z = (r / distance[:, None]).T
        a = sign * torch.complex(torch.cos(theta), -torch.sin(theta) * z)
        b = sign * torch.complex(torch.sin(theta) * y, -torch.sin(theta) * x)
        if switchflag:
            fade = torch.clamp((distance - rmin0) * np.pi / (cutoff - rmin0), min=0.0)
            w = w * 0.5 * (torch.cos(fade) + 1.0)
        u = [
            torch.eye(j + 1, dtype=COMPLEX) + torch.einsum("n,nab->ab", w.to(COMPLEX), wigner(j, a, b))
            for j in range(twojmax + 1)
        ]
        rows.append(torch.stack([component(u, *t) - bzeroflag * (t[2] + 1) for t in triples(twojmax)]))
    return torch.stack(rows)


def triples(twojmax):
    """(j1, j2, j) in LAMMPS order."""
    return [
        (j1, j2, j)
        for j1 in range(twojmax + 1)
        for j2 in range(j1 + 1)
        for j in range(j1 - j2, min(twojmax, j1 + j2) + 1, 2)
        if j >= j1
    ]


def neighbours(positions, cell, point, weights, pbc, cutoff):
    """Vectors (n, 3) from the point to all atoms and images within the cutoff, and their weights (n,)."""
    h, x, p = cell.detach().numpy(), positions.detach().numpy(), point.detach().numpy()
    heights = 1 / np.linalg.norm(np.linalg.inv(h), axis=0)
    spread = np.abs(np.linalg.solve(h.T, (x - p).T)).max(axis=1)
    reach = [
        int(np.ceil(cutoff / height + s)) if flag else 0
        for height, s, flag in zip(heights, spread, pbc, strict=True)
    ]
    shifts = torch.tensor(list(product(*(range(-n, n + 1) for n in reach))), dtype=torch.float64)
    r = (positions[None] + (shifts @ cell)[:, None] - point).reshape(-1, 3)
    w = torch.as_tensor(weights, dtype=torch.float64).repeat(len(shifts))
    distance = torch.linalg.norm(r.detach(), dim=1)
    inside = (distance > 1e-10) & (distance < cutoff)
    return r[inside], w[inside]


def wigner(j, a, b):
    """Matrices U[n, mb, ma] of spin j/2 for rotations (a, b) (n,): see `references.wigner`."""
    rows = []
    for mb in range(j + 1):
        coefficients = [torch.ones_like(a)]  # of t^0, t^1, ...
        for constant, slope in [(a.conj(), -b.conj())] * (j - mb) + [(b, a)] * mb:
            raised = [constant * c for c in coefficients] + [torch.zeros_like(a)]
            for i, c in enumerate(coefficients):
                raised[i + 1] = raised[i + 1] + slope * c
            coefficients = raised
        norms = [
            np.sqrt(factorial(ma) * factorial(j - ma) / (factorial(mb) * factorial(j - mb)))
            for ma in range(j + 1)
        ]
        rows.append(torch.stack([norm * c for norm, c in zip(norms, coefficients, strict=True)], dim=1))
    return torch.stack(rows, dim=1)


def component(u, j1, j2, j):
    """sum over all indices of conj(u_j) C C u_j1 u_j2."""
    shift, cg = (j1 + j2 - j) // 2, clebsch_gordan(j1, j2, j)
    coupling = torch.zeros(j1 + 1, j2 + 1, j + 1, dtype=COMPLEX)
    for m1, m2 in product(range(j1 + 1), range(j2 + 1)):
        if 0 <= m1 + m2 - shift <= j:
            coupling[m1, m2, m1 + m2 - shift] = cg[m1, m2]
    rows = torch.einsum("abm,ac,bd->mcd", coupling, u[j1], u[j2])
    return torch.einsum("mcd,cdn,mn->", rows, coupling, u[j].conj()).real
