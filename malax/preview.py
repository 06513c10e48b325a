"""A coarser picture of a density, for viewers that cannot take the whole."""

from __future__ import annotations

import dataclasses

import numpy as np

from malax.energies.slab_terms import Part, coefficients_of, sphere_waves
from malax.errors import InputError
from malax.fft import Transform
from malax.grid import Grid
from malax.result import Result

POINTS = 96
"""Points of a preview along the longest axis of the grid."""

_FEWEST = 8


def preview(result: Result, points: int = POINTS) -> Result:
    """The same result with its density on a grid of ``points`` along the longest axis; collective.

    A result that is no larger is given back as it is, and no axis gets less than 8 points. The density is cut
    to the plane waves of the largest sphere in that grid, so its integral stays what it is; LDOS and spread
    are left out. Each rank has its planes of the coarser grid. InputError for less than 2 points.
    """
    if points < 2:
        raise InputError(f"a preview needs at least 2 points along an axis, got {points}")
    if max(result.grid.shape) <= points:
        return result
    coarse = Grid(result.grid.cell, preview_shape(result.grid.shape, points))
    _, ny, nz = coarse.shape
    comm = result.comm
    waves = sphere_waves(coarse, None, comm)
    coefficients = coefficients_of(Part.of(result.density, result.grid, comm), waves)
    transform = Transform(waves, coarse.shape)
    planes = [transform.field(some[0]) for some in transform.spectra([transform.sheet(coefficients)])]
    density = np.concatenate([np.zeros((0, ny, nz)), *planes]).reshape(-1)
    start = transform.planes.start * ny * nz
    part = (start, start + len(density))
    return dataclasses.replace(result, grid=coarse, density=density, ldos=None, part=part, spread=None)


def preview_shape(shape: tuple[int, int, int], points: int = POINTS) -> tuple[int, int, int]:
    """The grid of a preview of a density on ``shape``."""
    longest = max(shape)
    if longest <= points:
        return shape
    nx, ny, nz = (min(n, max(_FEWEST, round(n * points / longest))) for n in shape)
    return nx, ny, nz
