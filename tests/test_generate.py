"""Generation: structures from seeds, runs that fail, are interrupted, resumed or shared, and `--from`."""

from __future__ import annotations

import csv
import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.build import bulk, make_supercell
from fakes import make_snapshot
from qe_files import UPF, gaussian, toy, write_run

from malax import cli, coarse_run, generate, pp_job, pw_job, status
from malax import config as yaml_config
from malax.coarse_run import Window
from malax.errors import FileError, InputError, MachineError, MissingPeerError
from malax.generate import GenerateConfig
from malax.io.cube_series import CubeSeries
from malax.io.espresso import read_xml
from malax.io.pw_input import pw_input
from malax.io.snapshot import Snapshot

CONFIGS = Path(__file__).resolve().parents[1] / "configs"

FAKE_PW = """
import json, re, sys
from pathlib import Path
import ase.io
sys.path.insert(0, {tests!r})
from qe_files import toy, write_run
text = Path("pw.in").read_text()
with open({log!r}, "a") as log:
    log.write(Path.cwd().name + " pw\\n")
broken = json.loads(Path({broken!r}).read_text())
print("     Program PWSCF v.6.7MaX (fake)")
if Path.cwd().name in broken.get("crash", []):
    line = " " + "%" * 78
    print(line, "     Error in routine cdiaghg (153):", sep="\\n")
    print("     S matrix not positive definite", line, sep="\\n")
    sys.exit(1)
atoms = ase.io.read("pw.in", format="espresso-in")
kt = float(re.search(r"degauss = (\\S+)", text)[1]) * 13.605693122994
bands = int(re.search(r"nbnd = (\\d+)", text)[1])
write_run(Path.cwd(), toy(atoms, n_bands=bands, temperature=kt / 8.617333262e-5),
          converged=Path.cwd().name not in broken.get("unconverged", []))
if Path.cwd().name in broken.get("killed", []):
    sys.exit(137)
print("   JOB DONE.")
"""

FAKE_PP = """
import json, re, sys
from pathlib import Path
import numpy as np
sys.path.insert(0, {tests!r})
import qe_files
text = Path("pp_ldos.in").read_text()
with open({log!r}, "a") as log:
    log.write(Path.cwd().name + " pp\\n")
value = lambda key: float(re.search(key + r" = (\\S+)", text)[1])
import ase.io
xml = Path("tmp/malax.save/data-file-schema.xml").read_text()
# pp.x up to 7.1: the kernel is that of the smearing in the XML
kernel = qe_files.fermi_dirac if ">fd</smearing>" in xml else qe_files.gaussian
pw = Path("pw.in").read_text()
kt = float(re.search(r"degauss = (\\S+)", pw)[1]) * 13.605693122994
t = qe_files.toy(ase.io.read("pw.in", format="espresso-in"), n_bands=int(re.search(r"nbnd = (\\d+)", pw)[1]),
                 temperature=kt / 8.617333262e-5)
energies = np.arange(value("emin"), value("emax") + 1e-6, value("delta_e"))
# at most the cubes of the batch before
assert len(list(Path.cwd().glob("batch*.cube"))) <= 15
filplot = re.search(r"filplot = '(.*)'", text)[1]
if json.loads(Path({broken!r}).read_text()).get("pp", "none") in filplot:
    sys.exit(137)
qe_files.write_cubes(Path.cwd(), t, energies, value("degauss_ldos"), kernel, filplot)
Path(filplot + "001").write_text("binary of pp.x")
print("   JOB DONE.")
"""


