"""Bispectrum (SNAP) descriptors of the points of a grid.

A point's neighbours are mapped onto the 3-sphere, their density there is expanded in the
hyperspherical harmonics of spins up to twojmax / 2, and rotational invariants of third order are formed:
A. P. Thompson et al., J. Comput. Phys. 285, 316 (2015), in the conventions of LAMMPS' ``compute sna/grid``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from ase import Atoms
from numpy.typing import ArrayLike
from pydantic import Field, field_validator, model_validator

from malax import kernels, library
from malax.comm import as_comm
from malax.descriptors import lammps
from malax.descriptors.structure import check_structure, numbered_species
from malax.errors import InputError
from malax.grid import Grid, same_cell, split
from malax.settings import Settings

SMALLEST, LARGEST = 2, 14
"""Range of twojmax that the kernel supports."""


def n_features(twojmax: int) -> int:
    """The number of bispectrum components: triples twojmax >= j >= j1 >= j2 that couple."""
    if (
        isinstance(twojmax, bool)
        or not isinstance(twojmax, int | np.integer)
        or not SMALLEST <= twojmax <= LARGEST
    ):
        raise InputError(f"twojmax must be an integer from {SMALLEST} to {LARGEST}, got {twojmax!r}")
    return sum(
        len([j for j in range(j1 - j2, min(twojmax, j1 + j2) + 1, 2) if j >= j1])
        for j1 in range(twojmax + 1)
        for j2 in range(j1 + 1)
    )


class Descriptor(Settings):
    """How descriptors are computed: with the same one, the same numbers come out anywhere."""

    kind: Literal["bispectrum"] = "bispectrum"
    """Only the bispectrum for now."""
    twojmax: int = Field(10, strict=True, ge=SMALLEST, le=LARGEST)
    """Twice the largest spin: 10 gives 91 features."""
    cutoff: float = Field(4.67637, gt=0, allow_inf_nan=False)
    """Neighbours nearer than this count (A)."""
    rfac0: float = Field(0.99363, gt=0, allow_inf_nan=False)
    """The cutoff is mapped to the angle rfac0 pi on the 3-sphere."""
    rmin0: float = Field(0.0, ge=0, allow_inf_nan=False)
    """This distance is mapped to the angle 0 (A)."""
    switchflag: bool = True
    """Neighbours fade out towards the cutoff."""
    bzeroflag: bool = False
    """Subtract the bispectrum of a point without neighbours."""
    weights: dict[str, float] | None = None
    """How much an atom of each element counts; 1 for all where absent."""
    atomic_volume: bool = False
    """One more feature: the cell's volume per atom (A^3). The zero of energy is the cell's average potential,
    which no neighbourhood knows; in a bulk it is a function of this volume."""

    @field_validator("weights")
    @classmethod
    def _weights_name_elements(cls, weights: dict[str, float] | None) -> dict[str, float] | None:
        from ase.data import atomic_numbers

        for symbol, weight in (weights or {}).items():
            if atomic_numbers.get(symbol, 0) == 0:
                raise ValueError(f"weights: unknown element {symbol!r}")
            if not np.isfinite(weight):
                raise ValueError(f"weights: the weight of {symbol} is {weight}")
        return weights

    @model_validator(mode="after")
    def _rmin0_below_cutoff(self) -> Descriptor:
        if self.rmin0 >= self.cutoff:
            raise ValueError(f"rmin0 ({self.rmin0} A) must be below the cutoff ({self.cutoff} A)")
        return self

    @property
    def n_features(self) -> int:
        """The number of features per point."""
        return n_features(self.twojmax) + self.atomic_volume

    def compute(
        self,
        atoms: Atoms,
        grid: Grid,
        start: int = 0,
        stop: int | None = None,
        *,
        backend: str = "native",
        dtype: str = "float32",
        threads: int | None = None,
        out: np.ndarray | None = None,
        comm: Any = None,
    ) -> np.ndarray:
        """Features (stop - start, F) of the grid points with flat C-order indices start..stop-1.

        ``native`` computes just these points, and what a point gets depends neither on the range nor on
        ``threads``. ``lammps`` computes the whole grid at every call; with ``comm`` all its ranks call this
        together, share that work, and each gets the range it asked for.

        Raises
        ------
        InputError
            a structure that cannot be described (see `check_structure`), a grid of another cell, a range
            outside the grid, an element without weight, an unknown backend or dtype.
        MissingPeerError
            ``lammps`` is not installed.
        """
        if not same_cell(atoms.cell.array, grid.cell):
            raise InputError(
                "the grid does not match the cell of the structure: their lattice vectors differ"
            )
        stop = grid.n_points if stop is None else stop
        if not 0 <= start <= stop <= grid.n_points:
            raise InputError(f"points {start} to {stop} are not in a grid of {grid.n_points} points")
        if backend == "native":
            points = grid.points(start, stop)
            return Prepared(self, atoms, sort=False).at_points(points, dtype=dtype, threads=threads, out=out)
        if backend != "lammps":
            raise InputError(f"unknown descriptor backend {backend!r}: 'native' or 'lammps' is needed")
        check_structure(atoms)
        types, weights = numbered_species(atoms, self.weights)

        def compute(rows: np.ndarray | None) -> np.ndarray:
            rows = library.output_rows(rows, stop - start, n_features(self.twojmax), dtype)
            lammps.features(atoms, types, weights, grid, self._snap(), as_comm(comm), start, stop, rows)
            return rows

        return self._with_volume(atoms, stop - start, dtype, out, compute)

    def at_points(
        self,
        atoms: Atoms,
        points: ArrayLike,
        *,
        dtype: str = "float32",
        threads: int | None = None,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Features (P, F) by the native kernel at any cartesian points (P, 3) in A, in any order."""
        return Prepared(self, atoms, sort=False).at_points(points, dtype=dtype, threads=threads, out=out)

    def prepared(self, atoms: Atoms) -> Prepared:
        """For many calls with few points each: the structure is checked, and its atoms sorted, once."""
        return Prepared(self, atoms)

    def _snap(self) -> dict[str, Any]:
        """The settings that the bispectrum kernels take."""
        return self.model_dump(exclude={"kind", "weights", "atomic_volume"})

    def _with_volume(
        self,
        atoms: Atoms,
        n_points: int,
        dtype: str,
        out: np.ndarray | None,
        compute: Callable[[np.ndarray | None], np.ndarray],
    ) -> np.ndarray:
        """What ``compute(out)`` gives, with a column for the volume per atom where it is a feature."""
        if not self.atomic_volume:
            return compute(out)
        result = library.output_rows(out, n_points, self.n_features, dtype)
        compute(result[:, :-1])
        result[:, -1] = atoms.get_volume() / len(atoms)
        return result


