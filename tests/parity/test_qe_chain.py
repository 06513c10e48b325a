"""The whole way with real pw.x and pp.x: recipe -> snapshots -> training -> prediction -> pw.x again."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import ase.io
import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.units import kB

import malax
from malax import cli, generate, launcher
from malax import config as yaml_config
from malax.energies import total_free_energy
from malax.evaluate import from_own_ldos
from malax.generate import GenerateConfig
from malax.io.espresso import read_xml
from malax.io.pw_input import pw_input
from malax.io.snapshot import Snapshot

ROOT = Path(__file__).resolve().parents[2]
DEBIAN = Path("/usr/share/espresso/pseudo")
AL = ROOT / "malax" / "data" / "Al.pbe-nc.UPF"

pytestmark = pytest.mark.skipif(
    shutil.which("pw.x") is None or shutil.which("pp.x") is None,
    reason="no pw.x and pp.x on the PATH (apt-get install quantum-espresso)",
)

LITHIUM = """&input
 title='Li', zed=3.0, rel=1, config='[He] 2s1 2p0', iswitch=3, dft='PBE'
/
&inputp
 pseudotype=1, file_pseudopw='Li.UPF', lloc=1, tm=.true., nlcc=.true., rcore=1.3, new_core_ps=.true.
/
2
2S 1 0  1.00 0.00 2.20 2.20 0.0
2P 2 1  0.00 0.00 2.30 2.30 0.0
"""
HYDROGEN = """&input
 title='H', zed=1.0, rel=0, config='1s1', iswitch=3, dft='PBE'
/
&inputp
 pseudotype=1, file_pseudopw='H.UPF', lloc=0, tm=.true.
/
1
1S 1 0 1.00 0.00 1.10 1.10 0.0
"""


def made_by_ld1(folder: Path, element: str) -> Path:
    """A norm-conserving pseudopotential from the input of ld1.x above."""
    if shutil.which("ld1.x") is None:
        pytest.skip("no ld1.x on the PATH (apt-get install quantum-espresso)")
    text = {"Li": LITHIUM, "H": HYDROGEN}[element]
    done = subprocess.run(["ld1.x"], input=text, cwd=folder, capture_output=True, text=True)
    assert (folder / f"{element}.UPF").is_file(), done.stdout[-1000:]
    return folder / f"{element}.UPF"


def from_debian(name: str) -> Path:
    path = DEBIAN / name
    if not path.is_file():
        pytest.skip(f"no {path} (apt-get install quantum-espresso-data)")
    return path


def recipe(folder: Path, upf: dict[str, Path], system: dict, group: dict, **ldos: object) -> GenerateConfig:
    tree = {
        "out": "data",
        "seed": 1,
        "pseudopotentials": {element: str(path) for element, path in upf.items()},
        "qe": {"system": system, "electrons": {"conv_thr": 1e-10}},
        "ldos": ldos,
        "groups": {"a": group},
    }
    return yaml_config.validate(tree, GenerateConfig, folder=folder)


def per_atom(value: float, atoms: Atoms) -> float:
    """meV/atom."""
    return 1e3 * value / len(atoms)


STRAINED = Atoms(
    "Al2", scaled_positions=[[0, 0, 0], [0.53, 0.5, 0.48]], cell=np.diag([2.864, 2.893, 4.0]), pbc=True
)


@pytest.fixture(scope="module")
def aluminium(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """Two atoms by `malax generate`, which picks energies and bands."""
    folder = tmp_path_factory.mktemp("al")
    ase.io.write(folder / "al.xyz", STRAINED, format="extxyz", parallel=False)
    group = {"files": ["al.xyz"], "temperature": 2000.0, "kpoints": [6, 6, 4]}
    (outcome,) = generate.run(recipe(folder, {"Al": AL}, {"ecutwfc": 15}, group, sigma=0.3))
    assert outcome.state == "made"
    return Snapshot.load(folder / "data/a0.h5")


def test_terms_and_floor_of_a_generated_snapshot(aluminium: Snapshot) -> None:
    s = aluminium
    options = (s.energies["band"], s.energies["entropy_term"], s.pseudopotentials, s.xc, s.ecutrho)
    found = total_free_energy(s.atoms, s.density, *options).as_dict()
    for term, wanted in s.energies.items():
        assert abs(per_atom(found[term] - wanted, s.atoms)) < 0.01, term
    own, _, level = from_own_ldos(s)
    assert abs(per_atom(own.total_free - s.energies["total_free"], s.atoms)) < 1.5
    assert level == pytest.approx(s.fermi_level, abs=0.01)
    assert s.complete_to > s.fermi_level + 14 * kB * s.temperature


def free_energy(folder: Path, atoms: Atoms) -> float:
    """pw.x's own, at the settings of the snapshot above."""
    folder.mkdir()
    shutil.copyfile(AL, folder / AL.name)
    namelists = {"system": {"ecutwfc": 15}, "electrons": {"conv_thr": 1e-10}}
    settings = {"temperature": 2000.0, "n_bands": 9, "kpoints": (6, 6, 4), "fft_shape": (15, 15, 20)}
    (folder / "pw.in").write_text(pw_input(atoms, {"Al": AL.name}, namelists=namelists, **settings))
    done = subprocess.run(["pw.x", "-in", "pw.in"], cwd=folder, capture_output=True, text=True)
    assert "JOB DONE" in done.stdout, done.stdout[-1000:]
    return read_xml(folder / "tmp/malax.save/data-file-schema.xml").energies["total_free"]


