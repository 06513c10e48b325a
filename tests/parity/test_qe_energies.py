"""Energies against Quantum ESPRESSO: the shared Al snapshots, and small runs of pw.x made here.

The small runs cover what the snapshots do not: several species, a triclinic cell, ultrasoft pseudopotentials,
elements without core charge, densities that are negative here and there (PBESOL, PZ), and the other
functionals. They are not converged and need not be.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest
from ase import Atoms

from malax.energies import total_free_energy
from malax.io.charge_density import read_charge_density
from malax.io.espresso import read_xml
from malax.units import RYDBERG

SNAPSHOTS = [f"d{i:02d}" for i in range(11)] + [f"h{i:02d}" for i in range(6)]
SNAPSHOTS += ["s00", "s01", "s05", "t00", "t01", "t02", "t03"]

# meV/atom. QE's own Ewald sum ends at 1e-7 Ry, its printed total has the error of its self-consistency.
TOLERANCES = {"hartree": 1e-7, "xc": 1e-7, "vxc_rho": 1e-7, "ewald": 2e-4, "total_free": 0.0065}

DEBIAN = Path("/usr/share/espresso/pseudo")

RUNS = {
    # functional: pseudopotential files, ecutwfc, ecutrho (Ry)
    "PBE": (["Li.pbe-nc.UPF", "Be.pbe-nc.UPF", "H.pbe-nc.UPF"], 12, 48),
    "PBESOL": (["Li.pbesol-s-rrkjus_psl.0.2.1.UPF", "O.pbesol-n-rrkjus_psl.0.1.UPF"], 15, 120),
    "PZ": (["Mg.pz-n-vbc.UPF", "O.pz-rrkjus.UPF"], 12, 96),
}


def snapshot(folder: Path) -> tuple[dict, Atoms, np.ndarray]:
    info = json.loads((folder / "info.json").read_text())
    atoms = Atoms(info["species"], positions=info["positions_A"], cell=info["cell_A"], pbc=True)
    with h5py.File(folder / "density.h5") as file:
        return info, atoms, file["density"][()]


def deviations(energies, reference: dict, n_atoms: int) -> dict[str, float]:
    return {key: abs(getattr(energies, key) - reference[key]) / n_atoms * 1e3 for key in TOLERANCES}


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_al_snapshot(shared_al, name):
    info, atoms, density = snapshot(shared_al / name)
    reference = info["energies_eV"]
    energies = total_free_energy(
        atoms,
        density,
        reference["band"],
        reference["minus_TS"],
        {"Al": shared_al / "Al.pbe-nc.UPF"},
        "PBE",
        info["ecutrho_Ry"] * RYDBERG,
    )
    found = deviations(energies, reference, len(atoms))
    assert all(found[key] < TOLERANCES[key] for key in TOLERANCES), found


def test_density_on_half_the_points(shared_al):
    """With the run's ecutrho a density on a coarser grid gives the same energy: it is interpolated."""
    info, atoms, density = snapshot(shared_al / "t02")
    reference = info["energies_eV"]
    arguments = (reference["band"], reference["minus_TS"], {"Al": shared_al / "Al.pbe-nc.UPF"}, "PBE")
    coarse = density[::2, ::2, ::2].copy()
    refined = total_free_energy(atoms, coarse, *arguments, ecutrho=info["ecutrho_Ry"] * RYDBERG)
    as_it_is = total_free_energy(atoms, coarse, *arguments)
    assert abs(refined.total_free - reference["total_free"]) / len(atoms) * 1e3 < 0.03
    # without it the core charge loses its short waves
    assert abs(as_it_is.total_free - reference["total_free"]) / len(atoms) * 1e3 > 0.3


@pytest.mark.parametrize("functional", RUNS)
def test_small_run(tmp_path, shared_al, functional):
    if shutil.which("pw.x") is None:
        pytest.skip("no pw.x (apt-get install quantum-espresso)")
    files, ecutwfc, ecutrho = RUNS[functional]
    found = [f / n for n in files for f in (DEBIAN, shared_al.parent / "pseudo") if (f / n).is_file()]
    if len(found) < len(files):
        pytest.skip(f"not all of {files} are here (apt-get install quantum-espresso-data)")
    run_pw(tmp_path, found, ecutwfc, ecutrho)
    run = read_xml(tmp_path / "x.save" / "data-file-schema.xml")
    density = read_charge_density(tmp_path / "x.save", run.grid)
    reference = run.energies
    energies = total_free_energy(
        run.atoms,
        density,
        reference["band"],
        reference["entropy_term"],
        {path.name.split(".")[0]: path for path in found},
        functional,
        ecutrho * RYDBERG,
    )
    missed = deviations(energies, reference, len(run.atoms))
    assert all(missed[key] < TOLERANCES[key] for key in TOLERANCES), missed


def run_pw(folder: Path, pseudopotentials: list[Path], ecutwfc: float, ecutrho: float) -> None:
    """A disordered triclinic cell with one atom of each species, at the Gamma point."""
    rng = np.random.default_rng(7)
    n = len(pseudopotentials)
    cell = np.array([[3.1, 0.0, 0.0], [0.7, 2.9, 0.0], [-0.4, 0.6, 3.3]]) * (n / 2) ** (1 / 3)
    scaled = (np.arange(n) / n)[:, None] + rng.normal(0.0, 0.05, (n, 3))
    symbols = [path.name.split(".")[0] for path in pseudopotentials]
    species = "\n".join(f"{s} 1.0 {p.name}" for s, p in zip(symbols, pseudopotentials, strict=True))
    atoms = "\n".join(f"{s} {x[0]} {x[1]} {x[2]}" for s, x in zip(symbols, scaled, strict=True))
    for path in pseudopotentials:
        shutil.copy(path, folder)
    vectors = "\n".join(" ".join(map(str, row)) for row in cell)
    (folder / "pw.in").write_text(
        f"""&control
 prefix='x', outdir='.', pseudo_dir='.'
/
&system
 ibrav=0, nat={n}, ntyp={n}, ecutwfc={ecutwfc}, ecutrho={ecutrho}, nosym=.true.,
 occupations='smearing', smearing='fermi-dirac', degauss=0.02
/
&electrons
 conv_thr=1e-14, mixing_beta=0.5
/
ATOMIC_SPECIES
{species}
K_POINTS automatic
1 1 1 1 1 1
CELL_PARAMETERS angstrom
{vectors}
ATOMIC_POSITIONS crystal
{atoms}
"""
    )
    subprocess.run(["pw.x", "-in", "pw.in"], cwd=folder, check=True, capture_output=True, timeout=200)