class Prepared:
    """The native descriptors of one structure; see `Descriptor.prepared`. It does not follow later changes.

    Raises
    ------
    InputError
        as `Descriptor.compute`.
    """

    def __init__(self, descriptor: Descriptor, atoms: Atoms, sort: bool = True) -> None:
        check_structure(atoms)
        types, weights = numbered_species(atoms, descriptor.weights)
        self.descriptor = descriptor
        self._atoms = atoms
        self._kernel = kernels.Bispectrum(
            atoms.positions,
            types,
            atoms.cell.array,
            atoms.pbc,
            sort=sort,
            weights=weights,
            **descriptor._snap(),
        )

    def at_points(
        self,
        points: ArrayLike,
        *,
        dtype: str = "float32",
        threads: int | None = None,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Features (P, F) at any cartesian points (P, 3) in A."""
        points = np.asarray(points, dtype=np.float64)

        def compute(rows: np.ndarray | None) -> np.ndarray:
            return self._kernel.at(points, dtype=dtype, threads=threads, out=rows)

        return self.descriptor._with_volume(self._atoms, len(points), dtype, out, compute)

    def stages(self, points: ArrayLike, dtype: str = "float32") -> dict[str, float]:
        """Seconds of each stage of the kernel for these points on one thread."""
        return self._kernel.stages(points, dtype)


def bispectrum(
    atoms: Atoms,
    grid: Grid | Sequence[int] | None = None,
    twojmax: int = 10,
    cutoff: float = 4.67637,
    rfac0: float = 0.99363,
    rmin0: float = 0.0,
    switchflag: bool = True,
    bzeroflag: bool = False,
    weights: Mapping[str, float] | None = None,
    backend: str = "native",
    dtype: str = "float32",
    comm: Any = None,
    points: ArrayLike | None = None,
    out: np.ndarray | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """Bispectrum components in LAMMPS order, F = ``n_features(twojmax)`` per point.

    Parameters
    ----------
    atoms : structure; native honours ``pbc`` per direction, lammps needs all three
    grid : (nx, ny, nz), or a Grid of the structure's cell
    twojmax, cutoff (A), rfac0, rmin0 (A), switchflag, bzeroflag : as in LAMMPS ``compute sna/grid``
    weights : weight per element; None is 1 for all
    backend : "native" (our kernel) or "lammps" (``compute sna/grid/local``)
    dtype : "float32" or "float64"; LAMMPS always computes in double
    comm : None, or a communicator (ours or mpi4py's) whose ranks all call this; each gets its part, the flat
        range ``malax.grid.split(n_points, comm.size, comm.rank)``
    points : (P, 3) cartesian in A instead of a grid; native only
    out : array of the result's shape and dtype to be written to, C-contiguous
    threads : of the native kernel; None for torch's number

    Returns
    -------
    (nx, ny, nz, F); with ``points`` (P, F); with ``comm`` this rank's part (n, F).

    Raises
    ------
    InputError, MissingPeerError
        as `Descriptor.compute`; a twojmax out of range.
    """
    n_features(twojmax)
    descriptor = _descriptor(
        twojmax=twojmax,
        cutoff=cutoff,
        rfac0=rfac0,
        rmin0=rmin0,
        switchflag=switchflag,
        bzeroflag=bzeroflag,
        weights=None if weights is None else dict(weights),
    )
    if (grid is None) == (points is None):
        raise InputError("give either a grid or points")
    ranks = as_comm(comm)
    if points is not None:
        if backend != "native":
            raise InputError(
                f"backend {backend!r} computes grids only: use backend='native' for a list of points"
            )
        x = np.asarray(points, dtype=np.float64)
        start, stop = split(len(x), ranks.size, ranks.rank)
        return descriptor.at_points(atoms, x[start:stop], dtype=dtype, threads=threads, out=out)
    check_structure(atoms)  # before the grid, whose message for an empty cell would be about itself
    whole = grid if isinstance(grid, Grid) else Grid(atoms.cell.array, tuple(grid))  # type: ignore[arg-type]
    start, stop = split(whole.n_points, ranks.size, ranks.rank)
    options: dict[str, Any] = {"backend": backend, "dtype": dtype, "threads": threads, "comm": comm}
    if comm is not None:
        return descriptor.compute(atoms, whole, start, stop, out=out, **options)
    shape = (*whole.shape, descriptor.n_features)
    result = library.output_array(out, shape, dtype)
    descriptor.compute(atoms, whole, out=result.reshape(whole.n_points, descriptor.n_features), **options)
    return result


def _descriptor(**settings: Any) -> Descriptor:
    from pydantic import ValidationError

    try:
        return Descriptor(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        got = f", got {first['input']!r}" if where and where != "weights" else ""
        raise InputError(f"{where}: {reason}{got}" if where and where not in reason else reason) from error
