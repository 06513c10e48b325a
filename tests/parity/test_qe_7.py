"""QE 7.2 itself, from the wheel of qepy (``pip install --pre qepy``): its XML, its pp.x, and the way back.

MALAX_QEPY names a Python that has qepy, if this one has not.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk

from malax import config as yaml_config
from malax import generate, shipped
from malax.emulator import Emulator
from malax.generate import GenerateConfig
from malax.interfaces import quantum_espresso as qe
from malax.io.espresso import read_xml
from malax.io.snapshot import Snapshot

PYTHON = os.environ.get("MALAX_QEPY") or (sys.executable if importlib.util.find_spec("qepy") else None)

pytestmark = pytest.mark.skipif(
    PYTHON is None, reason="no qepy, whose wheel has the programs of QE 7.2 (pip install --pre qepy)"
)


def program(name: str) -> str:
    return f"{PYTHON} -m qepy --{name} -in {{input}}"


def run(folder: Path, name: str) -> str:
    words = program("pw.x").replace("{input}", f"{name}.in").split()
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert "JOB DONE" in done.stdout, done.stdout[-1000:]
    return done.stdout


def test_snapshots_by_wavefunctions_and_by_cubes(tmp_path: Path) -> None:
    """pp.x is told use_gauss_ldos; the XML, the density and the wavefunctions are those of 7.2."""
    made = {}
    lattice = {"name": "Al", "a": 4.05}
    group = {"lattice": lattice, "strain": 0.02, "indices": [1], "temperature": 3000.0, "kpoints": [2, 2, 2]}
    for method in ("wavefunctions", "cubes"):
        tree = {
            "out": method,
            "seed": 1,
            "pseudopotentials": {"Al": str(Path(shipped.model()).with_name("Al.pbe-nc.UPF"))},
            "qe": {
                "pw_command": program("pw.x"),
                "pp_command": program("pp.x"),
                "system": {"ecutwfc": 10},
                "electrons": {"conv_thr": 1e-10},
            },
            "ldos": {"sigma": 0.6, "method": method, "keep_bits": None},
            "groups": {"a": group},
        }
        (outcome,) = generate.run(yaml_config.validate(tree, GenerateConfig, folder=tmp_path))
        assert outcome.state == "made"
        made[method] = Snapshot.load(tmp_path / method / "a1.h5")
    a, b = made["wavefunctions"], made["cubes"]
    assert a.provenance["code"] == "Quantum ESPRESSO 7.2"
    assert "use_gauss_ldos = .true." in (tmp_path / "cubes/runs/a1/pp_ldos.in").read_text()
    assert a.kernel == b.kernel == "gaussian" and a.energies == b.energies
    np.testing.assert_allclose(a.read_ldos(), b.read_ldos(), rtol=1.2e-4, atol=1e-8)
    assert a.density.sum() * a.density_grid.point_volume == pytest.approx(3.0, abs=1e-8)


def test_pw_goes_on_from_the_emulated_density(tmp_path: Path) -> None:
    emulator = Emulator.load(shipped.model())
    atoms = bulk("Al", "fcc", a=4.05) * (2, 1, 1)
    atoms.positions[1] += [0.12, -0.05, 0.08]
    result = emulator.predict(atoms, temperature=933.0)
    qe.save_folder(result, emulator, tmp_path, qe.SaveOptions({}, kpoints=(2, 3, 3)))
    run(tmp_path, "nscf")
    after = read_xml(tmp_path / "malax.save/data-file-schema.xml")
    emulated = iterations(run(tmp_path, "scf"))
    scf = read_xml(tmp_path / "scf/malax.save/data-file-schema.xml")
    assert after.fermi_level == pytest.approx(scf.fermi_level, abs=0.05)
    shutil.rmtree(tmp_path / "scf")
    text = (tmp_path / "scf.in").read_text().replace(" startingpot = 'file'\n", "")
    (tmp_path / "scf.in").write_text(text)
    assert emulated <= iterations(run(tmp_path, "scf"))


def iterations(output: str) -> int:
    found = re.search(r"achieved in\s+(\d+) iterations", output)
    assert found is not None
    return int(found[1])
