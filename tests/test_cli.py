"""The command line: exit codes, one line of error, JSON, files, and what is said."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from fakes import make_atoms, make_snapshot
from models import tiny_model
from qe_files import toy, write_run

import malax
from malax import cli, demo, launcher, shipped
from malax.commands.arguments import spread
from malax.io.cube import read_cube

PROMISED = {"energies", "fermi_level", "n_electrons", "temperature", "grid", "timings", "provenance"}


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No launcher, 80 columns."""
    for name in (*launcher.TASK_COUNTS, *launcher.TASK_MARKS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model, structures in several formats, and two snapshots."""
    folder = tmp_path_factory.mktemp("cli")
    atoms = [make_atoms(seed) for seed in range(3)]
    ase.io.write(folder / "al.xyz", atoms, format="extxyz", parallel=False)
    ase.io.write(folder / "al.data", atoms[0], format="lammps-data", parallel=False)
    dump = ["ITEM: TIMESTEP", "0", "ITEM: NUMBER OF ATOMS", "4", "ITEM: BOX BOUNDS pp pp pp", *["0 4.05"] * 3]
    rows = [f"{i + 1} 1 " + " ".join(f"{x:.8f}" for x in p) for i, p in enumerate(atoms[0].positions)]
    (folder / "al.dump").write_text("\n".join([*dump, "ITEM: ATOMS id type x y z", *rows]) + "\n")
    tiny_model().save(folder / "m.malax")
    for seed in range(2):
        make_snapshot(folder / f"snap{seed}.h5", seed, shape=(9, 9, 9))
    return folder


@pytest.fixture
def run(capsys, monkeypatch, folder):
    """Run a command in ``folder``: exit code, stdout, stderr."""
    monkeypatch.chdir(folder)

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as leave:
            cli.main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return int(leave.value.code or 0), out, err

    return call


def refused(ran: tuple[int, str, str], *parts: str) -> None:
    """The user's mistake: exit code 2, one line that says what, nothing on stdout."""
    code, out, err = ran
    assert code == 2, err
    assert out == ""
    assert err.count("\n") == 1 and err.startswith("malax: "), err
    assert not set(err) & set("╭│╰─"), err
    for part in parts:
        assert part in err, err


# predict


def test_predict_prints_terms_and_writes_nothing(run, folder):
    before = sorted(folder.iterdir())
    code, out, err = run("predict", "m.malax", "al.xyz")
    assert code == 0 and err == ""
    assert "grid         9 x 9 x 9, spacing 0.450 x 0.450 x 0.450 A" in out
    assert "temperature not given: 1000 K, the lowest training temperature" in out
    result = malax.Emulator.load("m.malax").predict(make_atoms(2))  # the last image
    assert f"{result.energies.total_free:.6f}" in out and f"{result.fermi_level:.4f} eV" in out
    assert max(map(len, out.splitlines())) <= 80
    assert sorted(folder.iterdir()) == before


def test_predict_json_is_one_object(run):
    code, out, err = run("predict", "m.malax", "al.xyz", "--json", "--index", "0")
    assert code == 0 and err == ""
    assert out.count("\n") == 1
    value = json.loads(out)
    assert set(value) >= PROMISED
    assert value["energies"]["total_free"] == pytest.approx(
        malax.Emulator.load("m.malax").predict(make_atoms(0)).energies.total_free, abs=1e-5
    )  # positions in the file have 8 decimals
    code, out, _ = run("predict", "m.malax", "al.xyz", "--json", "--index", ":", "--temperature", 950, 1000)
    results = json.loads(out)["results"]
    assert [r["temperature"] for r in results] == [950, 1000] * 3
    assert [r["structure"] for r in results[::2]] == ["al.xyz@0", "al.xyz@1", "al.xyz@2"]


def test_predict_writes_and_does_not_overwrite(run, tmp_path):
    out = tmp_path / "o.h5"
    arguments = ("predict", "m.malax", "al.xyz", "-o", out, "--cube", "--ldos", "--grid", 9, 10, 11)
    code, printed, _ = run(*arguments)
    assert code == 0 and f"written      {out}" in printed
    result = malax.load(out)
    assert result.ldos.shape == (9, 10, 11, 27) and result.grid.shape == (9, 10, 11)
    assert read_cube(tmp_path / "o.cube").grid.shape == (9, 10, 11)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o.cube", "o.h5"]
    stamp = out.stat().st_mtime_ns
    refused(run(*arguments), "o.h5 exists", "--overwrite")
    assert out.stat().st_mtime_ns == stamp
    assert run(*arguments, "--overwrite")[0] == 0
    assert out.stat().st_mtime_ns > stamp


def test_predict_for_other_programs(run, tmp_path):
    tiny_model(ecutrho=200.0).save(tmp_path / "e.malax")
    out = tmp_path / "o.h5"
    arguments = ["predict", tmp_path / "e.malax", "al.xyz", "-o", out, "--xsf", "--dos", "--extxyz"]
    arguments += ["--qe-save", tmp_path / "q", "--kpoints", 2, 2, 2, "--temperature", 950, 1000]
    code, printed, err = run(*arguments)
    assert code == 0 and "one-electron contribution" in printed, err
    endings = {"h5", "xsf", "dos", "xyz"}
    expected = {f"o_{i:04d}.{e}" for i in range(2) for e in endings} | {"e.malax", "q"}
    assert {p.name for p in tmp_path.iterdir()} == expected
    for folder in ("0000", "0001"):
        assert (tmp_path / "q" / folder / "malax.save" / "charge-density.dat").is_file()
    for one in tmp_path.glob("o_*"):
        one.unlink()
    refused(run(*arguments), "charge-density.dat exists", "--overwrite")
    assert not list(tmp_path.glob("o_*"))


def test_predict_several_results_are_numbered(run, tmp_path):
    code, _, _ = run("predict", "m.malax", "al.xyz", "--index", "::2", "-o", tmp_path / "o.h5")
    assert code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o_0000.h5", "o_0001.h5"]
    np.testing.assert_allclose(
        malax.load(tmp_path / "o_0001.h5").atoms.positions, make_atoms(2).positions, atol=1e-7
    )


def test_predict_repeat_spacing_and_lammps_files(run):
    code, out, _ = run("predict", "m.malax", "al.xyz", "--repeat", 2, 1, 1, "--spacing", 0.4)
    assert code == 0 and "Al8, 8 atoms" in out and "grid         21 x 12 x 12" in out
    wanted = run("predict", "m.malax", "al.xyz", "--index", "0", "--json")[1]
    for name in ("al.data", "al.dump"):
        code, out, err = run("predict", "m.malax", name, "--species", "Al", "--json")
        assert code == 0, err
        energies = json.loads(out)["energies"]
        assert energies["total_free"] == pytest.approx(json.loads(wanted)["energies"]["total_free"], abs=1e-4)


def test_predict_warns_on_stderr(run):
    code, out, err = run("predict", "m.malax", "al.xyz", "--temperature", 900, "--json")
    assert code == 0
    assert err == "warning: 900 K is outside the training temperatures, 1000 to 1000 K\n"
    assert json.loads(out)["warnings"] == ["900 K is outside the training temperatures, 1000 to 1000 K"]


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (["nope.malax", "al.xyz"], ["nope.malax", "No such file"]),
        (["al.xyz", "al.xyz"], ["al.xyz is not a malax model"]),
        (["m.malax", "nope.xyz"], ["nope.xyz does not exist"]),
        (["m.malax", "m.malax"], ["m.malax", "format", "--format"]),
        (["m.malax"], ["Missing argument 'STRUCTURE'"]),
        (["m.malax", "al.data"], ["numbered types", "--species"]),
        (["m.malax", "al.dump"], ["numbered types", "--species"]),
        (["m.malax", "al.xyz", "--species", "Al"], ["--species is for LAMMPS files"]),
        (["m.malax", "al.data", "--species", "Be"], ["the model knows Al only", "Be"]),
        (["m.malax", "al.data", "--species", "Axx"], ["'Axx' is no element"]),
        (["m.malax", "al.xyz", "--index", "7"], ["al.xyz", "7"]),
        (["m.malax", "al.xyz", "--index", "x"], ["--index 'x' is no index"]),
        (["m.malax", "al.xyz", "--format", "vasp"], ["cannot be read as vasp"]),
        (["m.malax", "al.xyz", "--temperature", "50000"], ["highest allowed temperature"]),
        (["m.malax", "al.xyz", "--temperature", "-5"], ["temperature", "-5"]),
        (["m.malax", "al.xyz", "--temperature", "hot"], ["--temperature"]),
        (["m.malax", "al.xyz", "--grid", "8", "8", "x"], ["--grid"]),
        (["m.malax", "al.xyz", "--grid", "8", "8", "0"], ["three positive integers"]),
        (["m.malax", "al.xyz", "--spacing", "-1"], ["spacing must be positive"]),
        (["m.malax", "al.xyz", "--grid", "8", "8", "8", "--spacing", "0.3"], ["exclude each other"]),
        (["m.malax", "al.xyz", "--repeat", "0", "1", "1"], ["--repeat"]),
        (["m.malax", "al.xyz", "--descriptors", "gpu"], ["'native' or 'lammps'"]),
        (["m.malax", "al.xyz", "--precision", "half"], ["'float32' or 'bfloat16'"]),
        (["m.malax", "al.xyz", "--cube"], ["--cube needs -o"]),
        (["m.malax", "al.xyz", "--ldos"], ["--ldos needs -o"]),
        (["m.malax", "al.xyz", "--dos"], ["--dos needs -o"]),
        (["m.malax", "al.xyz", "--pseudo", "Al=x"], ["--pseudo goes with --qe-save"]),
        (["m.malax", "al.xyz", "--qe-save", "q", "--pseudo", "x"], ["ELEMENT=PATH"]),
        (["m.malax", "al.xyz", "--qe-save", "q"], ["does not know the ecutrho"]),
        (["m.malax", "al.xyz", "--qe-save", "q", "--kpoints", "2", "2", "0"], ["three positive"]),
        (["m.malax", "al.xyz", "-o", "no/such/folder/o.h5"], ["folder", "does not exist"]),
        (["m.malax", "al.xyz", "-o", "o.txt"], ["name ending in .h5"]),
        (["m.malax", "al.xyz", "--temprature", "300"], ["No such option", "--temperature"]),
    ],
)
def test_predict_refuses(run, folder, arguments, parts):
    before = sorted(folder.iterdir())
    refused(run("predict", *arguments), *parts)
    assert sorted(folder.iterdir()) == before


