"""Fourier transforms of fields that are divided over ranks, between a grid and the plane waves of a sphere.

A field lives on the ranks as slabs of planes x = const; its plane waves as columns (my, mz) along the first
reciprocal vector, of which only those that meet the sphere |G|^2 <= g2_max exist (mz >= 0: fields are real).
A transform is a real two-dimensional FFT of each plane, one exchange of planes for columns, and FFTs along
the columns. So no rank holds more than its part, whatever the grid's factors and the number of ranks; with
more ranks than planes some have columns only.

Work that is larger than memory is done in rounds: round r of R has the planes x = r, r + R, r + 2 R, ... The
Fourier sum over x falls into R sums of that kind (the first step of any FFT), so rounds cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
import scipy.fft
import torch

from malax.comm import Comm
from malax.grid import split

_BLOCK = 1 << 16
"""Numbers in a block of columns or planes that is transformed at a time: several such arrays fit a cache."""

_PLANES = 4
"""Planes that are transformed at a time at least: a cache line of each column."""

_MOST_ROUNDS = 12


class Columns(NamedTuple):
    """Some of this rank's columns.

    here : range of this rank's columns
    place : where their waves are in this rank's packed coefficients
    inside : (columns, mx) bool, which waves are in the sphere
    g2 : |G|^2 of those, in 1/A^2, packed
    mz : their third integer, packed
    """

    here: slice
    place: slice
    inside: np.ndarray
    g2: np.ndarray
    mz: np.ndarray


class Waves:
    """The plane waves with |G|^2 <= ``g2_max`` and mz >= 0 of a cell, divided over the ranks by columns.

    Coefficients are packed: (n,) complex128, column after column, each in the order of ``mx``, without what
    lies outside of the sphere; normalised so that f(r) = sum_G f(G) exp(i G r).

    Parameters
    ----------
    reciprocal : (3, 3) reciprocal vectors as rows, with 2 pi, in 1/A
    g2_max : 1/A^2
    comm : whose ranks share the waves

    Attributes
    ----------
    mx : (2 Mx + 1,) int64, from -Mx to Mx
    columns : (C, 2) int64, (my, mz) of all columns; this rank's are ``columns[owned]``
    bounds : (P + 1,) where each rank's columns begin and end
    n : number of this rank's waves
    """

    def __init__(self, reciprocal: np.ndarray, g2_max: float, comm: Comm) -> None:
        self.comm = comm
        self.g2_max = g2_max
        self.reciprocal = np.asarray(reciprocal, dtype=np.float64)
        lengths = np.linalg.norm(2 * np.pi * np.linalg.inv(self.reciprocal).T, axis=1)
        # |m| <= |G| |a| / 2 pi; the hair is rounding's, and stays below that of `Grid.largest_sphere`
        self.m_max = [int(np.sqrt(g2_max) * a / (2 * np.pi) * (1 + 1e-12)) for a in lengths]
        self.mx = np.arange(-self.m_max[0], self.m_max[0] + 1)
        my, mz = np.meshgrid(
            np.arange(-self.m_max[1], self.m_max[1] + 1), np.arange(self.m_max[2] + 1), indexing="ij"
        )
        b1, b2, b3 = self.reciprocal
        across = np.array([b - (b @ b1) / (b1 @ b1) * b1 for b in (b2, b3)])  # without the part along b1
        metric = across @ across.T
        distance2 = metric[0, 0] * my**2 + 2 * metric[0, 1] * my * mz + metric[1, 1] * mz**2
        self.columns = np.argwhere(distance2 <= g2_max * (1 + 1e-12)) - [self.m_max[1], 0]
        self.bounds = np.array([len(self.columns) * rank // comm.size for rank in range(comm.size + 1)])
        self.owned = slice(int(self.bounds[comm.rank]), int(self.bounds[comm.rank + 1]))

    @cached_property
    def _places(self) -> np.ndarray:
        """Where each of this rank's columns begins in packed coefficients, and their end."""
        counts = [columns.inside.sum(axis=1) for columns in self._walk(None)]
        return np.concatenate([[0], np.cumsum(np.concatenate([*counts, np.zeros(0, dtype=np.int64)]))])

    @property
    def n(self) -> int:
        return int(self._places[-1])

    def blocks(self) -> Iterator[Columns]:
        """This rank's columns, some at a time."""
        return self._walk(self._places)

    def _walk(self, places: np.ndarray | None) -> Iterator[Columns]:
        mine = self.columns[self.owned]
        step = block_columns(len(self.mx))
        b1 = self.reciprocal[0]
        for start in range(0, len(mine), step):
            some = mine[start : start + step]
            q = some @ self.reciprocal[1:]
            g2 = (q * q).sum(axis=1)[:, None] + 2 * np.outer(q @ b1, self.mx) + (b1 @ b1) * self.mx**2
            inside = g2 <= self.g2_max
            here = slice(start, start + len(some))
            if places is None:
                yield Columns(here, slice(0, 0), inside, g2[:0, 0], some[:0, 1])
                continue
            place = slice(int(places[here.start]), int(places[here.stop]))
            # mx = my = mz = 0 must be zero, not rounding
            yield Columns(here, place, inside, np.abs(g2[inside]), np.repeat(some[:, 1], inside.sum(axis=1)))

    def unpacked(self, coefficients: np.ndarray, columns: Columns) -> np.ndarray:
        """Coefficients (columns, mx) of a block, zero outside of the sphere."""
        full = np.zeros(columns.inside.shape, dtype=np.complex128)
        full[columns.inside] = coefficients[columns.place]
        return full