class Kitchen:
    """A recipe whose pw.x and pp.x are scripts that write made-up files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = {
            "tests": str(Path(__file__).parent),
            "log": str(folder / "calls"),
            "broken": str(folder / "broken.json"),
        }
        self.breaks()
        for name, text in (("pw", FAKE_PW), ("pp", FAKE_PP)):
            (folder / f"{name}.py").write_text(text.format(**names))

    def breaks(self, **what: list[str]) -> None:
        (self.folder / "broken.json").write_text(json.dumps(what))

    def config(self, **changes: object) -> GenerateConfig:
        lattice = {"name": "Al", "structure": "fcc", "a": 4.6, "cubic": False}
        group = {
            "lattice": lattice,
            "supercell": [[1, 0, 0], [0, 1, 0], [0, 0, 2]],
            "temperature": 2000.0,
            "rattle": 0.05,
            "strain": 0.01,
            "kpoints": [2, 2, 1],
            "n_bands": 8,
            "indices": [0, 1, 2],
        }
        tree = {
            "out": "out",
            "seed": 5,
            "pseudopotentials": {"Al": str(UPF)},
            "qe": {
                "pw_command": f"{sys.executable} {self.folder}/pw.py {{input}}",
                "pp_command": f"{sys.executable} {self.folder}/pp.py {{input}}",
                "system": {"ecutwfc": 10},
            },
            "ldos": {"sigma": 0.5, "energies": [-14.0, 30.0, 0.5]},
            "groups": {"a": group},
        }
        for key, value in changes.items():
            node = tree
            *parents, last = key.split("__")
            for parent in parents:
                node = node[parent]  # type: ignore[assignment]
            node[last] = value
        return yaml_config.validate(tree, GenerateConfig, folder=self.folder)

    def calls(self) -> list[str]:
        log = self.folder / "calls"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def kitchen(tmp_path: Path) -> Kitchen:
    return Kitchen(tmp_path)


PROTOTYPE = {
    # group: supercell in cubic fcc cells, temperature, rattle, strain, k, grid, bands
    "u": (np.eye(3, dtype=int), 933.0, 0.177, 0.008, 12, 24, 12),
    "r": (np.eye(3, dtype=int), 933.0, 0.177, 0.012, 8, 24, 12),
    "v": (np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]]), 933.0, 0.177, 0.008, 5, 40, 42),
    "w": (np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]]), 298.0, 0.10, 0.0, 5, 40, 42),
    "x": (2 * np.eye(3, dtype=int), 933.0, 0.177, 0.0, 4, 48, 80),
    "y": (2 * np.eye(3, dtype=int), 298.0, 0.10, 0.0, 4, 48, 80),
}


def prototype(letter: str, index: int) -> Atoms:
    """The script that made the first of these structures, word for word in numbers."""
    supercell, _, rattle, strain, *_ = PROTOTYPE[letter]
    atoms = make_supercell(bulk("Al", "fcc", a=4.05, cubic=True), supercell)
    rng = np.random.default_rng([20261120, ord(letter), index])
    stretch = rng.normal(0, strain, 3) if strain else np.zeros(3)
    atoms.set_cell(atoms.cell.array @ np.diag(1 + stretch), scale_atoms=True)
    atoms.positions += rng.normal(0, rattle, (len(atoms), 3))
    return atoms


def test_the_shipped_recipe_makes_the_structures_of_the_model() -> None:
    recipe = yaml_config.load(CONFIGS / "al_generate.yaml", GenerateConfig)
    made = generate.structures(recipe)
    assert {s.group for s in made} == set(PROTOTYPE)
    for s in made:
        expected = prototype(s.group, s.number)
        assert s.name == f"{s.group}{s.number}"
        np.testing.assert_array_equal(s.atoms.positions, expected.positions)
        np.testing.assert_array_equal(s.atoms.cell.array, expected.cell.array)
    for letter, (_, temperature, _, _, k, n, bands) in PROTOTYPE.items():
        group = recipe.groups[letter]
        assert (group.temperature, group.kpoints, group.fft_grid, group.n_bands) == (
            temperature, (k, k, k), (n, n, n), bands,
        )  # fmt: skip
    # recorded from the run of w0 that went into the model: a guard against a change of ASE's supercells
    w0 = next(s for s in made if s.name == "w0").atoms
    np.testing.assert_allclose(w0.positions[[0, 7, 15]], W0, atol=5e-11)


W0 = [
    [0.0261163251, -0.0948916181, -0.0894329950],
    [2.0036361577, 1.9428135533, 3.9247993567],
    [1.8941085559, -2.1246691544, 3.9975093122],
]


def test_a_structure_does_not_depend_on_the_others(kitchen: Kitchen) -> None:
    one = generate.structures(kitchen.config(groups__a__indices=[2]))[0]
    three = generate.structures(kitchen.config())[2]
    assert one.name == three.name == "a2"
    np.testing.assert_array_equal(one.atoms.positions, three.atoms.positions)
    other = generate.structures(kitchen.config(seed=6))[2]
    assert np.abs(other.atoms.positions - three.atoms.positions).max() > 0.01


def test_structures_from_files_stay_as_they_are(kitchen: Kitchen) -> None:
    frames = [bulk("Al", a=4.0), bulk("Al", a=4.1)]
    ase.io.write(kitchen.folder / "two.xyz", frames)
    group = {"files": ["two.xyz"], "temperature": 500.0, "kpoints": [1, 1, 1], "n_bands": 4}
    made = generate.structures(kitchen.config(groups={"mine": group}))
    assert [s.name for s in made] == ["mine0", "mine1"]
    np.testing.assert_allclose(made[1].atoms.cell.array, frames[1].cell.array)
    ase.io.write(kitchen.folder / "two.xyz", Atoms("Al", cell=np.eye(3), pbc=(True, True, False)))
    with pytest.raises(FileError, match="not periodic in three"):
        generate.structures(kitchen.config(groups={"mine": group}))
    (kitchen.folder / "two.xyz").write_text("nonsense")
    with pytest.raises(FileError, match="cannot read structures"):
        generate.structures(kitchen.config(groups={"mine": group}))


def test_frames_are_selected(kitchen: Kitchen) -> None:
    rng = np.random.default_rng(0)
    frames = [bulk("Al", a=4.05, cubic=True) for _ in range(12)]
    for i, atoms in enumerate(frames):
        atoms.positions += rng.normal(0, 0.02, (4, 3))
        if i in (3, 8):  # unlike the others, and unlike each other
            atoms.set_cell(atoms.cell * (0.93 if i == 3 else 1.08), scale_atoms=True)
    ase.io.write(kitchen.folder / "md.xyz", frames, format="extxyz", parallel=False)
    base = {"files": ["md.xyz"], "temperature": 500.0, "kpoints": [1, 1, 1], "n_bands": 4}

    def names(seed: int = 5, **select: int) -> list[str]:
        made = generate.structures(kitchen.config(seed=seed, groups={"md": {**base, **select}}))
        for s in made:
            np.testing.assert_allclose(s.atoms.positions, frames[s.number].positions, atol=1e-7)
        return [s.name for s in made]

    assert names(every=5) == ["md0", "md5", "md10"]
    assert {"md3", "md8"} < set(names(farthest=3)) and len(names(farthest=3)) == 3
    assert "md8" in names(every=4, farthest=2)
    assert names(random=4) == names(random=4) and len(set(names(random=4))) == 4
    assert names(random=4) != names(random=4, seed=6)
    assert names(farthest=12) == names()
    for select in ({"random": 13}, {"every": 4, "farthest": 4}):
        with pytest.raises(InputError, match="structures are wanted, its files have"):
            names(**select)


def test_volumes_vacancies_and_shear(kitchen: Kitchen) -> None:
    plain = generate.structures(kitchen.config(groups__a__strain=0.0))
    lattice = plain[0].atoms.get_volume()
    made = generate.structures(kitchen.config(groups__a__strain=0.0, groups__a__volumes=[0.9, 1.2]))
    assert [s.atoms.get_volume() / lattice for s in made] == pytest.approx([0.9, 1.2, 0.9])
    changes = {"groups__a__strain": 0.0, "groups__a__vacancies": 1}
    holes = generate.structures(kitchen.config(**changes))
    for hole, whole in zip(holes, plain, strict=True):
        assert len(hole.atoms) == len(whole.atoms) - 1
        left = np.abs(whole.atoms.positions[:, None] - hole.atoms.positions).sum(axis=2).min(axis=0)
        assert left.max() < 1e-12  # those that stay stay where they were
    sheared = generate.structures(kitchen.config(groups__a__strain=0.0, groups__a__shear=0.05))[0].atoms
    change = np.linalg.solve(plain[0].atoms.cell.array, sheared.cell.array)
    np.testing.assert_allclose(change, change.T, atol=1e-12)
    assert np.abs(change - np.eye(3)).max() > 1e-3 and np.allclose(np.diag(change), 1)
    with pytest.raises(InputError, match="2 vacancies in 2 atoms"):
        generate.structures(kitchen.config(groups__a__vacancies=2))


def test_run_makes_snapshots_and_never_twice(kitchen: Kitchen) -> None:
    config, said = kitchen.config(), []
    outcomes = generate.run(config, say=said.append)
    assert [(o.name, o.state) for o in outcomes] == [("a0", "made"), ("a1", "made"), ("a2", "made")]
    assert [line.partition(": floor")[0] for line in said] == ["a0: made", "a1: made", "a2: made"]
    assert kitchen.calls() == ["a0 pw", "a1 pw", "a2 pw"]
    s = Snapshot.load(kitchen.folder / "out/a1.h5")
    t = toy(ase.io.read(kitchen.folder / "out/runs/a1/pw.in", format="espresso-in"))
    expected = t.ldos(s.energy_grid, gaussian(0.5)).reshape(-1, len(s.energy_grid))
    np.testing.assert_allclose(s.read_ldos(), expected, rtol=1e-4, atol=1e-5 * expected.max())
    assert s.name == "a1" and s.temperature == 2000.0 and s.provenance["recipe"]["index"] == 1
    assert not list((kitchen.folder / "out/runs/a1").rglob("wfc*"))
    hashes = [Snapshot.load(kitchen.folder / f"out/a{i}.h5").sha256 for i in range(3)]
    assert [o.state for o in generate.run(config)] == ["kept"] * 3
    assert len(kitchen.calls()) == 3
    # one more structure: only that one is computed
    more = kitchen.config(groups__a__indices=[0, 1, 2, 7])
    assert [o.state for o in generate.run(more)] == ["kept", "kept", "kept", "made"]
    assert kitchen.calls()[3:] == ["a7 pw"]
    assert hashes == [Snapshot.load(kitchen.folder / f"out/a{i}.h5").sha256 for i in range(3)]


def test_another_recipe_does_not_pass_for_this_one(kitchen: Kitchen) -> None:
    generate.run(kitchen.config())
    for changes in ({"groups__a__rattle": 0.06}, {"ldos__sigma": 0.6}, {"qe__system": {"ecutwfc": 11}}):
        with pytest.raises(InputError, match="3 of 3 structures failed.*made by another recipe"):
            generate.run(kitchen.config(**changes))
    assert len(kitchen.calls()) == 3


def test_a_failure_is_told_in_qe_words_and_the_rest_goes_on(kitchen: Kitchen) -> None:
    kitchen.breaks(crash=["a0"], unconverged=["a1"])
    said: list[str] = []
    with pytest.raises(InputError, match=r"2 of 3 structures failed \(a0, a1\)"):
        generate.run(kitchen.config(), say=said.append)
    assert "Error in routine cdiaghg (153): S matrix not positive definite" in said[0] and "\n" not in said[0]
    assert "did not converge" in said[1]
    assert said[2].startswith("a2: made")
    rows = list(csv.DictReader(open(kitchen.folder / "out/status.csv")))
    assert [(r["name"], r["state"]) for r in rows] == [("a0", "failed"), ("a1", "failed"), ("a2", "made")]
    assert "S matrix not positive definite" in rows[0]["remark"] and rows[0]["seconds"] == ""
    assert float(rows[2]["seconds"]) >= 0 and "coarse k-mesh" in rows[2]["remark"]
    assert sorted(p.name for p in (kitchen.folder / "out").glob("*.h5")) == ["a2.h5"]
    kitchen.breaks()
    assert [o.state for o in generate.run(kitchen.config(groups__a__indices=[0, 2]))] == ["made", "kept"]
    assert kitchen.calls() == ["a0 pw", "a1 pw", "a2 pw", "a0 pw"]


def test_only_some_structures(kitchen: Kitchen) -> None:
    assert [o.name for o in generate.run(kitchen.config(), only=["a2", "a0"])] == ["a2", "a0"]
    assert kitchen.calls() == ["a2 pw", "a0 pw"]
    assert [s.state for s in generate.status(kitchen.config())] == ["made", "waiting", "made"]
    with pytest.raises(InputError, match="no structure b7; it has a0, a1, a2"):
        generate.run(kitchen.config(), only=["b7"])


def test_a_job_array_computes_what_is_left(kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts run as a scheduler would run them."""
    recipe = kitchen.folder / "recipe.yaml"
    tree = json.loads(kitchen.config(job={"header": ["#SBATCH --time=10"]}).model_dump_json())
    del tree["groups"]["a"]["files"], tree["runs"]
    recipe.write_text(yaml.safe_dump(tree))
    generate.run(yaml_config.load(recipe, GenerateConfig), only=["a1"])
    for scheduler, index in (("slurm", "SLURM_ARRAY_TASK_ID"), ("pbs", "PBS_ARRAY_INDEX")):
        with pytest.raises(SystemExit) as leave:
            cli.main(["generate", str(recipe), "--jobs", scheduler])
        assert not leave.value.code
        script = kitchen.folder / f"out/jobs/{scheduler}.sh"
        lines = script.read_text().splitlines()
        assert lines[1] == {"slurm": "#SBATCH --array=1-2", "pbs": "#PBS -J 1-1"}[scheduler]
        assert lines[2] == "#SBATCH --time=10"
        number = 2 if scheduler == "slurm" else 1  # a2, then a0
        environment = {**os.environ, index: str(number), "SLURM_NTASKS": "64"}
        environment["PYTHONPATH"] = str(Path(generate.__file__).parents[1])
        done = subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert kitchen.calls() == ["a1 pw", "a2 pw", "a0 pw"]
    with pytest.raises(SystemExit) as leave:
        cli.main(["generate", str(recipe), "--jobs", "slurm"])
    assert leave.value.code == 2