def test_json_stays_clean_on_errors(run):
    refused(run("predict", "m.malax", "nope.xyz", "--json"))


# evaluate, info, bench


def test_evaluate(run, tmp_path):
    code, out, err = run("evaluate", "m.malax", "snap0.h5", "snap1.h5", "--plots", tmp_path)
    assert code == 0 and err == ""
    assert max(map(len, out.splitlines())) <= 80 or str(tmp_path) in out
    assert all(len(line) <= 80 for line in out.splitlines() if not line.startswith("written"))
    for part in ("snap0", "snap1", "Hartree", "floor", "DFT's LDOS", "mean", "fit"):
        assert part in out
    for name in ("snap0.png", "snap1.png", "errors.png"):
        assert (tmp_path / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    refused(run("evaluate", "m.malax", "snap0.h5", "--plots", tmp_path), "exists", "--overwrite")


def test_evaluate_json(run):
    code, out, err = run("evaluate", "m.malax", "snap0.h5", "--json")
    assert code == 0 and err == ""
    value = json.loads(out)
    assert set(value["snapshots"][0]["errors"]) == {"band", "entropy_term", "hartree", "xc", "total_free"}
    assert value["groups"][0]["n_snapshots"] == 1
    refused(run("evaluate", "m.malax", "al.xyz"), "al.xyz", "HDF5")


def test_info(run, tmp_path):
    run("predict", "m.malax", "al.xyz", "-o", tmp_path / "o.h5")
    for path, kind, part in (
        ("m.malax", "model", "14-12-27"),
        ("snap0.h5", "snapshot", "gaussian, sigma 0.5 eV"),
        (tmp_path / "o.h5", "result", "Al4, 4 atoms"),
    ):
        code, out, err = run("info", path)
        assert code == 0 and err == ""
        assert out.split()[:2] == ["kind", kind] and part in out
        value = json.loads(run("info", path, "--json")[1])
        assert value["kind"] == kind
    assert value["provenance"]["model_sha256"] == malax.Emulator.load("m.malax").hash
    refused(run("info", "al.xyz"), "al.xyz is not a malax model")
    refused(run("info", "nope"), "nope")


def test_bench(run, monkeypatch):
    monkeypatch.setattr("malax.bench.TRIAL_SECONDS", 0.01)
    code, out, _ = run("bench", "--model", "m.malax")
    assert code == 0 and "us per grid point" in out and "100000 atoms" in out and "128 ranks" in out
    value = json.loads(run("bench", "--model", "m.malax", "--json", "--atoms", 1000, "--ranks", 2)[1])
    assert min(value[k] for k in ("native", "network", "energies")) > 0
    assert value["total"] == pytest.approx(value["native"] + value["network"])
    found = value["estimate"]
    assert (
        found["points"] == np.prod(found["grid"]) == pytest.approx(1000 * value["points_per_atom"], rel=0.3)
    )
    assert found["rank_points"] == pytest.approx(found["points"] / 2, rel=0.05)
    assert found["seconds"] == pytest.approx(found["streaming_seconds"] + found["energies_seconds"])
    assert found["rank_gigabytes"] > 0.1 and found["output_bytes"] > 8 * found["points"]
    assert value["kernels"]["version"] == malax.__version__


# demo


def test_demo(run, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "_DATA", folder)
    refused(run("demo"), "al.malax is missing")
    (folder / "al.malax").write_bytes((folder / "m.malax").read_bytes())
    (folder / "al_demo.h5").write_bytes((folder / "snap0.h5").read_bytes())
    monkeypatch.setattr(demo, "SUPERCELL_SECONDS", 0.0)
    code, out, err = run("demo", "--out", tmp_path / "d")
    assert code == 0, err
    for part in ("band", "floor", "training mean", "16 atoms", "ms per atom", "malax predict", "mpiexec"):
        assert part in out
    names = {"against_dft.png", "supercell.png", "supercell_density.cube"}
    assert {p.name for p in (tmp_path / "d").iterdir()} == names
    refused(run("demo", "--out", tmp_path / "d"), "not empty", "--overwrite")
    value = json.loads(run("demo", "--out", tmp_path / "e", "--json")[1])
    assert set(value["snapshot"]["errors"]) >= {"band", "total_free"}
    assert value["supercell"]["n_atoms"] == 16


def test_demo_finds_a_free_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [str(demo.output_folder(None, False)) for _ in range(3)] == [
        "malax-demo",
        "malax-demo-2",
        "malax-demo-3",
    ]


# train and generate: their own tests are elsewhere, here only that they are reached


def test_train_and_generate_refuse(run, tmp_path):
    refused(run("train", "nope.yaml"), "nope.yaml")
    refused(run("generate"), "CONFIG.yaml", "--from")
    refused(run("generate", "a.yaml", "--from", "x", "-o", "y"), "either")
    refused(run("generate", "--from", "x"), "-o OUT")
    refused(run("generate", "nope.yaml"), "nope.yaml")
    refused(run("generate", "nope.yaml", "--sigma", 0.1), "--sigma goes with --from")
    refused(run("generate", "--from", tmp_path, "-o", tmp_path / "s.h5"), str(tmp_path))


def test_train_suggests_the_right_key(run, tmp_path):
    (tmp_path / "t.yaml").write_text("output: m.malax\nepoch: 3\ndata: {training: [x], validation: [y]}\n")
    refused(run("train", tmp_path / "t.yaml"), "epoch", "epochs")


def test_generate_from_shared(run, tmp_path, shared_al):
    code, out, err = run("generate", "--from", shared_al / "d08", "-o", tmp_path / "d08.h5")
    assert code == 0, err
    assert malax.load(tmp_path / "d08.h5").name == "d08"


def test_generate_from_a_run_on_other_energies(run, tmp_path):
    write_run(tmp_path / "one", toy())
    out = tmp_path / "one.h5"
    options = ("-o", out, "--energies", -20, 30, 0.5, "--sigma", 0.6)
    code, _, err = run("generate", "--from", tmp_path / "one", *options)
    assert code == 0, err
    snapshot = malax.load(out)
    np.testing.assert_allclose(snapshot.energy_grid, np.linspace(-20, 30, 101))
    assert snapshot.sigma == 0.6
    with_recipe = run("generate", tmp_path / "recipe.yaml", "--energies", -20, 30, 0.5)
    refused(with_recipe, "--energies goes with --from")


# the entry point


def test_help_and_version(run):
    assert run("--version") == (0, f"malax {malax.__version__}\n", "")
    code, out, _ = run()
    assert code == 0 and "Commands:" in out
    for command in ("demo", "generate", "train", "evaluate", "predict", "info", "bench"):
        assert command in out
        code, text, _ = run(command, "--help")
        assert code == 0 and text.startswith(f"Usage: malax {command}")
        assert max(map(len, text.splitlines())) <= 80
    refused(run("pradict"), "No such command")


def test_spread():
    assert spread(["predict", "m", "a", "--temperature", "298", "933", "-o", "x"]) == (
        ["predict", "m", "a", "--temperature", "298", "--temperature", "933", "-o", "x"]
    )
    assert spread(["predict", "--temperature", "298", "m", "300.xyz"]) == (
        ["predict", "--temperature", "298", "m", "300.xyz"]
    )
    assert spread(["generate", "--from", "a", "b", "-o", "c"]) == [
        "generate",
        "--from",
        "a",
        "--from",
        "b",
        "-o",
        "c",
    ]
    assert spread(["train", "--set", "a=1", "b=2", "c.yaml"]) == [
        "train",
        "--set",
        "a=1",
        "--set",
        "b=2",
        "c.yaml",
    ]
    assert spread(["info", "x", "--json"]) == ["info", "x", "--json"]


@pytest.mark.parametrize(
    "error, code, line",
    [
        (KeyboardInterrupt(), 130, "malax: interrupted"),
        (MemoryError(), 1, "malax: out of memory"),
        (OSError(5, "Input/output error", "x.h5"), 1, "malax: x.h5: Input/output error"),
        (
            ValueError("odd\nthing"),
            1,
            "malax: ValueError: odd thing (unexpected; MALAX_TRACEBACK=1 shows where)",
        ),
    ],
)
def test_what_nobody_expected_is_one_line(run, monkeypatch, error, code, line):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("malax.commands.info.info", fail)
    found, out, err = run("info", "m.malax")
    assert found == code and out == ""
    assert err.startswith(line) and err.count("\n") == 1


def test_scheduler_without_mpi_is_refused(folder, monkeypatch):
    """128 tasks that each see themselves alone must not compute the same thing 128 times."""
    pytest.importorskip("mpi4py", reason="mpi4py is not installed")
    monkeypatch.setenv("SLURM_NTASKS", "128")
    monkeypatch.setenv("PYTHONPATH", str(Path(malax.__file__).parents[1]))
    command = [sys.executable, "-m", "malax.cli", "predict", "m.malax", "al.xyz"]
    for rank, printed in (("0", True), ("7", False)):
        monkeypatch.setenv("SLURM_PROCID", rank)
        ran = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=120)
        assert ran.returncode == 2 and ran.stdout == ""
        assert ("SLURM_NTASKS=128 but the MPI communicator has size 1" in ran.stderr) == printed
        assert ran.stderr.count("\n") == int(printed)
