"""Crystal symmetries of a run as permutations of grid points."""

from __future__ import annotations

import numpy as np
import torch

from malax.errors import FileError
from malax.grid import Grid
from malax.io.pw_run import PwRun


class SymmetryMaps:
    """Averages fields over the crystal symmetries that reduced the k-points of a run.

    QE lists operations in crystal axes; how it stores them (transposed, sign of the translation) is
    settled by which reading maps the atoms onto themselves, so no convention is trusted.
    """

    def __init__(self, run: PwRun, grid: Grid) -> None:
        rotations, shifts = run.symmetries
        self.maps: list[torch.Tensor] = []
        if len(rotations) == 1:
            return
        for turn in (rotations, rotations.transpose(0, 2, 1)):
            for shift in (shifts, -shifts):
                if all(_maps_atoms(run, r, t) for r, t in zip(turn, shift, strict=True)):
                    self.maps = [_point_map(grid, r, t, run) for r, t in zip(turn, shift, strict=True)]
                    return
        raise FileError(
            f"{run.path}: the symmetries do not map the atoms onto themselves; run pw.x with nosym=.true."
        )

    def average(self, fields: torch.Tensor) -> torch.Tensor:
        """Mean over the symmetries of fields (bands, points)."""
        if not self.maps:
            return fields
        total = torch.zeros_like(fields)
        for one in self.maps:
            total += fields[:, one]
        return total / len(self.maps)


def _maps_atoms(run: PwRun, rotation: np.ndarray, shift: np.ndarray) -> bool:
    """Whether x -> R x + t (crystal coordinates) is an isometry that maps each atom onto one of its kind."""
    metric = run.atoms.cell.array @ run.atoms.cell.array.T
    if np.abs(rotation.T @ metric @ rotation - metric).max() > 1e-4 * np.abs(metric).max():
        return False
    scaled, numbers = run.atoms.get_scaled_positions(wrap=False), run.atoms.numbers
    images = scaled @ rotation.T + shift
    apart = images[:, None] - scaled[None]
    apart -= np.rint(apart)
    near = (np.abs(apart) < 1e-3).all(axis=-1) & (numbers[:, None] == numbers[None])
    return bool(near.any(axis=1).all())


def _point_map(grid: Grid, rotation: np.ndarray, shift: np.ndarray, run: PwRun) -> torch.Tensor:
    """Flat index of the image of every grid point under x -> R x + t."""
    shape = np.array(grid.shape)
    points = np.stack(np.unravel_index(np.arange(grid.n_points), grid.shape), axis=-1) / shape
    images = (points @ rotation.T + shift) * shape
    nearest = np.rint(images)
    if np.abs(images - nearest).max() > 1e-2:
        raise FileError(
            f"{run.path}: a symmetry does not map the grid {grid.shape} onto itself; run pw.x with "
            "nosym=.true. or use a smaller stride"
        )
    return torch.from_numpy(np.ravel_multi_index(tuple((nearest.astype(int) % shape).T), grid.shape))