PWI = """! an input as people have them
&CONTROL
  calculation = 'scf' , prefix="al", pseudo_dir = './pots/'  ! not: 'this'
/
&system
  ibrav=0, nat = 2, ntyp = 1, ecutwfc = 1.2d1, ecutrho = 48
  nspin = 1, nbnd = 9, occupations = 'smearing', smearing='f-d', degauss = 0.0063336231,
  starting_magnetization(1) = 0.0, nosym=.TRUE.
/
&electrons
  conv_thr = 1e-9, mixing_mode = 'local-TF', startingpot = 'file' /
ATOMIC_SPECIES
Al 26.98 Al.pbe-nc.UPF
# a comment
K_POINTS automatic
4 5 6 0 0 0
CELL_PARAMETERS angstrom
4 0 0
0 4 0
0 0 4
ATOMIC_POSITIONS crystal
Al 0 0 0
Al 0.5 0.5 0.5
"""


def test_an_input_of_pw_is_a_template(kitchen: Kitchen) -> None:
    (kitchen.folder / "pots").mkdir()
    (kitchen.folder / "pots" / UPF.name).write_bytes(UPF.read_bytes())
    (kitchen.folder / "al.pwi").write_text(PWI)
    tree = json.loads(kitchen.config().model_dump_json())
    group = {k: tree["groups"]["a"][k] for k in ("lattice", "supercell", "rattle", "indices")}
    qe = {"template": "al.pwi", "pw_command": tree["qe"]["pw_command"], "electrons": {"conv_thr": 1e-7}}
    recipe = {"out": "t", "seed": 5, "qe": qe, "ldos": tree["ldos"], "groups": {"a": group}}

    def made() -> GenerateConfig:
        return yaml_config.validate(recipe, GenerateConfig, folder=kitchen.folder)

    config = made()
    found = config.groups["a"]
    assert (found.kpoints, found.n_bands) == ((4, 5, 6), 9)
    assert found.temperature == pytest.approx(1000.0, abs=1e-3)
    assert config.qe.system["ecutwfc"] == 12.0 and config.qe.system["nosym"] is True
    assert not {"nbnd", "ibrav", "degauss", "nat"} & set(config.qe.system)
    assert config.qe.electrons == {"conv_thr": 1e-7, "mixing_mode": "local-TF"}
    assert config.pseudopotentials == {"Al": (kitchen.folder / "pots" / UPF.name).resolve()}
    group["kpoints"] = [2, 2, 1]
    assert made().groups["a"].kpoints == (2, 2, 1)
    assert [o.state for o in generate.run(made(), only=["a0"])] == ["made"]
    text = (kitchen.folder / "t/runs/a0/pw.in").read_text()
    assert "ecutwfc = 12.0" in text and "local-TF" in text and "startingpot" not in text
    for change, message in (
        (("nspin = 1", "nspin = 2"), "spin polarisation"),
        (("K_POINTS", "HUBBARD {ortho-atomic}\nU Al-3p 1.0\nK_POINTS"), "DFT.U"),
        (("&electrons", "&electrons\n what is this"), "line 11: 'what' is not key = value"),
        (("&system", "&sistem"), "namelist &system is missing"),
    ):
        (kitchen.folder / "al.pwi").write_text(PWI.replace(*change))
        with pytest.raises(InputError, match=message):
            made()
    (kitchen.folder / "al.pwi").unlink()
    with pytest.raises(InputError, match="cannot read the pw.x input"):
        made()