def test_forces_and_stress_have_the_signs_of_finite_differences(aluminium: Snapshot, tmp_path: Path) -> None:
    """Of pw.x's own free energies; the stress differs by the plane waves that a strain adds or takes."""
    s, h = aluminium, 0.02
    energies = {}
    for sign in (-1, 1):
        moved = STRAINED.copy()
        moved.positions[1] += [sign * h, 0, 0]
        energies["force", sign] = free_energy(tmp_path / f"f{sign}", moved)
        strained = STRAINED.copy()
        strained.set_cell(STRAINED.cell.array @ np.diag([1, 1, 1 + sign * h]), scale_atoms=True)
        energies["stress", sign] = free_energy(tmp_path / f"s{sign}", strained)
    slope = {what: (energies[what, 1] - energies[what, -1]) / (2 * h) for what in ("force", "stress")}
    assert abs(s.forces[1, 0]) > 0.1
    assert s.forces[1, 0] == pytest.approx(-slope["force"], rel=0.02)
    assert abs(s.stress[2]) > 0.01
    assert s.stress[2] == pytest.approx(slope["stress"] / STRAINED.get_volume(), rel=0.25)


@dataclass(frozen=True)
class Case:
    """An insulator of two atoms."""

    lattice: dict
    upf: dict[str, str]
    system: dict
    kpoints: int
    ldos: dict
    floor: float = 3.0
    """meV/atom that the LDOS may miss the free energy by, at these cutoffs."""

    def files(self, folder: Path) -> dict[str, Path]:
        return {
            element: made_by_ld1(folder, element) if name == "ld1" else from_debian(name)
            for element, name in self.upf.items()
        }


SI = {"name": "Si", "structure": "diamond", "a": 5.43}
LIH = {"name": "LiH", "structure": "rocksalt", "a": 4.08}
LDA, US = {"Si": "Si.pz-vbc.UPF"}, {"Si": "Si.pbe-nl-rrkjus_psl.1.0.0.UPF"}
PAIR = {"Li": "ld1", "H": "ld1"}
CASES = {
    "Si": Case(SI, LDA, {"ecutwfc": 8}, 3, {"sigma": 0.1}),
    "Si, Gamma": Case(SI, LDA, {"ecutwfc": 8}, 1, {"sigma": 0.2}),
    "LiH": Case(LIH, PAIR, {"ecutwfc": 16}, 2, {"sigma": 0.2}),
    "LiH, Gamma": Case(LIH, PAIR, {"ecutwfc": 16}, 1, {"sigma": 0.2}),
    "Si, ultrasoft": Case(SI, US, {"ecutwfc": 8, "ecutrho": 40}, 1, {"sigma": 0.4, "method": "cubes"}, 12.0),
}
TRAINING = {
    "output": "model.malax",
    "data": {"training": ["data/a0.h5"], "validation": ["data/a1.h5"], "batch_size": 256},
    "network": {"hidden": [32]},
    "optimizer": {"learning_rate": 5e-3, "average": 0.9},
    "epochs": 24,
    "evaluate_every": 24,
    "threads": 1,
}


def command(*words: object) -> None:
    """A command of malax, in this process."""
    with pytest.raises(SystemExit) as leave:
        cli.main([str(word) for word in words])
    assert not leave.value.code, words


@pytest.mark.parametrize("name", CASES)
def test_insulators_all_the_way(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (*launcher.TASK_COUNTS, *launcher.TASK_MARKS):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    case = CASES[name]
    files, k = case.files(tmp_path), case.kpoints
    group = {"lattice": case.lattice, "rattle": 0.02, "indices": [0, 1], "temperature": 300.0}
    outcomes = generate.run(recipe(tmp_path, files, case.system, {**group, "kpoints": [k] * 3}, **case.ldos))
    assert [o.state for o in outcomes] == ["made"] * 2
    s = Snapshot.load("data/a1.h5")
    run = read_xml(tmp_path / "data/runs/a1/tmp/malax.save/data-file-schema.xml")
    full = round(s.n_electrons / 2)
    own, _, level = from_own_ldos(s)
    assert run.eigenvalues[:, full - 1].max() < level < run.eigenvalues[:, full].min()
    assert abs(per_atom(own.entropy_term, s.atoms)) < 0.2
    assert abs(per_atom(own.total_free - s.energies["total_free"], s.atoms)) < case.floor
    # rocksalt: with equal weights the two sublattices look alike
    weights = {"Li": 0.5, "H": 1.0} if len(files) == 2 else None
    training = {**TRAINING, "descriptor": {"twojmax": 2, "weights": weights}}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(training))
    command("train", "train.yaml")
    ase.io.write("s.xyz", s.atoms, format="extxyz", parallel=False)
    given = [word for element, path in files.items() for word in ("--pseudo", f"{element}={path}")]
    if "ecutrho" in case.system:
        given += ["--ecutwfc", case.system["ecutwfc"]]
    command(
        "predict", "model.malax", "s.xyz", "--qe-save", "qe", "--kpoints", k, k, k, "-o", "out.h5", *given
    )
    result = malax.load("out.h5")
    assert result.density.sum() * result.grid.point_volume == pytest.approx(s.n_electrons, rel=1e-3)
    # a second of training: better than a homogeneous density, in the right places
    error = np.abs(result.density - s.density).mean()
    assert error < 0.7 * np.abs(s.density.mean() - s.density).mean()
    done = subprocess.run(["pw.x", "-in", "nscf.in"], cwd="qe", capture_output=True, text=True)
    assert "JOB DONE" in done.stdout, done.stdout[-1000:]
    after = read_xml(tmp_path / "qe/malax.save/data-file-schema.xml")
    np.testing.assert_allclose(after.eigenvalues[:, :full], run.eigenvalues[:, :full], rtol=0, atol=3.0)
