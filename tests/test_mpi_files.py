"""Files that all ranks write, and runs over ranks that are killed, asked to end, and taken up again."""

from __future__ import annotations

import json
from pathlib import Path

import ase.io
import h5py
import numpy as np
import pytest
from fakes import make_atoms
from launch import TESTS, mpirun
from models import tiny_model

import malax
from malax.io.cube import read_cube, write_cube
from malax.preview import preview
from malax.units import BOHR

N_POINTS = 13 * 14 * 15


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[dict, Path]:
    folder = tmp_path_factory.mktemp("files")
    ran = mpirun(3, TESTS / "mpi_files_program.py", folder, cwd=folder, timeout=100)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout), folder


@pytest.fixture(scope="module")
def alone():
    model = malax.Emulator.combine([tiny_model(seed=seed) for seed in (0, 1)])
    return model.predict(make_atoms(0), 1000.0, (13, 14, 15), ldos=True)


def test_three_ranks_write_one_file(written, alone):
    result = malax.load(written[1] / "all.h5")
    np.testing.assert_allclose(result.density, alone.density, rtol=1e-9)
    np.testing.assert_allclose(result.ldos, alone.ldos, rtol=1e-5, atol=1e-9)
    np.testing.assert_array_equal(result.dos, alone.dos)
    with h5py.File(written[1] / "all.h5") as file:
        assert file["density"].chunks == (1, 14, 15) and file["density"].attrs["unit"] == "1/A^3"
        assert file["spread/density_std"].attrs["unit"] == "1/A^3"


def test_three_ranks_say_of_members_what_one_says(written, alone):
    spread, wanted = malax.load(written[1] / "all.h5").spread, alone.spread
    np.testing.assert_array_equal(spread.dos_std, wanted.dos_std)
    np.testing.assert_array_equal(spread.fermi_levels, wanted.fermi_levels)
    np.testing.assert_allclose(spread.density_std, wanted.density_std, rtol=1e-6, atol=1e-10)
    assert spread.energies.keys() == wanted.energies.keys()
    for term, values in wanted.energies.items():
        np.testing.assert_allclose(spread.energies[term], values, rtol=1e-9, err_msg=term)
    # all ranks say the same, after the prediction and after reading their parts
    said = [each for both in written[0]["spread"] for each in both]
    assert len(said) == 6 and all(each["energies"] == said[0]["energies"] for each in said)
    for each in said:
        assert each["density_std_mean"] == pytest.approx(float(wanted.density_std.mean()), rel=1e-9)


def test_parts_are_read_back(written):
    found = written[0]
    assert found["read"]
    assert [part for part, *_ in found["parts"]] == [
        [N_POINTS * r // 3, N_POINTS * (r + 1) // 3] for r in range(3)
    ]
    for (start, stop), density, ldos, whole in found["parts"]:
        assert density == [stop - start] and ldos == [stop - start, 27] and not whole


def test_the_cube_is_that_of_one_rank_byte_by_byte(written, alone, tmp_path):
    result = malax.load(written[1] / "all.h5")
    write_cube(tmp_path / "one.cube", result.atoms, result.density * BOHR**3, "electron density in 1/bohr^3")
    assert (written[1] / "all.cube").read_bytes() == (tmp_path / "one.cube").read_bytes()


def test_preview_over_ranks(written, alone):
    found, folder = written
    wanted = preview(alone, 9)
    assert tuple(found["small"]) == wanted.grid.shape
    cube = read_cube(folder / "small.cube")
    np.testing.assert_allclose(cube.values, wanted.density * BOHR**3, rtol=1e-6)
    assert sum(found["electrons"]) == pytest.approx(12.0, rel=1e-9)


def test_a_failure_on_one_rank_is_told_to_all_and_leaves_nothing(written):
    found, folder = written
    place = folder / "no.h5"
    rank = "(rank {}; all ranks need this folder)"
    assert found["cannot open"] == [f"cannot write {place}: Permission denied {rank.format(2)}"] * 3
    assert found["full disk"] == [f"cannot write {place}: the disk is full {rank.format(1)}"] * 3
    assert found["no rename"] == [f"cannot write {place}: Read-only file system"] * 3
    assert sorted(p.name for p in folder.iterdir()) == ["all.cube", "all.h5", "small.cube"]


ENDING = """
import os, signal, sys
from malax import cli, long_run, streaming
long_run.INTERVAL = 0.0
long_run.LongRun.__init__.__defaults__ = (None, 0.0)
whole, calls = streaming.Chain._tile, []
def counted(self, *arguments):
    calls.append(1)
    with open(f"calls.{self.comm.rank}", "a") as file:
        file.write("x")
    if self.comm.rank == 1 and len(calls) == int(sys.argv[1]):
        os.kill(os.getpid(), getattr(signal, sys.argv[2]))
    return whole(self, *arguments)
streaming.Chain._tile = counted
cli.main(sys.argv[3:])
"""


@pytest.mark.parametrize("signal, code, members", [("SIGTERM", 75, 1), ("SIGKILL", None, 2)])
def test_a_run_that_was_ended_goes_on(tmp_path, signal, code, members):
    """One rank of two is signalled in the middle: both end, and the same line ends with the same numbers."""
    models = [f"{seed}.malax" for seed in range(members)]
    for seed, name in enumerate(models):
        tiny_model(seed=seed).save(tmp_path / name)
    ase.io.write(tmp_path / "al.xyz", make_atoms(0), format="extxyz", parallel=False)
    (tmp_path / "run.py").write_text(ENDING)
    line = ("predict", *models, "al.xyz", "--grid", 20, 20, 21, "-o", "o.h5", "--json")
    # 17 tiles; the coarse first pass is one, which rank 0 or 1 does
    ran = mpirun(2, "run.py", 5 * members, signal, *line, cwd=tmp_path, timeout=100)
    assert ran.returncode != 0 and "energies" not in ran.stdout
    if code is not None:
        assert ran.returncode == code, ran.stderr
        assert f"stopped by {signal} after" in ran.stderr and "goes on from there" in ran.stderr
    assert not (tmp_path / "o.h5").exists() and (tmp_path / ".o.h5.tiles").is_dir()
    for rank in range(2):
        (tmp_path / f"calls.{rank}").unlink(missing_ok=True)
    ran = mpirun(2, "run.py", 10**6, signal, *line, cwd=tmp_path, timeout=100)
    assert ran.returncode == 0, ran.stderr
    done = sum(
        len((tmp_path / f"calls.{r}").read_text()) for r in range(2) if (tmp_path / f"calls.{r}").exists()
    )
    # the members' own Fermi levels take another pass
    assert done <= members * (17 - 4) + (17 * members if members > 1 else 0)
    found = json.loads(ran.stdout)
    assert any("were kept by a run that was ended" in note for note in found["notes"])
    model = malax.Emulator.combine([malax.Emulator.load(tmp_path / name) for name in models])
    one = model.predict(ase.io.read(tmp_path / "al.xyz"), grid=(20, 20, 21))
    assert found["energies"] == pytest.approx(one.terms(), rel=1e-9)
    stored = malax.load(tmp_path / "o.h5")
    np.testing.assert_allclose(stored.density, one.density, rtol=1e-9)
    if members > 1:
        np.testing.assert_array_equal(stored.spread.dos_std, one.spread.dos_std)
        for term, values in one.spread.energies.items():
            assert found["spread"]["energies"][term] == pytest.approx(list(values), rel=1e-9), term
    assert not (tmp_path / ".o.h5.tiles").exists()
