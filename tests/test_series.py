"""Series of predictions: the table, and going on after a kill."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import ase.io
import pytest
from fakes import UPF, make_atoms
from models import tiny_model

import malax
from malax import cli, launcher, series
from malax.errors import FileError, InputError
from malax.io.cube import read_cube
from malax.series import COLUMNS, Table
from malax.units import RYDBERG

LINE = (
    "predict",
    "m.malax",
    "al.xyz",
    "--index",
    ":",
    "--temperature",
    "950",
    "1000",
    "--grid",
    "9",
    "9",
    "9",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("series")
    tiny_model().save(folder / "m.malax")
    ase.io.write(folder / "al.xyz", [make_atoms(s) for s in range(3)], format="extxyz", parallel=False)
    return folder


@pytest.fixture
def run(capsys, monkeypatch, folder):
    for name in (*launcher.TASK_COUNTS, *launcher.TASK_MARKS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(folder)

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as leave:
            cli.main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return int(leave.value.code or 0), out, err

    return call


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def rows(path: Path) -> list[dict[str, str]]:
    """The table without the times that it took."""
    return [{**row, "seconds": ""} for row in table(path)]


def test_table(run, tmp_path):
    code, out, err = run(*LINE, "--table", tmp_path / "t.csv", tmp_path / "t.xyz", "--json")
    assert code == 0, err
    results = json.loads(out)["results"]
    assert (tmp_path / "t.csv").read_text().startswith(",".join(COLUMNS) + "\n")
    lines = table(tmp_path / "t.csv")
    assert len(lines) == 6
    images = ase.io.read(tmp_path / "t.xyz", ":")
    for row, image, result in zip(lines, images, results, strict=True):
        assert row["structure"] == result["structure"]
        for term, energy in result["energies"].items():
            assert float(row[f"{term}_eV"]) == energy
        assert image.info["total_free_eV"] == result["energies"]["total_free"]
        assert float(row["temperature_K"]) == result["temperature"] == image.info["temperature_K"]
        assert len(image) == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.csv", "t.xyz"]


def test_a_killed_series_goes_on(run, tmp_path, monkeypatch):
    tables = ("--table", tmp_path / "t.csv", tmp_path / "t.xyz", "-o", tmp_path / "o.h5")
    assert run(*LINE, *tables)[0] == 0
    wanted = rows(tmp_path / "t.csv")
    for name in ("t.csv", "t.xyz"):  # as a kill leaves them: the fourth row cut, its file there
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text[: text.index("al.xyz@1") + 300])
    for i in (4, 5):
        (tmp_path / f"o_{i:04d}.h5").unlink()
    asked = []
    predict = malax.Emulator.predict_many
    monkeypatch.setattr(
        malax.Emulator, "predict_many", lambda self, *a, **k: asked.append(a) or predict(self, *a, **k)
    )
    code, out, err = run(*LINE, *tables, "--json")
    assert code == 0, err
    assert len(asked) == 2  # one structure was finished
    assert rows(tmp_path / "t.csv") == wanted
    results = json.loads(out)["results"]
    assert [r.get("finished_before", False) for r in results] == [True] * 2 + [False] * 4
    assert len(ase.io.read(tmp_path / "t.xyz", ":")) == 6
    # once more: nothing is left to do
    asked.clear()
    assert run(*LINE, *tables)[0] == 0 and not asked
    assert rows(tmp_path / "t.csv") == wanted


def test_other_tables_are_not_overwritten(run, tmp_path):
    table = tmp_path / "t.csv"
    assert run("predict", "m.malax", "al.xyz", "--grid", 9, 9, 9, "--table", table)[0] == 0
    before = table.read_text()
    code, out, err = run("predict", "m.malax", "al.xyz", "--grid", 8, 9, 9, "--table", table)
    assert code == 2 and "rows that are not of this series" in err and out == ""
    assert table.read_text() == before
    assert run("predict", "m.malax", "al.xyz", "--grid", 8, 9, 9, "--table", table, "--overwrite")[0] == 0
    assert "8x9x9" in table.read_text() and "9x9x9" not in table.read_text()
    table.write_text("a,b\n1,2\n")
    code, _, err = run(*LINE, "--table", table)
    assert code == 2 and "no table of malax" in err
    (tmp_path / "t.xyz").write_text("hello\n")
    code, _, err = run(*LINE, "--table", tmp_path / "t.xyz")
    assert code == 2 and "no table of malax" in err


def test_another_file_under_the_name_of_a_result_is_refused(run, tmp_path):
    (tmp_path / "o_0001.h5").write_text("mine")
    code, _, err = run(*LINE, "--table", tmp_path / "t.csv", "-o", tmp_path / "o.h5")
    assert code == 2 and "o_0001.h5 exists" in err
    assert (tmp_path / "o_0001.h5").read_text() == "mine"


def test_several_models_with_table_and_save_folders(run, folder, tmp_path):
    """Error bars stand in the table; a killed series goes on, and leaves finished save folders alone."""
    models = []
    for seed in (0, 1):
        models.append(tiny_model(seed=seed, ecutrho=20 * RYDBERG).save(tmp_path / f"{seed}.malax"))
    line = ("predict", *models, "al.xyz", "--index", "::2", "--grid", 12, 12, 12, "--pseudo", f"Al={UPF}")
    line += ("--qe-save", tmp_path / "q", "--table", tmp_path / "t.csv", tmp_path / "t.xyz", "--json")
    code, out, err = run(*line)
    assert code == 0, err
    results, wanted = json.loads(out)["results"], rows(tmp_path / "t.csv")
    for i, (row, result) in enumerate(zip(wanted, results, strict=True)):
        assert row["members"] == "2"
        assert float(row["fermi_level_std_eV"]) == result["spread"]["fermi_level_std"] > 0
        assert float(row["total_free_std_eV"]) == result["spread"]["energies_std"]["total_free"] > 0
        said = json.loads((tmp_path / "q" / f"{i:04d}" / "malax.json").read_text())
        assert said["energies"] == result["energies"] and said["spread"] == result["spread"]
        assert result["files"] == [str(tmp_path / "q" / f"{i:04d}")]
    for name in ("t.csv", "t.xyz"):  # as a kill leaves them: the second row cut, its folder written
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text[: text.index("al.xyz@1") + 100])
    marks = [tmp_path / "q" / f"{i:04d}" / "nscf.in" for i in (0, 1)]
    for mark in marks:
        mark.write_text("pw.x has been here")
    code, out, err = run(*line)
    assert code == 0, err
    again = json.loads(out)["results"]
    assert again[0]["finished_before"] and "finished_before" not in again[1]
    assert again[0]["spread"]["energies_std"] == results[0]["spread"]["energies_std"]
    assert again[1]["energies"] == results[1]["energies"]
    assert rows(tmp_path / "t.csv") == wanted
    assert [mark.read_text() == "pw.x has been here" for mark in marks] == [True, False]
    # the folders of another series are not overwritten
    code, _, err = run(*line[:1], models[0], *line[3:-4], "--table", tmp_path / "o.csv")
    assert code == 2 and "exists; give --overwrite or another --qe-save" in err


def test_a_table_is_no_other_output(run, tmp_path):
    line = (
        "predict",
        "m.malax",
        "al.xyz",
        "-o",
        tmp_path / "o.h5",
        "--extxyz",
        "--table",
        tmp_path / "o.xyz",
    )
    code, _, err = run(*line)
    assert code == 2 and "is also the name of an output" in err


def test_bad_tables(tmp_path):
    with pytest.raises(InputError, match=r"\.csv, \.xyz, \.extxyz"):
        Table([tmp_path / "t.txt"], [])
    with pytest.raises(FileError, match="does not exist"):
        Table([tmp_path / "no" / "t.csv"], [])


def test_keys_tell_everything_apart():
    atoms = make_atoms(0)
    moved = atoms.copy()
    moved.positions[0, 0] += 1e-12
    keys = [
        series.key_of(*a)
        for a in ((atoms, 1.0), (moved, 1.0), (atoms, 2.0), (atoms, None), (atoms, 1.0, "x"))
    ]
    assert len(set(keys)) == len(keys)
    assert series.key_of(atoms.copy(), 1.0) == keys[0]


def test_preview_and_time_limit_options(run, tmp_path):
    line = ("predict", "m.malax", "al.xyz", "--grid", 9, 9, 9, "-o", tmp_path / "o.h5")
    code, out, err = run(*line, "--preview", "--max-time", "1:00:00")
    assert code == 0, err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o.h5", "o.preview.cube"]
    assert read_cube(tmp_path / "o.preview.cube").values.shape == (9, 9, 9)
    code, out, err = run(*line, "--overwrite", "--max-time", "0.001")
    assert code == 75 and "stopped by --max-time" in err and "goes on from there" in err and out == ""
    code, out, err = run(*line, "--overwrite", "--json")
    assert code == 0 and "kept by a run that was ended" in out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o.h5", "o.preview.cube"]
    code, _, err = run("predict", "m.malax", "al.xyz", "--preview")
    assert code == 2 and "--preview needs -o" in err
