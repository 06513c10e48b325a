"""Gaussian (atomic density) descriptors: at each point, for each element, a sum of Gaussians over its atoms.

    value_e(r) = w_e sum_i exp(-|r - r_i|^2 / (2 sigma_e^2)) / (sigma_e sqrt(2 pi))^3,    |r - r_i| < cutoff_e

over the atoms and periodic images i of element e, as LAMMPS' ``compute gaussian/grid/local`` has it. Each
atom is a cloud of integral w_e, if the cutoff is long (beyond 6 sigma lies 7e-8 of it); the sum over a grid
gives that integral to about 6 exp(-2 pi^2 sigma^2 / h^2), which is 2e-8 where sigma is one spacing h.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols
from numpy.typing import ArrayLike

from malax import kernels_gaussian as native
from malax import library
from malax.comm import as_comm
from malax.descriptors import lammps_gaussian
from malax.descriptors.gaussian_autograd import GaussianSum
from malax.descriptors.structure import check_structure
from malax.errors import InputError
from malax.grid import Grid, same_cell, split

CUTOFF = 6.0
"""The default cutoff in units of sigma."""

PerElement = float | Mapping[str, float]
"""One number for all elements, or one for each."""


@dataclass(frozen=True)
class Columns:
    """The columns of the result: elements, and sigma (A), cutoff (A) and weight of each, as (T,) arrays."""

    elements: tuple[str, ...]
    sigma: np.ndarray
    cutoff: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(
        cls,
        atoms: Atoms,
        sigma: PerElement,
        cutoff: PerElement | None,
        weights: PerElement,
        elements: Sequence[str] | None,
    ) -> Columns:
        """Columns for ``elements``, or for the elements of the structure in order of the atomic number."""
        present = [chemical_symbols[n] for n in np.unique(atoms.numbers)]
        chosen = present if elements is None else list(elements)
        for symbol in chosen:
            if not isinstance(symbol, str) or atomic_numbers.get(symbol, 0) == 0:
                raise InputError(f"elements: unknown element {symbol!r}")
        missing = [symbol for symbol in present if symbol not in chosen]
        if missing or len(set(chosen)) != len(chosen):
            raise InputError(
                f"elements must name each element of the structure ({', '.join(present)}) once, "
                f"got {', '.join(chosen) or 'none'}"
            )
        widths = _per_element("sigma", sigma, chosen, smallest=1e-6, largest=1e6)
        reach = CUTOFF * widths if cutoff is None else _per_element("cutoff", cutoff, chosen, smallest=1e-6)
        return cls(tuple(chosen), widths, reach, _per_element("weights", weights, chosen))

    def types(self, atoms: Atoms) -> np.ndarray:
        """The column of each atom, (N,) int32."""
        place = np.zeros(len(chemical_symbols), dtype=np.int32)
        place[[atomic_numbers[symbol] for symbol in self.elements]] = np.arange(len(self.elements))
        return place[atoms.numbers]


def gaussian(
    atoms: Atoms,
    grid: Grid | Sequence[int] | None = None,
    sigma: PerElement = 0.5,
    cutoff: PerElement | None = None,
    weights: PerElement = 1.0,
    elements: Sequence[str] | None = None,
    backend: str = "native",
    dtype: str = "float32",
    comm: Any = None,
    points: ArrayLike | None = None,
    out: np.ndarray | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """Sums of normalised Gaussians over the atoms of each element, in 1/A^3; formula at the module's head.

    Parameters
    ----------
    atoms : structure; native honours ``pbc`` per direction, lammps needs all three
    grid : (nx, ny, nz), or a Grid of the structure's cell
    sigma : standard deviation in A, one for all elements or ``{"Al": 0.5, ...}``
    cutoff : in A, likewise; None is 6 sigma. An atom exactly at the cutoff does not count. The native kernel
        ends at 8.9 sigma (float32) or 26 sigma (float64) in any case: less than 4e-18 or 1e-147 of a peak
    weights : factor of each element's column, likewise
    elements : columns in this order, also for elements that the structure does not hold (zeros); None is the
        structure's own in order of the atomic number
    backend : "native" (our kernel) or "lammps" (``compute gaussian/grid/local``)
    dtype : "float32" or "float64"; LAMMPS always computes in double
    comm : None, or a communicator (ours or mpi4py's) whose ranks all call this; each gets its part, the flat
        range ``malax.grid.split(n_points, comm.size, comm.rank)``
    points : (P, 3) cartesian in A instead of a grid; native only, and several times slower per point
    out : array of the result's shape and dtype to be written to, C-contiguous; rows of a list or of a part
        may be further apart
    threads : of the native kernel; None for torch's number

    Returns
    -------
    (nx, ny, nz, T) for T elements; with ``points`` (P, T); with ``comm`` this rank's part (n, T). What a
    point gets depends, bit for bit, neither on the part of the grid, nor on the other points of a list, nor
    on the threads.

    Raises
    ------
    InputError
        a structure that cannot be described (see `check_structure`), a grid of another cell, sigma, cutoff or
        weights that are out of range or missing for an element, an unknown backend or dtype.
    MissingPeerError
        ``lammps`` is not installed.
    """
    if (grid is None) == (points is None):
        raise InputError("give either a grid or points")
    if backend not in ("native", "lammps"):
        raise InputError(f"unknown descriptor backend {backend!r}: 'native' or 'lammps' is needed")
    check_structure(atoms)
    columns = Columns.of(atoms, sigma, cutoff, weights, elements)
    ranks = as_comm(comm)
    if points is not None:
        if backend != "native":
            raise InputError(
                f"backend {backend!r} computes grids only: use backend='native' for a list of points"
            )
        x = np.asarray(points, dtype=np.float64)
        start, stop = split(len(x), ranks.size, ranks.rank)
        return native.at_points(
            _sources(atoms, columns), x[start:stop], dtype=dtype, threads=threads, out=out
        )
    whole = _grid_of(atoms, grid)
    start, stop = split(whole.n_points, ranks.size, ranks.rank)
    rows = _flat(out, (*whole.shape, len(columns.elements))) if comm is None else out
    if backend == "native":
        options: dict[str, Any] = {"dtype": dtype, "threads": threads, "out": rows}
        part = native.on_grid(_sources(atoms, columns), whole.shape, start, stop, **options)
    else:
        part = library.output_rows(rows, stop - start, len(columns.elements), dtype)
        lammps_gaussian.features(atoms, columns.types(atoms), columns, whole, ranks, start, stop, part)
    if comm is not None:
        return part
    return out if out is not None else part.reshape(*whole.shape, len(columns.elements))


def gaussian_torch(
    positions: torch.Tensor,
    cell: torch.Tensor,
    atoms: Atoms,
    grid: Sequence[int] | None = None,
    sigma: PerElement = 0.5,
    cutoff: PerElement | None = None,
    weights: PerElement = 1.0,
    elements: Sequence[str] | None = None,
    points: torch.Tensor | None = None,
    threads: int | None = None,
) -> torch.Tensor:
    """`gaussian` as a function of tensors, differentiable once with respect to positions, cell and points.

    The derivative with respect to a strain follows from ``positions @ (1 + eps)``, ``cell @ (1 + eps)`` (and
    ``points @ (1 + eps)``). The jump at the cutoff is not differentiated: it should be negligible.

    Parameters
    ----------
    positions : (N, 3) float32 or float64 in A, on the CPU; its dtype is that of the arithmetic and the result
    cell : (3, 3) rows in A; on a grid the points move with it
    atoms : elements and ``pbc``; its own positions and cell are not looked at
    grid : (nx, ny, nz)
    points : (P, 3) instead of a grid
    sigma, cutoff, weights, elements, threads : as `gaussian`

    Returns
    -------
    (nx, ny, nz, T), or (P, T).

    Raises
    ------
    InputError
        as `gaussian`; tensors of another shape, dtype or device.
    """
    if (grid is None) == (points is None):
        raise InputError("give either a grid or points")
    for name, tensor in (("positions", positions), ("cell", cell), ("points", points)):
        if tensor is not None and (tensor.device.type != "cpu" or tensor.dtype != positions.dtype):
            raise InputError(f"{name} must be on the CPU and of the dtype of the positions")
    if positions.dtype not in (torch.float32, torch.float64):
        raise InputError(f"positions must be float32 or float64, got {positions.dtype}")
    if tuple(positions.shape) != (len(atoms), 3) or tuple(cell.shape) != (3, 3):
        raise InputError(
            f"positions ({len(atoms)}, 3) and cell (3, 3) are needed, got {tuple(positions.shape)}, "
            f"{tuple(cell.shape)}"
        )
    here = atoms.copy()
    here.positions, here.cell = positions.detach().double().numpy(), cell.detach().double().numpy()
    check_structure(here)
    columns = Columns.of(here, sigma, cutoff, weights, elements)
    shape = None if grid is None else Grid(here.cell.array, tuple(grid)).shape  # type: ignore[arg-type]
    fixed = (columns.types(here), here.pbc, columns.sigma, columns.cutoff, columns.weights)
    return GaussianSum.apply(positions, cell, points, shape, fixed, threads)


def _sources(atoms: Atoms, columns: Columns) -> native.Sources:
    return native.Sources(
        atoms.positions,
        columns.types(atoms),
        atoms.cell.array,
        atoms.pbc,
        columns.sigma,
        columns.cutoff,
        columns.weights,
    )


def _grid_of(atoms: Atoms, grid: Grid | Sequence[int] | None) -> Grid:
    if not isinstance(grid, Grid):
        return Grid(atoms.cell.array, tuple(grid))  # type: ignore[arg-type]
    if not same_cell(atoms.cell.array, grid.cell):
        raise InputError("the grid does not match the cell of the structure: their lattice vectors differ")
    return grid


def _flat(out: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray | None:
    """``out`` of a whole grid as rows, one per point."""
    if out is None:
        return None
    if not isinstance(out, np.ndarray) or out.shape != shape or not out.flags.c_contiguous:
        raise InputError(f"out must be a C-contiguous array of shape {shape}")
    return out.reshape(-1, shape[-1])


def _per_element(
    name: str, value: Any, elements: Sequence[str], smallest: float = -math.inf, largest: float = math.inf
) -> np.ndarray:
    """The (T,) numbers of the elements; InputError if one is missing, not finite or out of range."""
    if isinstance(value, Mapping):
        missing = [symbol for symbol in elements if symbol not in value]
        if missing:
            raise InputError(
                f"{name}: no value for {', '.join(missing)}, given are {', '.join(value) or 'none'}"
            )
    numbers = []
    for symbol in elements:
        one = value[symbol] if isinstance(value, Mapping) else value
        if isinstance(one, bool) or not isinstance(one, int | float | np.integer | np.floating):
            raise InputError(f"{name} must be a number, or one per element, got {one!r}")
        if not (math.isfinite(one) and smallest <= one <= largest):
            limits = "finite" if smallest == -math.inf else f"{smallest:g} A or more and finite"
            limits += f", at most {largest:g} A" if largest < math.inf else ""
            raise InputError(f"{name} of {symbol} must be {limits}, got {one}")
        numbers.append(float(one))
    return np.array(numbers)