def test_an_interrupted_run_starts_anew_a_finished_one_is_harvested(kitchen: Kitchen) -> None:
    kitchen.breaks(killed=["a0"])
    with pytest.raises(InputError, match="exit status 137"):
        generate.run(kitchen.config())
    kitchen.breaks()
    # a1 lost its snapshot but kept its wavefunctions; a2 has neither
    keep = kitchen.config(qe__keep_wavefunctions=True, groups__a__indices=[4])
    generate.run(keep)
    for name in ("a2", "a4"):
        (kitchen.folder / f"out/{name}.h5").unlink()
    before = len(kitchen.calls())
    generate.run(kitchen.config(groups__a__indices=[0, 1, 2, 4]))
    assert kitchen.calls()[before:] == ["a0 pw", "a2 pw"]
    assert (kitchen.folder / "out/a4.h5").exists()


def test_two_processes_share_a_recipe(kitchen: Kitchen) -> None:
    folder = kitchen.folder / "out/runs/a1"
    folder.mkdir(parents=True)
    other = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(other, fcntl.LOCK_EX)
    assert [o.state for o in generate.run(kitchen.config())] == ["made", "busy", "made"]
    assert [s.state for s in generate.status(kitchen.config())] == ["made", "running", "made"]
    os.close(other)
    assert [s.state for s in generate.status(kitchen.config())] == ["made", "waiting", "made"]
    assert [o.state for o in generate.run(kitchen.config())] == ["kept", "made", "kept"]


