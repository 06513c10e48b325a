"""Slow, plain oracle of the Gaussian descriptors: all atoms, all images, one exponential after the other."""

from __future__ import annotations

from itertools import product

import numpy as np


def gaussian(positions, types, cell, pbc, points, sigma, cutoff, weights):
    """Values (P, T) at ``points`` (P, 3): weights[t] times the sum of normalised Gaussians of type t.

    ``sigma``, ``cutoff`` and ``weights`` are (T,), lengths in A; atoms nearer than the cutoff count.
    """
    values = np.zeros((len(points), len(sigma)))
    for type_, vectors in _images(positions, types, cell, pbc, points, max(cutoff)):
        squared = (vectors**2).sum(axis=1)
        peak = weights[type_] / (sigma[type_] * np.sqrt(2 * np.pi)) ** 3
        inside = np.sqrt(squared) < cutoff[type_] * (1 - 1e-10)
        values[:, type_] += inside * peak * np.exp(-squared / (2 * sigma[type_] ** 2))
    return values


def _images(positions, types, cell, pbc, points, cutoff):
    """For every atom and image that may matter: its type and the vectors (P, 3) from it to the points."""
    heights = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    everything = np.concatenate([positions, points])
    scaled = np.linalg.solve(cell.T, everything.T).T
    spread = scaled.max(axis=0) - scaled.min(axis=0)
    reach = [
        int(np.ceil(cutoff / h + s)) if flag else 0 for h, s, flag in zip(heights, spread, pbc, strict=True)
    ]
    for shift in product(*(range(-n, n + 1) for n in reach)):
        for position, type_ in zip(positions + np.array(shift) @ cell, types, strict=True):
            yield type_, points - position
