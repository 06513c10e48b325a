"""The real-space grid: cell, shape, and where its points and plane waves are.

Conventions: cells are rows (Angstrom); fields are C-ordered ``(nx, ny, nz)``; point (i, j, k) sits
at i/nx a + j/ny b + k/nz c and has the flat index (i ny + j) nz + k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from malax.errors import InputError


@dataclass(frozen=True, eq=False)
class Grid:
    """A real-space grid in a periodic cell.

    Parameters
    ----------
    cell : (3, 3) float64, rows are the lattice vectors in Angstrom
    shape : (nx, ny, nz)

    Raises
    ------
    InputError
        for a degenerate or non-finite cell, or a shape that is not three positive integers.
    """

    cell: np.ndarray
    shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        cell = np.ascontiguousarray(self.cell, dtype=np.float64)
        if cell.shape != (3, 3) or not np.isfinite(cell).all():
            raise InputError(f"the cell must be three finite lattice vectors as rows, got shape {cell.shape}")
        lengths = np.linalg.norm(cell, axis=1)
        if (lengths == 0).any() or abs(np.linalg.det(cell)) < 1e-8 * lengths.prod():
            raise InputError(
                "the cell is empty or degenerate: three linearly independent lattice vectors are needed"
            )
        try:
            shape = tuple(int(n) for n in self.shape)
            exact = all(int(n) == n for n in self.shape)
        except (TypeError, ValueError) as error:
            raise InputError(f"a grid needs three positive integers, got {self.shape!r}") from error
        if len(shape) != 3 or not exact or min(shape) < 1:
            raise InputError(f"a grid needs three positive integers, got {tuple(self.shape)}")
        object.__setattr__(self, "cell", cell)
        object.__setattr__(self, "shape", shape)

    @classmethod
    def from_spacing(cls, cell: np.ndarray, spacing: float) -> Grid:
        """The coarsest FFT-friendly grid (factors 2, 3, 5, 7) whose spacing is at most ``spacing`` (A)."""
        if not spacing > 0:
            raise InputError(f"the grid spacing must be positive, got {spacing} A")
        lengths = np.linalg.norm(np.asarray(cell, dtype=np.float64), axis=1)
        # a hair of tolerance: 4.05/24 must give 24 points again, not 25
        nx, ny, nz = (fft_friendly(max(1, int(np.ceil(n / spacing - 1e-6)))) for n in lengths)
        return cls(cell, (nx, ny, nz))

    @property
    def n_points(self) -> int:
        nx, ny, nz = self.shape
        return nx * ny * nz

    @cached_property
    def volume(self) -> float:
        """Volume of the cell in A^3 (positive for left-handed cells too)."""
        return float(abs(np.linalg.det(self.cell)))

    @property
    def point_volume(self) -> float:
        """Volume per grid point in A^3."""
        return self.volume / self.n_points

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance of neighbouring points along each lattice vector in A."""
        lengths = np.linalg.norm(self.cell, axis=1)
        return tuple(float(n / m) for n, m in zip(lengths, self.shape, strict=True))  # type: ignore[return-value]

    def points(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Cartesian positions (stop - start, 3) in A of the points with flat indices start..stop-1."""
        return self.positions(np.arange(start, self.n_points if stop is None else stop))

    def positions(self, flat_indices: np.ndarray) -> np.ndarray:
        """Cartesian positions (n, 3) in A of the points with these flat indices."""
        ijk = np.stack(np.unravel_index(flat_indices, self.shape), axis=-1)
        return (ijk / np.array(self.shape, dtype=np.float64)) @ self.cell

    @cached_property
    def reciprocal(self) -> np.ndarray:
        """Reciprocal lattice vectors as rows (1/A), with the factor 2 pi."""
        return 2 * np.pi * np.linalg.inv(self.cell).T

    def g_vectors(
        self, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
    ) -> torch.Tensor:
        """Wave vectors (nx, ny, nz//2+1, 3) in 1/A in the order of ``torch.fft.rfftn``."""
        nx, ny, nz = self.shape
        mx = torch.fft.fftfreq(nx, 1.0 / nx, dtype=dtype, device=device)
        my = torch.fft.fftfreq(ny, 1.0 / ny, dtype=dtype, device=device)
        mz = torch.fft.rfftfreq(nz, 1.0 / nz, dtype=dtype, device=device)
        b = torch.as_tensor(self.reciprocal, dtype=dtype, device=device)
        return (
            mx[:, None, None, None] * b[0] + my[None, :, None, None] * b[1] + mz[None, None, :, None] * b[2]
        )

    @cached_property
    def largest_sphere(self) -> float:
        """The largest |G|^2 (1/A^2) of a G-sphere inside the grid.

        A sphere of radius G_max fits if along each axis all m with |m| <= G_max |a| / 2 pi are on
        the grid without their aliases: |m| <= (n - 1) // 2.
        """
        lengths = np.linalg.norm(self.cell, axis=1)
        m_max = np.array([(n - 1) // 2 for n in self.shape])
        # the next wave, m_max + 1, is the first that is missing
        return float(np.min(2 * np.pi * (m_max + 1) / lengths) ** 2 * (1 - 1e-9))


def fft_friendly(n: int) -> int:
    """The smallest integer >= n with no prime factor above 7."""
    while True:
        rest = n
        for p in (2, 3, 5, 7):
            while rest % p == 0:
                rest //= p
        if rest == 1:
            return n
        n += 1


def same_cell(a: np.ndarray, b: np.ndarray, tolerance: float = 1e-6) -> bool:
    """Whether two cells (rows, A) are equal to ``tolerance`` A."""
    return bool(np.abs(np.asarray(a) - np.asarray(b)).max() <= tolerance)


def as_shape(grid: Sequence[int]) -> tuple[int, int, int]:
    """Three positive integers as a tuple; InputError otherwise."""
    return Grid(np.eye(3), tuple(grid)).shape  # type: ignore[arg-type]


def split(n_points: int, size: int, rank: int) -> tuple[int, int]:
    """The flat C-order range (start, stop) of grid points that ``rank`` of ``size`` owns.

    Ranges are contiguous, in rank order, and differ in length by at most one.
    """
    if size < 1 or not 0 <= rank < size or n_points < 0:
        raise InputError(f"cannot split {n_points} points: rank {rank} of {size}")
    return n_points * rank // size, n_points * (rank + 1) // size