class TwoRanks:
    """Rank r of two, whose other rank's outcomes are given."""

    def __init__(self, rank: int, other: list) -> None:
        self.rank, self.size, self.other = rank, 2, other

    def gather(self, value: list, root: int = 0) -> list:
        return [value, self.other] if self.rank == 0 else [self.other, value]

    def bcast(self, value: object, root: int = 0) -> object:
        # rank 1 asks for what the probes of rank 0 said
        return value if self.rank == 0 or value is not None else (True, Window((-14.0, 30.0, 0.5), {}))


def test_ranks_deal_out_the_structures(kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "as_comm", lambda comm: comm)
    theirs = [generate.Outcome("a1", "made")]
    outcomes = generate.run(kitchen.config(), comm=TwoRanks(0, theirs))
    assert kitchen.calls() == ["a0 pw", "a2 pw"]
    assert [o.name for o in outcomes] == ["a0", "a1", "a2"]
    generate.run(kitchen.config(), comm=TwoRanks(1, [outcomes[0], outcomes[2]]))
    assert kitchen.calls() == ["a0 pw", "a2 pw", "a1 pw"]


def test_cubes_of_pp_get_a_gaussian_kernel_and_the_xml_is_put_back(kitchen: Kitchen) -> None:
    config = kitchen.config(ldos={"sigma": 0.5, "energies": [-14.0, 30.0, 0.5], "method": "cubes"})
    config = config.model_copy(
        update={"groups": {"a": config.groups["a"].model_copy(update={"indices": (0,)})}}
    )
    generate.run(config)
    s = Snapshot.load(kitchen.folder / "out/a0.h5")
    assert s.kernel == "gaussian" and s.provenance["ldos_from"] == "pp.x cubes"
    run = kitchen.folder / "out/runs/a0"
    assert ">fd</smearing>" in (run / "tmp/malax.save/data-file-schema.xml").read_text()
    assert kitchen.calls() == ["a0 pw", *["a0 pp"] * 6]  # 89 energies
    assert not list(run.glob("*.cube")) and not list(run.glob("tmp.pp*")) and not list(run.glob("ldos*"))


def test_cubes_are_converted_in_batches_and_taken_up_again(kitchen: Kitchen) -> None:
    ldos = {"sigma": 0.5, "energies": [-14.0, 30.0, 0.5], "method": "cubes"}

    def config(**more: object) -> GenerateConfig:
        return kitchen.config(ldos={**ldos, **more}, groups__a__indices=[0])

    kitchen.breaks(pp="003_")
    with pytest.raises(InputError, match="exit status 137"):
        generate.run(config())
    run = kitchen.folder / "out/runs/a0"
    assert kitchen.calls() == ["a0 pw", *["a0 pp"] * 4]
    kitchen.breaks()
    # the third batch was being converted: it does not count
    generate.run(config())
    assert len(kitchen.calls()) == 1 + 4 + 4
    s = Snapshot.load(kitchen.folder / "out/a0.h5")
    t = toy(ase.io.read(run / "pw.in", format="espresso-in"))
    expected = t.ldos(s.energy_grid, gaussian(0.5)).reshape(-1, len(s.energy_grid))
    np.testing.assert_allclose(s.read_ldos(), expected, rtol=2e-4, atol=1e-5 * expected.max())
    (kitchen.folder / "out/a0.h5").unlink()
    generate.run(config(keep_cubes=True))
    assert len(list(run.glob("tmp.pp*_ldos.cube"))) == 89 and not list(run.glob("batch*"))
    (run / "tmp.pp003_ldos.cube").unlink()
    with pytest.raises(FileError, match="LDOS cube 003 is missing"):
        generate.from_run(run, kitchen.folder / "again.h5")


