"""Out to Quantum ESPRESSO and back: pw.x goes on from what malax wrote."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk

from malax import shipped
from malax.emulator import Emulator
from malax.interfaces import quantum_espresso as qe
from malax.io.charge_density import plane_waves, read_charge_density, sphere_of_waves
from malax.io.espresso import read_xml
from malax.io.fortran import FortranFile
from malax.io.mala_info import read_info

pytestmark = pytest.mark.skipif(
    shutil.which("pw.x") is None, reason="no pw.x on the PATH (apt-get install quantum-espresso)"
)


def pw(folder: Path, name: str) -> str:
    done = subprocess.run(
        ["pw.x", "-in", f"{name}.in"], cwd=folder, capture_output=True, text=True, env={**_ENVIRONMENT}
    )
    assert "JOB DONE" in done.stdout, done.stdout[-1500:]
    return done.stdout


_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}


def iterations(output: str) -> int:
    return int(re.search(r"achieved in\s+(\d+) iterations", output)[1])


@pytest.fixture(scope="module", params=["k-points", "gamma"])
def case(request, tmp_path_factory):
    """Two displaced atoms: the prediction, pw.x's own scf from atoms, and the folders of both."""
    emulator = Emulator.load(shipped.model())
    atoms = bulk("Al", "fcc", a=4.05) * (2, 1, 1)
    atoms.positions[1] += [0.12, -0.05, 0.08]
    atoms.set_cell(
        atoms.cell.array @ (np.eye(3) + [[0, 0.02, 0], [0, 0, 0.01], [0.015, 0, 0]]), scale_atoms=True
    )
    result = emulator.predict(atoms, temperature=933.0)
    mesh = (1, 1, 1) if request.param == "gamma" else (2, 3, 3)
    options = qe.SaveOptions({}, kpoints=mesh)
    own = tmp_path_factory.mktemp("own")
    qe.save_folder(result, emulator, own, options)
    (own / "scf.in").write_text((own / "scf.in").read_text().replace(" startingpot = 'file'\n", ""))
    shutil.rmtree(own / "scf")
    text = pw(own, "scf")
    (own / "scf.out").write_text(text)
    run = read_xml(own / "scf/malax.save/data-file-schema.xml")
    return emulator, result, options, run, own, iterations(text)


def test_order_and_values_of_pw(case):
    """Its file, record by record."""
    *_, run, own, _ = case
    with FortranFile(own / "scf/malax.save/charge-density.dat") as file:
        gamma_only, count, n_spin = file.read("i4")
        file.skip()
        miller, values = file.read("i4").reshape(-1, 3), file.read("c16")
    found = sphere_of_waves(run.atoms.cell.array, run.ecutrho, bool(gamma_only))
    assert n_spin == 1 and bool(gamma_only) == run.gamma_only and len(found) == count
    np.testing.assert_array_equal(found, miller)
    density = read_charge_density(own / "scf/malax.save", run.grid)
    assert np.abs(plane_waves(density, miller) * 0.529177210903**3 - values).max() < 1e-15


def test_pw_goes_on_from_its_own_density(case, tmp_path):
    """DFT's density written by malax is DFT's density to pw.x: eigenvalues, Fermi level, few iterations."""
    emulator, result, options, run, own, from_atoms = case
    density = read_charge_density(own / "scf/malax.save", run.grid)
    back = dataclasses.replace(result, density=density, grid=run.grid, fermi_level=run.fermi_level)
    qe.save_folder(back, emulator, tmp_path, options)
    text = pw(tmp_path, "scf")
    assert iterations(text) <= from_atoms // 2
    assert float(re.search(r"!\s+total energy\s+=\s+(\S+)", text)[1]) * 13.605693122994 == pytest.approx(
        run.energies["total_free"], abs=1e-6
    )
    said = pw(tmp_path, "nscf")
    (compare,) = re.findall(r"compare with:\s+(\S+) eV", said)
    assert float(compare) == pytest.approx(run.fermi_level, abs=1e-4)
    after = read_xml(tmp_path / "malax.save/data-file-schema.xml")
    # the highest bands are not converged by an iterative diagonalisation
    low = run.eigenvalues < run.fermi_level + 1.0
    n_bands = min(after.eigenvalues.shape[1], run.eigenvalues.shape[1])
    low = low[:, :n_bands]
    np.testing.assert_allclose(
        after.eigenvalues[:, :n_bands][low], run.eigenvalues[:, :n_bands][low], rtol=0, atol=1e-4
    )
    if not run.gamma_only:
        assert after.fermi_level == pytest.approx(run.fermi_level, abs=1e-4)


def test_pw_goes_on_from_the_emulated_density(case, tmp_path, monkeypatch):
    monkeypatch.setattr(qe, "PATH_DENSITY", 2.0)
    emulator, result, options, run, _, from_atoms = case
    qe.save_folder(result, emulator, tmp_path, options)
    text = pw(tmp_path, "scf")
    assert iterations(text) <= from_atoms
    assert float(re.search(r"!\s+total energy\s+=\s+(\S+)", text)[1]) * 13.605693122994 == pytest.approx(
        run.energies["total_free"], abs=1e-6
    )
    starting = re.search(r"starting charge\s+(\S+?),", text)
    assert starting is None or float(starting[1]) == pytest.approx(6.0, abs=1e-4)
    pw(tmp_path, "nscf")
    after = read_xml(tmp_path / "malax.save/data-file-schema.xml")
    # the model has learned dense k-points: the density of Gamma alone is another one
    assert after.fermi_level == pytest.approx(run.fermi_level, abs=1.0 if run.gamma_only else 0.05)
    # the band structure of the emulated density along the path, on top of what nscf has left
    pw(tmp_path, "bands")
    bands = read_xml(tmp_path / "malax.save/data-file-schema.xml")
    assert len(bands.eigenvalues) == len(qe.band_path(result.atoms).kpts)


def test_output_of_pw_as_mala_reads_it(case):
    *_, run, own, _ = case
    info = read_info(own / "scf.out")
    assert info.grid == run.fft_shape and info.n_electrons == run.n_electrons
    assert info.temperature == pytest.approx(run.temperature, rel=2e-2)  # the width has 4 decimals
    assert info.fermi_level == pytest.approx(run.fermi_level, abs=1e-4)
    assert info.ecutrho == pytest.approx(run.ecutrho)
    for term in ("total_free", "hartree", "xc", "ewald", "entropy_term"):
        assert info.energies[term] == pytest.approx(run.energies[term], abs=1e-6), term
    np.testing.assert_allclose(info.atoms.cell.array, run.atoms.cell.array, atol=1e-5)
