"""Slow, plain oracles, written for reading; the tests compare the fast code with them."""

from __future__ import annotations

import math
from functools import cache
from itertools import product
from math import factorial

import numpy as np
from sympy import Rational
from sympy.physics.quantum.cg import CG


def bispectrum(positions, weights, cell, pbc, point, *, twojmax, cutoff, rfac0, rmin0, switchflag, bzeroflag):
    """Bispectrum components (F,) at one point, straight from the definition.

    A. P. Thompson et al., J. Comput. Phys. 285, 316 (2015), equations (1) to (6), in the conventions of
    LAMMPS: ``weights`` (N,) per atom, lengths in A, an atom on the point itself does not count.
    """
    expansion = {j: np.eye(j + 1, dtype=complex) for j in range(twojmax + 1)}
    for atom, weight in _neighbours(positions, weights, cell, pbc, point, cutoff):
        r = np.linalg.norm(atom)
        x, y, z = atom / r
        theta = (r - rmin0) * rfac0 * np.pi / (cutoff - rmin0)
        sign = 1 if np.sin(theta) >= 0 else -1
        a = sign * (np.cos(theta) - 1j * np.sin(theta) * z)
        b = sign * np.sin(theta) * (y - 1j * x)
        for j in expansion:
            expansion[j] += weight * _switching(r, cutoff, rmin0, switchflag) * wigner(j, a, b)
    features = []
    for j1 in range(twojmax + 1):
        for j2 in range(j1 + 1):
            for j in range(j1 - j2, min(twojmax, j1 + j2) + 1, 2):
                if j >= j1:
                    features.append(_component(expansion, j1, j2, j) - bzeroflag * (j + 1))
    return np.array(features)


def wigner(j, a, b):
    """The (j+1, j+1) matrix U[mb, ma] of spin j/2 for the rotation (a, b) of SU(2): from the polynomial
    (a* - b* t)^(j-mb) (b + a t)^mb, whose coefficient of t^ma belongs to ma."""
    matrix = np.empty((j + 1, j + 1), dtype=complex)
    for mb in range(j + 1):
        coefficients = np.ones(1, dtype=complex)
        for factor in [[a.conjugate(), -b.conjugate()]] * (j - mb) + [[b, a]] * mb:
            coefficients = np.convolve(coefficients, factor)
        for ma in range(j + 1):
            norm = factorial(ma) * factorial(j - ma) / (factorial(mb) * factorial(j - mb))
            matrix[mb, ma] = np.sqrt(norm) * coefficients[ma]
    return matrix


@cache
def clebsch_gordan(j1, j2, j):
    """<j1/2 m1 j2/2 m2 | j/2 m1+m2> as an array (j1+1, j2+1), m counted from -j/2 upwards; by sympy."""
    table = np.zeros((j1 + 1, j2 + 1))
    for i, k in product(range(j1 + 1), range(j2 + 1)):
        m1, m2 = Rational(2 * i - j1, 2), Rational(2 * k - j2, 2)
        if abs(m1 + m2) <= Rational(j, 2):
            cg = CG(Rational(j1, 2), m1, Rational(j2, 2), m2, Rational(j, 2), m1 + m2)
            table[i, k] = float(cg.doit())
    return table


def _component(u, j1, j2, j):
    """sum over all indices of conj(u_j) C C u_j1 u_j2; it is real."""
    cg, shift, total = clebsch_gordan(j1, j2, j), (j1 + j2 - j) // 2, 0.0
    for mb1, mb2 in product(range(j1 + 1), range(j2 + 1)):
        for ma1, ma2 in product(range(j1 + 1), range(j2 + 1)):
            mb, ma = mb1 + mb2 - shift, ma1 + ma2 - shift
            if 0 <= mb <= j and 0 <= ma <= j:
                coupling = cg[mb1, mb2] * cg[ma1, ma2]
                total += coupling * u[j][mb, ma].conjugate() * u[j1][mb1, ma1] * u[j2][mb2, ma2]
    assert abs(total.imag) < 1e-9 * max(1.0, abs(total.real))
    return total.real


def _neighbours(positions, weights, cell, pbc, point, cutoff):
    """Vectors from the point to all atoms and images within the cutoff, with their weights."""
    heights = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    spread = np.abs(np.linalg.solve(cell.T, (positions - point).T)).max(axis=1)
    reach = [
        int(np.ceil(cutoff / h + s)) if flag else 0 for h, s, flag in zip(heights, spread, pbc, strict=True)
    ]
    for shift in product(*(range(-n, n + 1) for n in reach)):
        for position, weight in zip(positions + np.array(shift) @ cell - point, weights, strict=True):
            if 1e-10 < np.linalg.norm(position) < cutoff:
                yield position, weight


def _switching(r, cutoff, rmin0, switchflag):
    if not switchflag or r <= rmin0:
        return 1.0
    return 0.5 * (np.cos((r - rmin0) * np.pi / (cutoff - rmin0)) + 1.0)


def ldos_sums(ldos, block=128):
    """Sum over points in the order that ``kernels.ldos_moments`` promises: blocks of points, then blocks."""
    partial = [
        np.add.accumulate(ldos[i : i + block], axis=0, dtype=np.float64)[-1]
        for i in range(0, len(ldos), block)
    ]
    return np.add.accumulate(partial, axis=0)[-1] if partial else np.zeros(ldos.shape[1])


# ---- networks --------------------------------------------------------------------------------------

ACTIVATIONS = {
    "identity": lambda x: x,
    "relu": lambda x: max(x, 0.0),
    "leaky_relu": lambda x: x if x > 0 else 0.01 * x,
    "silu": lambda x: x / (1 + math.exp(-x)) if x > -700 else 0.0,
    "gelu": lambda x: x * 0.5 * math.erfc(-x / math.sqrt(2)),
    "tanh": math.tanh,
}


def dense_layers(rows, weights, biases, activations, mean, scale):
    """x <- activation(x W^T + b), layer after layer, number by number."""
    out = []
    for row in (rows - mean) / scale:
        x = list(row)
        for w, b, name in zip(weights, biases, activations, strict=True):
            x = [
                ACTIVATIONS[name](math.fsum(a * c for a, c in zip(x, ws, strict=True)) + bs)
                for ws, bs in zip(w, b, strict=True)
            ]
        out.append(x)
    return np.array(out)