def test_batches_of_another_size_do_not_count(kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    ldos = {"sigma": 2.0, "energies": [-20.0, 32.0, 2.0], "method": "cubes"}
    config = kitchen.config(ldos=ldos, groups__a__indices=[0])
    monkeypatch.setattr(pp_job, "BATCH", 9)
    kitchen.breaks(pp="002_")  # the first 9 of 27 are done
    with pytest.raises(InputError, match="exit status 137"):
        generate.run(config)
    kitchen.breaks()
    monkeypatch.setattr(pp_job, "BATCH", 14)
    assert [o.state for o in generate.run(config)] == ["made"]
    assert kitchen.calls() == ["a0 pw", *["a0 pp"] * (3 + 2)]


def test_a_changed_pseudopotential_is_another_run(kitchen: Kitchen) -> None:
    upf = kitchen.folder / UPF.name
    upf.write_bytes(UPF.read_bytes())
    config = kitchen.config(
        pseudopotentials={"Al": str(upf)}, qe__keep_wavefunctions=True, groups__a__indices=[0]
    )
    target, run = kitchen.folder / "out/a0.h5", kitchen.folder / "out/runs/a0"
    generate.run(config)
    target.unlink()
    generate.run(config)
    assert kitchen.calls() == ["a0 pw"]
    upf.write_bytes(UPF.read_bytes() + b"<!-- another -->\n")
    target.unlink()
    generate.run(config)
    assert kitchen.calls() == ["a0 pw"] * 2
    # a run of before the hashes were kept stays valid
    (run / pw_job.HASHES).unlink()
    target.unlink()
    generate.run(config)
    assert kitchen.calls() == ["a0 pw"] * 2


def test_a_full_disk_fails_one_structure_and_the_rest_goes_on(
    kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.copyfile

    def copyfile(source: object, target: Path) -> None:
        if target.parent.name == "a0":
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        real(source, target)  # type: ignore[call-overload]

    monkeypatch.setattr(pw_job.shutil, "copyfile", copyfile)
    with pytest.raises(InputError, match=r"1 of 2 structures failed \(a0\); a0: .*a0/Al.*No space left"):
        generate.run(kitchen.config(groups__a__indices=[0, 1]))
    assert kitchen.calls() == ["a1 pw"]

    def full(path: Path, rows: object) -> None:
        raise MachineError(f"cannot write {path}: the disk is full")

    monkeypatch.undo()
    monkeypatch.setattr(generate, "write_status", full)
    with pytest.raises(MachineError, match="status.csv: the disk is full"):
        generate.run(kitchen.config(groups__a__indices=[0, 1]))
    assert kitchen.calls() == ["a1 pw", "a0 pw"]


def test_a_harvest_that_fails_closes_the_cubes(kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[CubeSeries] = []
    real = pp_job.LdosRun.series

    def series(run: pp_job.LdosRun) -> CubeSeries:
        opened.append(real(run))
        opened[-1].sums *= 1.1  # not the DOS of this run
        return opened[-1]

    monkeypatch.setattr(pp_job.LdosRun, "series", series)
    ldos = {"sigma": 4.0, "energies": [-26.0, 30.0, 4.0], "method": "cubes"}
    with pytest.raises(InputError, match="the DOS of the cubes differs"):
        generate.run(kitchen.config(ldos=ldos, groups__a__indices=[0]))
    assert opened[0].spool.closed


def test_versions_that_know_the_kernel() -> None:
    known = {"6.7MaX": False, "7.1": False, "7.2": True, "7.3.1": True, "7.10": True, "unknown": False}
    assert {version: pp_job.knows_gauss(version) for version in known} == known


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups__a__latice": {}}, "latice.*lattice"),
        ({"groups__a__indices": []}, "needs indices"),
        ({"groups__a__supercell": [[1, 0, 0], [1, 0, 0], [0, 0, 1]]}, "not independent"),
        ({"groups__a__temperature": -1.0}, "temperature"),
        ({"groups": {}}, "groups"),
        ({"groups__a__every": 3}, "select frames of files"),
        ({"ldos__sigma": 0.1}, "below the spacing"),
        ({"ldos__energies": [1.0, 2.0, 0.3]}, "divide the range"),
        ({"qe__system": {}}, "ecutwfc"),
        ({"qe__system": {"ecutwfc": 10, "nbnd": 5}}, "system.nbnd follows from"),
        ({"qe__system": {"ecutwfc": 10, "nspin": 2}}, "cannot hold such a run .spin polarisation"),
        ({"qe__system": {"ecutwfc": 10, "lspinorb": True}}, "spin-orbit coupling"),
        ({"qe__system": {"ecutwfc": 10, "hubbard_u(1)": 3.0}}, "DFT.U"),
        ({"qe__system": {"ecutwfc": 10, "vdw_corr": "grimme-d3"}}, "van der Waals"),
        ({"qe__system": {"ecutwfc": 10, "input_dft": "hse"}}, "another functional"),
        ({"qe__system": {"ecutwfc": 10, "tot_charge": 1}}, "charged cell"),
        ({"qe__control": {"tefield": True}}, "electric field"),
        ({"qe__pw_command": "pw.x"}, r"\{input\}"),
    ],
)
def test_recipes_that_cannot_be_right(kitchen: Kitchen, changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        kitchen.config(**changes)


def test_what_can_be_known_early_is_told_before_pw_runs(kitchen: Kitchen) -> None:
    def fails(error: type[Exception], message: str, **changes: object) -> None:
        with pytest.raises(error, match=message):
            generate.run(kitchen.config(**changes))
        assert kitchen.calls() == []

    fails(MissingPeerError, "'no-such-pw' was not found", qe__pw_command="no-such-pw {input}")
    fails(InputError, "must be one letter", groups={"ab": _group(kitchen)})
    fails(InputError, "is for Al", pseudopotentials={"Be": str(UPF)})
    fails(
        InputError,
        "no pseudopotential for Be",
        groups__a__lattice={"name": "Be", "structure": "hcp", "a": 2.3},
    )
    fails(InputError, "lattice Al perovskite", groups__a__lattice={"name": "Al", "structure": "perovskite"})


def _group(kitchen: Kitchen) -> dict:
    return json.loads(kitchen.config().groups["a"].model_dump_json(exclude={"files"}))


def test_checks_of_an_ldos_that_is_its_own_reference(tmp_path: Path) -> None:
    """A made-up snapshot whose energies follow from its LDOS: the floor is zero, a change of them shows."""
    snapshot = make_snapshot(tmp_path / "s.h5", 0, shape=(9, 9, 9))
    exact = status.check(snapshot)
    assert abs(exact.floor) < 1e-3 and abs(exact.floor_band) < 1e-3 and exact.density < 1e-3
    assert abs(exact.electrons) < 0.02 and exact.concerns == []
    snapshot.energies["total_free"] -= 0.04
    off = status.check(snapshot)
    assert off.floor == pytest.approx(10.0, abs=1e-3)  # 4 atoms
    assert "misses DFT's free energy by 10.0 meV/atom" in off.concerns[0]
    few = status.check(replace(snapshot, complete_to=snapshot.fermi_level))
    assert few.short == pytest.approx(14 * 8.617333e-5 * snapshot.temperature, rel=1e-5)
    assert "more bands" in few.concerns[1] and exact.short == 0


def test_levels_per_width(tmp_path: Path) -> None:
    run = read_xml(write_run(tmp_path, toy(shape=(6, 7, 8))) / "data-file-schema.xml")
    below = run.eigenvalues < run.fermi_level
    wanted = (run.weights[:, None] / 2 * below).sum() * 4 / (run.fermi_level - run.eigenvalues.min()) * 0.6
    assert status.levels_per_width(run, 0.3) == pytest.approx(wanted)  # a 2 x 2 x 1 mesh in the file


def test_progress_of_the_cycle_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pw_job, "LOOK", 0.02)
    script = tmp_path / "pw.py"
    script.write_text(
        "import time\nfor e in ('0.5E-01', '1.2E-04', '3.1D-07'):\n"
        "    print(f'     estimated scf accuracy    <       {e} Ry', flush=True)\n    time.sleep(0.15)\n"
        "print('     convergence has been achieved in   3 iterations\\n   JOB DONE.')\n"
    )
    told: list[tuple[int, float]] = []
    with pw_job.Job(tmp_path / "run") as job:
        assert job is not None
        job.pw(f"{sys.executable} {script} {{input}}", "input", lambda *what: told.append(what))
        assert job.iterations == 3
    assert told == [(1, 0.05), (2, 1.2e-4), (3, 3.1e-7)]


def test_an_interrupt_ends_pw(tmp_path: Path) -> None:
    script = tmp_path / "pw.py"
    script.write_text("import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(60)\n")

    def interrupt(process: object, output: Path, watch: object) -> int:
        while not (output.parent / "pid").exists() or not (output.parent / "pid").read_text():
            time.sleep(0.01)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pw_job, "_wait", interrupt)
        with pw_job.Job(tmp_path / "run") as job:
            assert job is not None
            job.pw(f"{sys.executable} {script} {{input}}", "input")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "run/pid").read_text()), 0)


