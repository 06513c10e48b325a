"""Snapshots from real runs of Quantum ESPRESSO on one or two atoms: seconds of pw.x and pp.x."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from malax import config as yaml_config
from malax import generate
from malax.errors import InputError
from malax.generate import GenerateConfig, from_run
from malax.io import espresso, wavefunctions
from malax.io.pw_input import pp_input, pw_input

UPF = Path(__file__).resolve().parents[2] / "malax" / "data" / "Al.pbe-nc.UPF"
ENERGIES = (-10.0, 20.0, 0.5)
SIGMA = 0.5

pytestmark = pytest.mark.skipif(
    shutil.which("pw.x") is None or shutil.which("pp.x") is None,
    reason="no pw.x and pp.x on the PATH (apt-get install quantum-espresso)",
)


def call(folder: Path, program: str, text: str) -> str:
    (folder / f"{program}.in").write_text(text)
    done = subprocess.run(
        [program, "-in", f"{program}.in"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert "JOB DONE" in done.stdout, done.stdout[-2000:]
    return done.stdout


def pw(folder: Path, atoms: Atoms, kpoints: tuple[int, int, int], fft_shape=None) -> str:
    folder.mkdir(exist_ok=True)
    shutil.copyfile(UPF, folder / UPF.name)
    text = pw_input(
        atoms,
        {"Al": UPF.name},
        temperature=3000.0,
        n_bands=8 * len(atoms),
        kpoints=kpoints,
        fft_shape=fft_shape,
        namelists={"system": {"ecutwfc": 10}, "electrons": {"conv_thr": 1e-11}},
    )
    return call(folder, "pw.x", text)


@pytest.fixture(scope="module")
def diamond(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two atoms with 48 symmetries, half of them with translations: 4 of 27 k-points remain."""
    folder = tmp_path_factory.mktemp("qe") / "diamond"
    pw(folder, bulk("Al", "diamond", a=5.8), (3, 3, 3))
    return folder


def test_xml_terms_add_up_and_agree_with_the_text(diamond: Path) -> None:
    run = espresso.read_xml(diamond / "tmp/malax.save/data-file-schema.xml")
    number, band, entropy = run.band_terms()
    assert len(run.symmetries[0]) == 48 and len(run.weights) < 27
    assert number == pytest.approx(6.0, abs=1e-8)
    assert entropy == pytest.approx(run.energies["entropy_term"], abs=1e-8)
    assert band == pytest.approx(run.energies["band"], abs=1e-8)
    e = run.energies
    total = band - e["hartree"] + e["xc"] - e["vxc_rho"] + e["ewald"] + entropy
    assert total == pytest.approx(e["total_free"], abs=1e-5)
    assert run.temperature == pytest.approx(3000.0, rel=1e-6)
    density = espresso.read_charge_density(diamond / "tmp/malax.save", run.grid)
    assert density.sum() * run.grid.point_volume == pytest.approx(6.0, abs=1e-8)


def test_ldos_of_symmetry_reduced_kpoints_equals_pp(diamond: Path, tmp_path: Path) -> None:
    """pp.x symmetrises the LDOS; so must we. Its kernel is that of the smearing: recognised."""
    ours = from_run(diamond, tmp_path / "w.h5", ldos="wavefunctions", sigma=SIGMA, energies=ENERGIES)
    folder = tmp_path / "pp"
    shutil.copytree(diamond, folder)
    axis = np.arange(ENERGIES[0], ENERGIES[1] + 1e-6, ENERGIES[2])
    call(folder, "pp.x", pp_input(axis, SIGMA))
    cubes = from_run(folder, tmp_path / "c.h5", energies=ENERGIES, keep_bits=None)
    assert ours.kernel == "gaussian" and cubes.kernel == "fermi-dirac" and cubes.sigma == SIGMA
    run = espresso.read_xml(diamond / "tmp/malax.save/data-file-schema.xml")
    blocks = wavefunctions.ldos_blocks(
        run, run.path.parent, cubes.energy_grid, SIGMA, kernel="fermi-dirac", density=cubes.density
    )
    same = np.concatenate(list(blocks)).reshape(-1, len(axis))
    theirs = cubes.read_ldos()
    # the cubes have 5 digits
    np.testing.assert_allclose(same, theirs, rtol=1.2e-4, atol=1e-8)


