"""What each rank of test_mpi_files.py runs: one prediction, written, read back by parts, and failures."""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
import warnings
from pathlib import Path

import numpy as np
from fakes import make_atoms
from models import tiny_model

import malax
from malax.comm import Comm, world
from malax.emulator import Emulator
from malax.errors import MalaxError
from malax.io import parallel
from malax.preview import preview
from malax.result import Result


def failing(comm: Comm, result: Result, path: Path, rank: int, call: str, number: int) -> list:
    """What every rank is told when a call fails on one of them."""
    true = getattr(os, call)

    def fail(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    if comm.rank == rank:
        setattr(parallel.os, call, fail)
    try:
        result.save(path)
        said = "nothing"
    except MalaxError as error:
        said = str(error)
    finally:
        setattr(parallel.os, call, true)
    return comm.bcast(comm.gather(said))


def main(folder: Path) -> dict:
    comm = world()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = Emulator.combine([tiny_model(seed=seed) for seed in (0, 1)])
        result = model.predict(make_atoms(0), 1000.0, (13, 14, 15), comm, ldos=True)
    result.save(folder / "all.h5")
    result.write_cube(folder / "all.cube")
    small = preview(result, 9)
    small.write_cube(folder / "small.cube")
    part = malax.load(folder / "all.h5", comm)
    whole, again = result.gather(), part.gather()
    found = {
        "parts": comm.gather((part.part, part.density.shape, part.ldos.shape, part.is_whole)),
        "read": whole is None
        or bool((again.density == whole.density).all() and (again.ldos == whole.ldos).all())
        and bool((again.spread.density_std == whole.spread.density_std).all()),
        "spread": comm.gather((result.spread.as_json(), part.spread.as_json())),
        "small": small.grid.shape,
        "electrons": comm.gather(float(small.density.sum() * small.grid.point_volume)),
    }
    np.testing.assert_array_equal(part.dos, result.dos)
    for name, arguments in {
        "cannot open": (2, "open", errno.EACCES),
        "full disk": (1, "pwrite", errno.ENOSPC),
        "no rename": (0, "replace", errno.EROFS),
    }.items():
        found[name] = failing(comm, result, folder / "no.h5", *arguments)
    comm.barrier()
    return found


if __name__ == "__main__":
    try:
        found = main(Path(sys.argv[1]))
    except Exception:
        traceback.print_exc()
        world().abort(1)
    if world().rank == 0:
        print(json.dumps(found))
