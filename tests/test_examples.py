"""The examples, and what the README prints, run as they stand."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import ase.io
import pytest
import yaml
from ase.build import bulk
from typer.main import get_command

import malax
from malax import cli, launcher
from malax.config import load, validate
from malax.generate import GenerateConfig

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
UPF = ROOT / "malax" / "data" / "Al.pbe-nc.UPF"

needs_pw = pytest.mark.skipif(
    shutil.which("pw.x") is None, reason="no pw.x on the PATH (apt-get install quantum-espresso)"
)


def blocks(language: str, text: str = README) -> list[str]:
    """The fenced blocks of a language ("" for none) in a Markdown text."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [code for name, code in fenced if name == language]


def environment(bin_folder: Path) -> dict[str, str]:
    """As in an activated virtual environment with malax installed, whichever way it is found now."""
    bin_folder.mkdir(exist_ok=True)
    for name, arguments in (("python", ""), ("malax", "-m malax.cli ")):
        script = bin_folder / name
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {arguments}"$@"\n')
        script.chmod(0o755)
    # without what a launcher may have set: the examples start their own processes
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PMI", "OMPI_", "SLURM_"))}
    kept["PATH"] = os.pathsep.join([str(bin_folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    kept["PYTHONPATH"] = str(Path(malax.__file__).parents[1])
    return kept


def run_example(name: str, folder: Path) -> tuple[str, Path]:
    """Run a copy of an example: what it said, and its output folder."""
    here = folder / name
    shutil.copytree(ROOT / "examples" / name, here, ignore=shutil.ignore_patterns("out"))
    done = subprocess.run(
        [str(here / "run.sh")], env=environment(folder / "bin"), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "Warning" not in done.stderr, done.stderr
    return done.stdout, here / "out"


def test_mpi_inference(tmp_path):
    pytest.importorskip("mpi4py", reason="mpi4py is not installed: pip install 'malax[mpi]'")
    if not (Path(sys.executable).with_name("mpiexec").exists() or shutil.which("mpiexec")):
        pytest.skip("no mpiexec: pip install 'malax[mpi]', or load the MPI of mpi4py")
    said, out = run_example("mpi_inference", tmp_path)
    assert "largest difference" in said
    two, one = malax.load(out / "two.h5"), malax.load(out / "one.h5")
    assert two.provenance["ranks"] == 2 and one.provenance["ranks"] == 1
    assert len(two.atoms) == 16 and (out / "two.cube").is_file()


def test_train_from_config(tmp_path):
    said, out = run_example("train_from_config", tmp_path)
    epochs = (out / "small.run" / "log.csv").read_text().splitlines()
    assert len(epochs) == 1 + 6
    losses = [float(row.split(",")[4]) for row in epochs[1:]]
    assert losses[-1] < losses[0] / 2
    groups = json.loads((out / "small.test.json").read_text())["groups"]
    assert groups[0]["absolute"]["density_mape"] < 5
    assert (out / "plots" / "errors.png").is_file()
    assert "al7" in said and "al5*" not in said


@needs_pw
def test_bands(tmp_path):
    said, out = run_example("bands", tmp_path)
    assert (out / "bands.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    counts = dict(re.findall(r"(\w+)\.out: +convergence has been achieved in +(\d+) iter", said))
    assert int(counts["scf"]) < int(counts["atoms"])
    ours, dft = map(float, re.search(r"density (\S+) eV, DFT (\S+) eV", said).groups())
    assert ours == pytest.approx(dft, abs=0.05)
    assert float(re.search(r"rms after removing it (\S+) meV", said)[1]) < 20


def test_ten_lines_of_the_readme(capsys):
    (code,) = (block for block in blocks("python") if "emulator.predict" in block)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    exec(compile(code, "README.md", "exec"), {})
    energy, *_ = capsys.readouterr().out.split()
    assert -70 < float(energy) < -50


def test_the_command_that_ci_takes_from_the_readme():
    """.ci/run cuts it out with sed and grep, which must not find anything else."""
    cut = "sed -n '/<!-- test-command -->/,/^```$/p' README.md | grep -v -e '<!--' -e '```'"
    found = subprocess.run(["bash", "-c", cut], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert found == "pip install '.[test]'\npytest -n 2 --dist loadfile\n"
    assert ["pip install .", "malax demo"] in [block.splitlines() for block in blocks("bash")]


def test_every_command_in_the_documents_exists():
    """Lines `malax ...` of README and docs name commands and options that the command line has."""
    known = {
        name: {option for parameter in command.params for option in parameter.opts}
        for name, command in get_command(cli.app).commands.items()  # type: ignore[attr-defined]
    }
    texts = [path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]]
    texts += [path.read_text(encoding="utf-8") for path in (ROOT / "examples").glob("*/README.md")]
    # in fenced blocks or indented by four
    code = [line for text in texts for block in blocks("bash", text) for line in block.splitlines()]
    code += [line[4:] for text in texts for line in text.splitlines() if line.startswith("    ")]
    lines = [found[1] for line in code if (found := re.match(r"(?:mpiexec -n \d+ )?malax (.+)$", line))]
    assert len(lines) > 10
    for line in lines:
        command, *words = line.split()
        assert command in known, line
        used = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert used <= known[command], line


def test_links_in_the_documents():
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*/README.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path}: {target}"


def test_recipe_of_the_readme_is_valid(tmp_path):
    (text,) = (block for block in blocks("yaml") if "pw_command" in block)
    (tmp_path / "structures").mkdir()
    ase.io.write(tmp_path / "structures" / "a.xyz", bulk("Al", cubic=True), format="extxyz", parallel=False)
    (tmp_path / "recipe.yaml").write_text(text)
    recipe = load(tmp_path / "recipe.yaml", GenerateConfig)
    assert recipe.groups["hot"].kpoints == (12, 12, 12)
    # the other energy grid that the text mentions
    (other,) = re.findall(r"`ldos: (\{sigma.*?\})`", README)
    tree = {**yaml.safe_load(text), "ldos": yaml.safe_load(other)}
    assert validate(tree, GenerateConfig, folder=tmp_path).ldos.energies == (-12.0, 20.0, 0.1)


@pytest.fixture
def own_data(tmp_path, monkeypatch) -> Path:
    """What the README's section on own data begins with: finished runs of pw.x in runs/run00, run01, ..."""
    for name in (*launcher.TASK_COUNTS, *launcher.TASK_MARKS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (printed,) = (block for block in blocks("") if "&control" in block)
    assert "\n12 12 12 0 0 0\n" in printed and "Al 0.03 0.10 3.93" in printed
    (tmp_path / "pseudo").mkdir()
    shutil.copyfile(UPF, tmp_path / "pseudo" / UPF.name)
    for number in range(4):
        folder = tmp_path / "runs" / f"run{number:02d}"
        folder.mkdir(parents=True)
        text = printed.replace("12 12 12 0 0 0", "2 2 2 0 0 0")  # seconds, not minutes
        text = text.replace("Al 0.03 0.10 3.93", f"Al 0.03 0.1{number} 3.93")
        (folder / "pw.in").write_text(text)
        done = subprocess.run(["pw.x", "-in", "pw.in"], cwd=folder, capture_output=True, text=True)
        assert "JOB DONE" in done.stdout, done.stdout[-1000:]
    atoms = ase.io.read(folder / "pw.in", format="espresso-in", parallel=False)
    ase.io.write(tmp_path / "structure.xyz", atoms, format="extxyz", parallel=False)
    return tmp_path


def expanded(word: str, folder: Path) -> list[str]:
    """A word of a command line as the shell would pass it on."""
    return sorted(map(str, folder.glob(word))) if "*" in word else [word]


@needs_pw
def test_own_data_by_the_readme(own_data, capsys):
    """All steps as printed, with few k-points and a smaller and shorter training."""
    (config,) = (block for block in blocks("yaml") if "models/mine.malax" in block)
    (own_data / "mine.yaml").write_text(config)
    section = README[README.index("### 2. Make snapshots") : README.index("## Supported")]
    commands = [line for block in blocks("bash", section) for line in block.splitlines()]
    verbs = ["generate", "info", "train", "evaluate", "predict", "predict"]
    assert [line.split()[1] for line in commands] == verbs
    for line in commands:
        words = [found for word in shlex.split(line)[1:] for found in expanded(word, own_data)]
        if words[0] == "train":
            words += ["--set", "epochs=2", "network.hidden=[16]", "threads=1"]
        if "--qe-save" in words:
            words += ["--kpoints", "2", "2", "2"]
        with pytest.raises(SystemExit) as leave:
            cli.main(words)
        assert not leave.value.code, (line, capsys.readouterr().err)
    said = capsys.readouterr().out
    assert "complete to" in said and "total free energy" in said
    for name in ("data/run03.h5", "models/mine.test.json", "plots/run01.png", "out.h5", "out.cube"):
        assert (own_data / name).is_file(), name
    assert "pw.x -in nscf.in > nscf.out" in section
    done = subprocess.run(["pw.x", "-in", "nscf.in"], cwd=own_data / "qe", capture_output=True, text=True)
    assert "JOB DONE" in done.stdout, done.stdout[-1000:]


@needs_pw
def test_quantum_espresso(tmp_path):
    """Four commands: what the recipe leaves out is picked, and pw.x goes on from the emulated density."""
    said, out = run_example("quantum_espresso", tmp_path)
    assert "probes: LDOS from" in said and said.count(": made: floor") == 3
    level = float(re.search(r"Fermi level +(\S+) eV", said)[1])
    of_pw = float(re.search(r"the Fermi energy is +(\S+) ev", said)[1])
    assert of_pw == pytest.approx(level, abs=0.3)
    assert "JOB DONE" in (out / "qe" / "bands.out").read_text()
    assert (out / "data" / "status.csv").read_text().count("made") == 3