@pytest.mark.parametrize("hand", [1, -1])
def test_low_symmetry_and_generated_runs_equal_pp(tmp_path: Path, hand: int) -> None:
    """The whole way of `malax generate`, by wavefunctions and by cubes, in a sheared cell of either hand."""
    atoms = bulk("Al", a=4.05)
    atoms.set_cell(atoms.cell.array[::hand] @ np.diag([1.0, 1.02, 0.97]), scale_atoms=True)
    atoms.write(tmp_path / "al.xyz", format="extxyz")
    made = {}
    for method in ("wavefunctions", "cubes"):
        tree = {
            "out": method,
            "seed": 1,
            "pseudopotentials": {"Al": str(UPF)},
            "qe": {"system": {"ecutwfc": 10, "nosym": True}, "electrons": {"conv_thr": 1e-10}},
            "ldos": {"sigma": SIGMA, "energies": list(ENERGIES), "method": method, "keep_bits": None},
            "groups": {"f": {"files": ["al.xyz"], "temperature": 3000.0, "kpoints": [2, 2, 2], "n_bands": 8}},
        }
        config = yaml_config.validate(tree, GenerateConfig, folder=tmp_path)
        assert [o.state for o in generate.run(config)] == ["made"]
        made[method] = generate.Snapshot.load(tmp_path / method / "f0.h5")
    a, b = made["wavefunctions"], made["cubes"]
    assert a.kernel == b.kernel == "gaussian" and a.energies == b.energies
    np.testing.assert_allclose(a.atoms.positions, atoms.positions, atol=1e-9)
    np.testing.assert_allclose(a.read_ldos(), b.read_ldos(), rtol=1.2e-4, atol=1e-8)
    np.testing.assert_array_equal(a.density, b.density)


def test_gamma_only(tmp_path: Path) -> None:
    """With K_POINTS gamma, QE stores half of the waves; the density check inside from_run holds for them."""
    pw(tmp_path / "gamma", bulk("Al", a=4.05, cubic=True), (1, 1, 1), fft_shape=(18, 18, 18))
    s = from_run(tmp_path / "gamma", tmp_path / "a.h5", sigma=SIGMA, energies=ENERGIES)
    run = espresso.read_xml(tmp_path / "gamma/tmp/malax.save/data-file-schema.xml")
    assert run.gamma_only and len(run.weights) == 1
    reference = run.density_of_states(s.energy_grid, "gaussian", SIGMA)
    np.testing.assert_allclose(s.dos, reference, atol=1e-4 * reference.max())
    # at the points of a strided grid the values are those of the whole grid
    strided = from_run(tmp_path / "gamma", tmp_path / "b.h5", sigma=SIGMA, energies=ENERGIES, stride=3)
    whole = s.read_ldos().reshape(*s.ldos_shape, -1)[::3, ::3, ::3]
    np.testing.assert_allclose(
        strided.read_ldos().reshape(whole.shape), whole, rtol=2e-4, atol=1e-6 * whole.max()
    )


def test_qe_own_error_line(tmp_path: Path) -> None:
    tree = {
        "out": "out",
        "seed": 1,
        "pseudopotentials": {"Al": str(UPF)},
        "qe": {"system": {"ecutwfc": 10}},
        "ldos": {"sigma": SIGMA, "energies": list(ENERGIES)},
        "groups": {
            "a": {
                "lattice": {"name": "Al", "a": 4.05},
                "indices": [0],
                "temperature": 3000.0,
                "kpoints": [2, 2, 2],
                "n_bands": 1,
            }
        },
    }
    with pytest.raises(InputError, match=r"a0: pw.x failed in .*Error in routine setup \(1\): too few bands"):
        generate.run(yaml_config.validate(tree, GenerateConfig, folder=tmp_path))
    assert not list((tmp_path / "out").glob("*.h5"))
