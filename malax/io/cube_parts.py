"""A cube file written by all ranks, each its part: every value takes the same room, so its place is known."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from ase import Atoms

from malax.comm import Comm
from malax.errors import InputError
from malax.io.cube import header, value_forms
from malax.io.parallel import Pieces, write_together

_DIGITS = 9
_WIDTH = _DIGITS + 8


def body_bytes(shape: tuple[int, int, int]) -> int:
    """Size of the values of a cube file on a grid (nx, ny, nz)."""
    return shape[0] * shape[1] * (_WIDTH * shape[2] + -(-shape[2] // 6))


def write_cube_parts(
    comm: Comm,
    path: str | os.PathLike[str],
    atoms: Atoms,
    shape: tuple[int, int, int],
    values: np.ndarray,
    start: int,
    comment: str = "",
    overwrite: bool = True,
) -> Path:
    """Write a field on a grid (nx, ny, nz) of the cell; this rank has the flat points from ``start`` on.

    The file is that of `malax.io.cube.write_cube`, byte by byte. Collective.

    Raises
    ------
    InputError
        values are not finite on some rank.
    FileError, MachineError
        see `malax.io.parallel.write_together`.
    """
    flat = values.reshape(-1)
    bad = comm.allgatherv(np.array([(~np.isfinite(flat)).sum()])).sum()
    if bad:
        raise InputError(f"a cube file needs a finite field; {bad} values are not")
    text = header(atoms, shape, comment).encode()

    def prepare(temporary: Path) -> None:
        temporary.write_bytes(text)

    return write_together(comm, path, overwrite, prepare, lambda _: _pieces(flat, start, shape[2], len(text)))


def _pieces(flat: np.ndarray, start: int, nz: int, begin: int) -> Pieces:
    """The text of this rank's values, a few runs along z at a time."""
    forms = value_forms(nz, _DIGITS)
    run_bytes = _WIDTH * nz + sum(form.endswith("\n") for form in forms)
    per_piece = max(1, (1 << 22) // run_bytes)
    whole = "".join(forms)
    point, stop = start, start + len(flat)
    while point < stop:
        run, z = divmod(point, nz)
        offset = begin + run * run_bytes + _WIDTH * z + z // 6
        if z or stop - point < nz:
            n = min(nz - z, stop - point)
            form = "".join(forms[z : z + n])
        else:
            runs = min(per_piece, (stop - point) // nz)
            n, form = runs * nz, whole * runs
        yield offset, (form % tuple(flat[point - start : point - start + n].tolist())).encode()
        point += n