class Transform:
    """Between fields (nx, ny, nz) in slabs and packed coefficients of `Waves`.

    Parameters
    ----------
    shape : of the grid. From a grid to waves, waves that the grid cannot hold become zero, and a Nyquist wave
        (even size) is shared between +m and -m; from waves to a grid, the grid must hold all of them.
    rounds : in how many rounds the planes are taken; must divide nx
    """

    def __init__(self, waves: Waves, shape: tuple[int, int, int], rounds: int = 1) -> None:
        if shape[0] % rounds:
            raise ValueError(f"{rounds} rounds do not divide {shape[0]} planes")
        self.waves, self.comm = waves, waves.comm
        self.shape, self.rounds = shape, rounds
        self.n_planes = shape[0] // rounds
        self.slabs = np.array([self.n_planes * rank // self.comm.size for rank in range(self.comm.size + 1)])
        my, mz = waves.columns.T
        _, ny, nz = shape
        here = (2 * np.abs(my) <= ny) & (2 * mz <= nz)
        self._used = np.flatnonzero(here)
        self._used_bounds = np.searchsorted(self._used, waves.bounds)
        my, mz = my[here], mz[here]
        self._flat = (my % ny) * (nz // 2 + 1) + mz
        self._shares = _share(my, ny) * _share(mz, nz)

    @property
    def planes(self) -> slice:
        """This rank's planes of each round: plane i of round r is x = r + rounds * i."""
        return slice(int(self.slabs[self.comm.rank]), int(self.slabs[self.comm.rank + 1]))

    def add_to(self, coefficients: np.ndarray, field: np.ndarray, round: int = 0) -> None:
        """Add the share of a round's planes (planes, ny, nz) to packed coefficients; collective."""
        lines = self._to_columns(field)
        nx, n = self.shape[0], self.n_planes
        mx = self.waves.mx
        phase = np.exp(-2j * np.pi * mx * round / nx) * _share(mx, nx) / np.prod(self.shape)
        mine = slice(*self._used_bounds[self.comm.rank : self.comm.rank + 2])
        local = self._used[mine] - self.waves.owned.start
        for block in self.waves.blocks():
            some = slice(*np.searchsorted(local, (block.here.start, block.here.stop)))
            if some.start == some.stop:
                continue
            spectrum = scipy.fft.fft(self._line(lines, some), axis=1, workers=_workers(), overwrite_x=True)
            full = np.zeros(block.inside.shape, dtype=np.complex128)
            full[local[some] - block.here.start] = (
                spectrum[:, mx % n] * phase * self._shares[mine][some, None]
            )
            coefficients[block.place] += full[block.inside]

    def _to_columns(self, field: np.ndarray) -> list[np.ndarray]:
        """Planes -> from each rank (columns of mine, planes of its)."""
        n_mine = len(field)
        send = np.empty((len(self._used), n_mine), dtype=np.complex128)
        for some in self._some_planes(n_mine):
            spectrum = scipy.fft.rfft2(field[some], workers=_workers())
            send[:, some] = spectrum.reshape(len(spectrum), -1)[:, self._flat].T
        columns, planes = np.diff(self._used_bounds), np.diff(self.slabs)
        mine = int(columns[self.comm.rank])
        flat = self.comm.alltoallv(send.reshape(-1), _ints(columns * n_mine), _ints(planes * mine))
        del send
        return _pieces(flat, mine, planes)

    def _line(self, lines: list[np.ndarray], some: slice) -> np.ndarray:
        if len(lines) == 1:
            return lines[0][some]
        return np.concatenate([part[some] for part in lines], axis=1)

    def sheet(self, coefficients: np.ndarray, round: int = 0, times_mx: bool = False) -> np.ndarray:
        """Coefficients in (my, mz) of this rank's planes: (columns, planes); collective. See `spectra`.

        ``times_mx`` multiplies each wave by i mx: a derivative along the first lattice vector.
        """
        nx, n = self.shape[0], self.n_planes
        mx = self.waves.mx
        phase = np.exp(2j * np.pi * mx * round / nx) * (1j * mx if times_mx else 1.0)
        columns, planes = np.diff(self.waves.bounds), np.diff(self.slabs)
        mine = int(columns[self.comm.rank])
        send = np.empty(mine * n, dtype=np.complex128)
        blocks = _pieces(send, mine, planes)
        for block in self.waves.blocks():
            full = self.waves.unpacked(coefficients, block) * phase
            lines = scipy.fft.ifft(_folded(full, n, mx), axis=1, norm="forward", workers=_workers())
            for rank, part in enumerate(blocks):
                part[block.here] = lines[:, self.slabs[rank] : self.slabs[rank + 1]]
        here = int(planes[self.comm.rank])
        received = self.comm.alltoallv(send, _ints(planes * mine), _ints(columns * here))
        return received.reshape(len(self.waves.columns), here)

    def spectra(self, sheets: list[np.ndarray]) -> Iterator[list[np.ndarray]]:
        """Spectra (planes, ny, nz//2+1) of several sheets, some planes at a time, for `field`."""
        _, ny, nz = self.shape
        for some in self._some_planes(self.planes.stop - self.planes.start):
            spectra = []
            for sheet in sheets:
                part = sheet[:, some]
                spectrum = np.zeros((part.shape[1], ny * (nz // 2 + 1)), dtype=np.complex128)
                spectrum[:, self._flat] = part.T
                spectra.append(spectrum.reshape(-1, ny, nz // 2 + 1))
            yield spectra

    def field(self, spectrum: np.ndarray) -> np.ndarray:
        """The field (planes, ny, nz) of spectra of planes."""
        return scipy.fft.irfft2(
            spectrum, s=self.shape[1:], norm="forward", workers=_workers(), overwrite_x=True
        )

    def _some_planes(self, n: int) -> Iterator[slice]:
        step = block_planes(self.shape)
        for start in range(0, n, step):
            yield slice(start, min(start + step, n))


def block_planes(shape: tuple[int, int, int]) -> int:
    """Planes of a grid that are transformed at a time."""
    return max(_PLANES, _BLOCK // (shape[1] * shape[2]))


def block_columns(n_waves: int) -> int:
    """Columns of so many waves that are transformed at a time."""
    return max(1, _BLOCK // n_waves)


def rounds_for(nx: int, size: int) -> int:
    """A number of rounds that divides ``nx`` planes and leaves each of ``size`` ranks several of them."""
    return max(r for r in range(1, _MOST_ROUNDS + 1) if nx % r == 0 and (r == 1 or nx // r >= 4 * size))


def as_slab(comm: Comm, part: np.ndarray, bounds: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """This rank's planes (planes, ny, nz) of a field whose flat points bounds[r]..bounds[r + 1]-1 rank r has.

    Collective.
    """
    per_plane = shape[1] * shape[2]
    slabs = [split(shape[0], comm.size, rank) for rank in range(comm.size)]
    ends = per_plane * np.array([0, *(stop for _, stop in slabs)])
    send = _overlaps(bounds[comm.rank : comm.rank + 2], ends)
    received = _overlaps(ends[comm.rank : comm.rank + 2], bounds)
    slab = comm.alltoallv(part.reshape(-1), send, received)
    return slab.reshape(len(slab) // per_plane, *shape[1:])


def _overlaps(mine: np.ndarray, bounds: np.ndarray) -> list[int]:
    """How much of the range mine[0]..mine[1] is in each of the ranges between ``bounds``."""
    return _ints(np.diff(np.clip(bounds, mine[0], mine[1])))


def _ints(values: np.ndarray) -> list[int]:
    return [int(value) for value in values]


def _pieces(flat: np.ndarray, rows: int, lengths: np.ndarray) -> list[np.ndarray]:
    """Views (rows, length) that follow each other in a flat array."""
    ends = np.cumsum([0, *lengths]) * rows
    return [flat[a:b].reshape(rows, n) for a, b, n in zip(ends[:-1], ends[1:], lengths, strict=True)]


def _share(m: np.ndarray, n: int) -> np.ndarray:
    """1 for waves that ``n`` points hold, 1/2 for those at the Nyquist frequency, 0 beyond."""
    return np.where(2 * np.abs(m) < n, 1.0, np.where(2 * np.abs(m) == n, 0.5, 0.0))


def _folded(full: np.ndarray, n: int, mx: np.ndarray) -> np.ndarray:
    """Waves (columns, mx) summed over those equal modulo ``n``, in the order of an FFT: (columns, n)."""
    lines = np.zeros((len(full), n), dtype=np.complex128)
    first, last = int(mx[0]), int(mx[-1])
    for period in range(first // n, last // n + 1):
        low, high = max(first, period * n), min(last, period * n + n - 1)
        lines[:, low - period * n : high - period * n + 1] += full[:, low - first : high - first + 1]
    return lines


def _workers() -> int:
    return torch.get_num_threads()