def test_pw_input() -> None:
    atoms = bulk("Al", a=4.0)
    namelists = {"system": {"ecutwfc": 20, "nosym": True}, "electrons": {"mixing_mode": "plain"}}
    text = pw_input(
        atoms, {"Al": "Al.upf"}, temperature=1000.0, n_bands=7, kpoints=(1, 1, 1), namelists=namelists
    )
    assert "K_POINTS gamma" in text and " nosym = .true." in text and " mixing_mode = 'plain'" in text
    assert " degauss = 0.0063336" in text  # 1000 K in Ry
    with pytest.raises(InputError, match="no pseudopotential for Al"):
        pw_input(atoms, {"Be": "x"}, temperature=1.0, n_bands=1, kpoints=(1, 1, 1))


def test_harvest_names_files_by_run_and_overwrites_nothing(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_run(tmp_path / name, toy(shape=(6, 7, 8)))
    options: dict = {"sigma": 0.5, "energies": (-4.0, 20.0, 0.5)}
    said: list[str] = []
    made = generate.harvest(
        [tmp_path / "one", tmp_path / "two"], tmp_path / "out", say=said.append, **options
    )
    assert [s.path.name for s in made] == ["one.h5", "two.h5"] and len(said) == 2
    single = generate.harvest([tmp_path / "one"], tmp_path / "single.h5", **options)
    assert single[0].path == tmp_path / "single.h5" and single[0].sha256 == made[0].sha256
    with pytest.raises(FileError, match="exists"):
        generate.harvest([tmp_path / "one"], tmp_path / "single.h5", **options)
    generate.harvest([tmp_path / "one"], tmp_path / "single.h5", overwrite=True, **options)
    with pytest.raises(InputError, match="same name"):
        generate.harvest([tmp_path / "one", tmp_path / "one"], tmp_path / "out2", **options)
    with pytest.raises(FileError, match="not a folder"):
        generate.harvest([tmp_path / "one", tmp_path / "two"], tmp_path / "single.h5", **options)
    with pytest.raises(InputError, match="no folder"):
        generate.harvest([], tmp_path / "out")


def test_harvest_knows_the_shared_folders(shared_al: Path, tmp_path: Path) -> None:
    made = generate.harvest([shared_al / "d00", shared_al / "t00"], tmp_path / "out")
    assert [s.path.name for s in made] == ["d00.h5", "t00.h5"]
    assert made[1].ldos_shape == (24, 24, 24)


def test_energies_and_bands_are_picked_from_coarse_runs(kitchen: Kitchen) -> None:
    tree = json.loads(
        kitchen.config(groups__a__kpoints=[8, 8, 4], groups__a__indices=[0, 1]).model_dump_json()
    )
    group = {k: v for k, v in tree["groups"]["a"].items() if k not in ("files", "n_bands")}
    group |= {"strain": 0.0, "volumes": [0.95, 1.05]}
    recipe = {k: tree[k] for k in ("out", "seed", "pseudopotentials", "qe")} | {"ldos": {"sigma": 0.5}}

    def made(**changes: object) -> GenerateConfig:
        groups = {"a": {**group, **changes.pop("a", {})}}  # type: ignore[dict-item]
        return yaml_config.validate({**recipe, "groups": groups, **changes}, GenerateConfig, kitchen.folder)

    said: list[str] = []
    outcomes = generate.run(made(), say=said.append)
    assert [o.state for o in outcomes] == ["made"] * 2
    assert {"probe-a0 pw", "probe-a1 pw"} < set(kitchen.calls())  # the most and the least dense
    kept = json.loads((kitchen.folder / "out/runs/probes.json").read_text())
    low, high, step = kept["energies"]
    assert step == 0.25 and said[0].startswith(f"probes: LDOS from {low:g} to {high:g} eV every 0.25 eV")
    for name in ("a0", "a1"):
        s = Snapshot.load(kitchen.folder / f"out/{name}.h5")
        occupied = s.fermi_level + 14 * 8.617333e-5 * s.temperature
        assert s.complete_to > occupied and low < s.energy_grid[0] + 1e-9 and high > occupied
        assert s.energy_grid[-1] == pytest.approx(high)
    # nothing again; another structure joins them on the same energies, without another probe
    before = kitchen.calls()
    assert [o.state for o in generate.run(made())] == ["kept"] * 2
    assert [o.state for o in generate.run(made(a={"indices": [0, 1, 3]}))][2] == "made"
    assert kitchen.calls() == [*before, "a3 pw"]


def two_groups(kitchen: Kitchen, **b: object) -> dict:
    """A recipe that leaves out energies and bands: a colder group, and one that needs more energies."""
    group = json.loads(kitchen.config().groups["a"].model_dump_json(exclude={"files", "n_bands"}))
    group |= {"strain": 0.0, "kpoints": [8, 8, 4], "indices": [0]}
    return {"groups": {"a": group, "b": {**group, "temperature": 9000.0, **b}}, "ldos": {"sigma": 0.5}}


def test_energies_are_picked_for_all_groups_whichever_is_asked_for_first(kitchen: Kitchen) -> None:
    """As the jobs of an array do it, one structure each."""
    config = kitchen.config(**two_groups(kitchen))
    picked = []
    with ThreadPoolExecutor(2) as pool:
        todo = generate.structures(config)
        jobs = [
            pool.submit(coarse_run.window, config, todo, [s], lambda line: picked.append(line)) for s in todo
        ]
        first, second = (job.result() for job in jobs)
    assert first == second and len(picked) == 1 and set(first.bands_per_electron) == {"a", "b"}
    kept = json.loads((kitchen.folder / "out/runs/probes.json").read_text())
    assert tuple(kept["energies"]) == first.energies
    calls = kitchen.calls()
    assert {c.split()[0] for c in calls} == {"probe-a0", "probe-b0"}
    # kept, however many runs each took
    (kitchen.folder / "out/runs/probes.json").unlink()
    assert coarse_run.window(config, todo, todo, lambda _: None) == first and kitchen.calls() == calls


def test_a_group_that_comes_later_and_needs_more_energies(kitchen: Kitchen) -> None:
    tree = two_groups(kitchen)
    one = kitchen.config(**{**tree, "groups": {"a": tree["groups"]["a"]}})
    coarse_run.window(one, generate.structures(one), generate.structures(one), lambda _: None)
    both = kitchen.config(**tree)
    todo = generate.structures(both)
    with pytest.raises(InputError, match="group b.*picked before from .*probes.json and the snapshots in"):
        coarse_run.window(both, todo, todo, lambda _: None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ldos__energies": [3.0, 30.0, 0.5]}, "group a, coarse run of a0: ldos.energies start at 3 eV"),
        ({"ldos__energies": [-14.0, 4.0, 0.5]}, "end at 4 eV, but states are needed up to"),
        ({"groups__a__n_bands": 4}, "n_bands of 4 make the LDOS complete up to .*more bands are needed"),
    ],
)
def test_what_is_too_narrow_is_refused_after_a_coarse_run(
    kitchen: Kitchen, changes: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        generate.run(kitchen.config(groups__a__kpoints=[8, 8, 4], groups__a__indices=[0], **changes))
    assert kitchen.calls() == ["probe-a0 pw"]


def test_probes_that_fail_or_are_not_wanted(kitchen: Kitchen) -> None:
    kitchen.breaks(crash=["probe-a0"])
    dense = {"groups__a__kpoints": [8, 8, 4], "groups__a__indices": [0]}
    with pytest.raises(InputError, match="probe of a0: .*S matrix not positive definite"):
        generate.run(kitchen.config(**dense, groups__a__n_bands="auto"))
    said: list[str] = []
    assert [o.state for o in generate.run(kitchen.config(**dense), say=said.append)] == ["made"]
    assert "were not checked beforehand" in said[0]
    before = kitchen.calls()
    assert [o.state for o in generate.run(kitchen.config(**dense))] == ["kept"]
    assert kitchen.calls() == before
    with pytest.raises(InputError, match="probe: false needs ldos.energies, and n_bands"):
        generate.run(kitchen.config(**dense, groups__a__n_bands="auto", probe=False))


def test_mesh_of_a_probe(kitchen: Kitchen) -> None:
    config = kitchen.config(groups__a__kpoints=[12, 8, 1])
    assert coarse_run.mesh(config, "a") == (3, 2, 1)
    pools = config.qe.model_copy(update={"pw_command": "mpirun -n 32 pw.x -nk 8 -in {input}"})
    assert coarse_run.mesh(config.model_copy(update={"qe": pools}), "a") == (5, 4, 1)


def test_an_ldos_of_another_density_is_no_snapshot(kitchen: Kitchen) -> None:
    """What pp.x 6.7 makes of Gamma's real wavefunctions and ultrasoft pseudopotentials: a third off."""
    pp = kitchen.folder / "pp.py"
    # the same states in other places
    right, wrong = (
        "energies = np.arange(",
        "f = t.orbitals; t.orbitals = lambda k: np.roll(f(k), 4, axis=1)\n",
    )
    pp.write_text(pp.read_text().replace(right, wrong + right))
    ldos = {"sigma": 0.5, "energies": [-14.0, 30.0, 0.5], "method": "cubes"}
    config = kitchen.config(ldos=ldos, groups__a__indices=[0], groups__a__kpoints=[1, 1, 1])
    with pytest.raises(InputError, match="a0: .*the density of the LDOS differs from pw.x's by"):
        generate.run(config)
    assert "K_POINTS crystal\n1\n" in (kitchen.folder / "out/runs/a0/pw.in").read_text()
    assert not (kitchen.folder / "out/a0.h5").exists()
