"""XSF files (XCrySDen, VESTA): a periodic structure and a scalar field on its grid."""

from __future__ import annotations

import os

import numpy as np
from ase import Atoms

from malax.errors import InputError
from malax.io.files import atomic_path


def write_xsf(
    path: str | os.PathLike[str], atoms: Atoms, values: np.ndarray, name: str, overwrite: bool = True
) -> None:
    """Write a field (nx, ny, nz) on the cell's grid. Lengths in A, values as they are.

    The general grid of XSF includes the far faces of the cell, so each first plane is repeated as the last;
    the first index runs fastest.

    Parameters
    ----------
    name : of the field, one word

    Raises
    ------
    InputError
        values are not three-dimensional or not finite.
    FileError, MachineError
        see `malax.io.files.atomic_path`.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 3 or not np.isfinite(values).all():
        raise InputError(f"an XSF file needs a finite field (nx, ny, nz), got shape {values.shape}")
    lattice = [_row(vector) for vector in atoms.cell.array]
    lines = ["CRYSTAL", "PRIMVEC", *lattice, "PRIMCOORD", f"{len(atoms)} 1"]
    lines += [f"{z:3d} {_row(r)}" for z, r in zip(atoms.numbers, atoms.positions, strict=True)]
    closed = np.pad(values, [(0, 1)] * 3, mode="wrap")
    word = "_".join(name.split())
    lines += ["BEGIN_BLOCK_DATAGRID_3D", "malax", f"BEGIN_DATAGRID_3D_{word}"]
    lines += [" ".join(map(str, closed.shape)), _row(np.zeros(3)), *lattice]
    with atomic_path(path, overwrite) as temporary, open(temporary, "w") as file:
        file.write("\n".join(lines) + "\n")
        form = "\n".join(" ".join(["%15.8E"] * min(6, closed.shape[0] - i)) for i in range(0, len(closed), 6))
        for plane in closed.transpose(2, 1, 0):
            file.write("\n".join(form % tuple(line) for line in plane.tolist()) + "\n")
        file.write("END_DATAGRID_3D\nEND_BLOCK_DATAGRID_3D\n")


def _row(vector: np.ndarray) -> str:
    return " ".join(f"{x:16.10f}" for x in vector)
