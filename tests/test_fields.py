"""Fourier interpolation and lattice planes."""

from __future__ import annotations

import numpy as np
import pytest
from systems import triclinic

from malax.errors import InputError
from malax.fields import plane, resample
from malax.grid import Grid


def wave(shape: tuple[int, int, int]) -> np.ndarray:
    """A real field whose waves every grid of 5 points or more holds."""
    x, y, z = Grid(np.eye(3), shape).points().T
    field = 0.3 + np.cos(2 * np.pi * (2 * x - y)) + 0.5 * np.sin(2 * np.pi * (x + 2 * z))
    return field.reshape(shape)


@pytest.mark.parametrize("old", [(5, 6, 7), (8, 8, 8)])
@pytest.mark.parametrize("new", [(5, 6, 7), (10, 9, 12), (6, 5, 16), (7, 5, 5)])
def test_resample_is_exact_for_waves_that_both_grids_hold(old, new):
    np.testing.assert_allclose(resample(wave(old), new), wave(new), atol=1e-12)


def test_resample_keeps_the_mean_and_the_points():
    field = np.random.default_rng(0).random((4, 6, 5))
    fine = resample(field, (8, 12, 10))
    assert fine.mean() == pytest.approx(field.mean(), rel=1e-12)
    np.testing.assert_allclose(fine[::2, ::2, ::2], field, atol=1e-12)


def test_resample_drops_what_a_coarse_grid_cannot_hold():
    x = np.arange(12) / 12
    field = (1 + np.cos(2 * np.pi * 5 * x))[:, None, None] * np.ones((1, 2, 2))
    np.testing.assert_allclose(resample(field, (6, 2, 2)), 1.0, atol=1e-12)


def test_plane_of_a_sheared_cell():
    cell = triclinic().cell.array
    field = np.arange(24.0).reshape(2, 3, 4)
    x, y, values = plane(field, cell, "y", 0.34)
    np.testing.assert_array_equal(values[:-1, :-1], field[:, 1, :])
    np.testing.assert_array_equal(values[-1], values[0])  # periodic
    np.testing.assert_array_equal(values[:, -1], values[:, 0])
    # lengths and angle of the two lattice vectors in the plane
    a, c = cell[0], cell[2]
    first, second = np.array([x[-1, 0], y[-1, 0]]), np.array([x[0, -1], y[0, -1]])
    assert first @ first == pytest.approx(a @ a) and second @ second == pytest.approx(c @ c)
    assert first @ second == pytest.approx(a @ c)


@pytest.mark.parametrize("position, index", [(0.0, 0), (0.5, 2), (1.0, 0), (-0.25, 3), (0.88, 0)])
def test_plane_position(position, index):
    field = np.arange(4.0)[None, None, :] * np.ones((2, 2, 1))
    assert plane(field, np.eye(3), "z", position)[2][0, 0] == index


def test_plane_refuses():
    with pytest.raises(InputError, match="'x', 'y' or 'z'"):
        plane(np.ones((2, 2, 2)), np.eye(3), "c", 0.5)
