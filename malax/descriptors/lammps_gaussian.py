"""Gaussian descriptors by LAMMPS: ``compute gaussian/grid/local``, serial or over a communicator.

The structure is handed over as in `malax.descriptors.lammps`.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from ase import Atoms

from malax.comm import Comm
from malax.descriptors import lammps
from malax.errors import InputError, MachineError, MissingPeerError
from malax.grid import Grid


class Columns(Protocol):
    """sigma (A), cutoff (A) and weight of each type, (T,) arrays."""

    @property
    def sigma(self) -> np.ndarray: ...
    @property
    def cutoff(self) -> np.ndarray: ...
    @property
    def weights(self) -> np.ndarray: ...


def features(
    atoms: Atoms,
    types: np.ndarray,
    columns: Columns,
    grid: Grid,
    comm: Comm,
    start: int,
    stop: int,
    out: np.ndarray,
) -> None:
    """Write the values of the grid points start..stop-1 (flat, C order) to ``out`` (stop - start, T).

    Collective over ``comm``, whose ranks share the whole grid as LAMMPS divides it and then exchange rows.

    Raises
    ------
    InputError
        the structure is not periodic in all directions.
    MissingPeerError
        no LAMMPS, or one without the compute, or one without MPI for several ranks.
    MachineError
        LAMMPS failed.
    """
    if not atoms.pbc.all():
        raise InputError(
            "the LAMMPS backend needs a structure periodic in all three directions; use backend='native'"
        )
    with lammps._instance(comm) as lmp:
        set_up(lmp, atoms, types, columns, grid)
        rows = compute(lmp)
        _, ny, nz = grid.shape
        ix, iy, iz = rows[:, :3].astype(np.int64).T
        order = np.argsort(flat := (ix * ny + iy) * nz + iz)
        # out of LAMMPS' memory, which goes with the instance
        mine = flat[order]
        values = (rows[order, lammps._COORDINATES :] * columns.weights).astype(out.dtype)
    filled = lammps._exchange(comm, mine, values, start, stop, out)
    if filled != stop - start:
        raise MachineError(
            f"LAMMPS gave {filled} of {stop - start} grid points: its division of the grid has gaps"
        )


def set_up(lmp: Any, atoms: Atoms, types: np.ndarray, columns: Columns, grid: Grid) -> None:
    """Give LAMMPS the structure and the compute, and let it make its neighbour lists and ghost atoms."""
    if not lmp.has_style("compute", "gaussian/grid/local"):
        raise MissingPeerError("this LAMMPS has no compute gaussian/grid/local: it needs a newer ML-SNAP")
    cell, positions = lammps.oriented(atoms)
    lmp.commands_list(lammps._box_commands(cell, len(columns.sigma)))
    n = len(atoms)
    lmp.create_atoms(n, list(range(1, n + 1)), (types + 1).tolist(), positions.ravel().tolist())
    if lmp.get_natoms() != n:
        raise MachineError(f"LAMMPS kept {lmp.get_natoms()} of {n} atoms")
    # ghost atoms a little beyond the cutoff, so that none is lost to rounding
    reach = columns.cutoff.max() + 0.01
    neighbours = int(2 * n / abs(np.linalg.det(cell)) * 4.2 * (reach + 1) ** 3) + 1000
    # LAMMPS' cutoff of a type is twice its radius times the factor before the radii
    numbers = " ".join(f"{value:.17g}" for value in (1.0, *(columns.cutoff / 2), *columns.sigma))
    shape = " ".join(str(n) for n in grid.shape)
    lmp.commands_list(
        [
            "mass * 1.0",
            f"pair_style zero {reach:.17g} nocoeff",
            "pair_coeff * *",
            "neighbor 0.0 bin",
            f"neigh_modify one {neighbours} page {20 * neighbours}",
            f"compute b all gaussian/grid/local grid {shape} {numbers}",
            "run 0 post no",
        ]
    )


def compute(lmp: Any) -> np.ndarray:
    """This rank's rows (n, 6 + T), a view of LAMMPS' memory; the first call after `set_up` does the work."""
    from lammps import LMP_STYLE_LOCAL, LMP_TYPE_ARRAY

    return lmp.numpy.extract_compute("b", LMP_STYLE_LOCAL, LMP_TYPE_ARRAY)
