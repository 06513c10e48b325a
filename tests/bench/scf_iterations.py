"""SCF iterations of pw.x on snapshots: from superposed atoms, from the emulated density, from DFT's own.

    python tests/bench/scf_iterations.py MODEL SNAPSHOT.h5... --upf Al.pbe-nc.UPF --kpoints 14 14 14

DFT's own density is that of the snapshot if its k-points are the ones asked for, else that of the run from
atoms. It is the floor: the saving that is possible is the difference between atoms and it.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

import malax
from malax.interfaces.quantum_espresso import SaveOptions, save_folder
from malax.io.charge_density import plane_waves, sphere_of_waves, write_charge_density
from malax.io.espresso import read_charge_density, read_xml
from malax.units import RYDBERG

THRESHOLDS = (1e-6, 1e-8, 1e-10)
"""conv_thr in Ry for which iterations are counted (1e-6 is pw.x's default)."""


def scf(folder: Path, text: str) -> tuple[np.ndarray, float]:
    """Iterations until each of `THRESHOLDS`, and the total energy (Ry), of pw.x in a folder."""
    (folder / "scf.in").write_text(text)
    done = subprocess.run(["pw.x", "-in", "scf.in"], cwd=folder, capture_output=True, text=True)
    if "convergence has been achieved" not in done.stdout:
        raise SystemExit(f"pw.x failed in {folder}:\n{done.stdout[-800:]}")
    energy = re.findall(r"^!\s+total energy\s+=\s+(\S+) Ry", done.stdout, re.MULTILINE)[-1]
    found = re.findall(r"estimated scf accuracy\s+<\s+(\S+) Ry", done.stdout)
    accuracy = np.array([float(a.replace("D", "E")) for a in found])
    return np.array([1 + int(np.argmax(accuracy < t)) for t in THRESHOLDS]), float(energy)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("snapshots", nargs="+", type=Path)
    parser.add_argument("--upf", type=Path, required=True)
    parser.add_argument("--kpoints", type=int, nargs=3, default=(6, 6, 6))
    options = parser.parse_args()
    emulator = malax.Emulator.load(options.model)
    totals = np.zeros((3, len(THRESHOLDS)), dtype=int)
    print(f"iterations until {', '.join(f'{t:g}' for t in THRESHOLDS)} Ry")
    print(
        f"{'snapshot':10s}" + "".join(f"{name:>14s}" for name in ("atoms", "emulated", "DFT")) + "  meV/atom"
    )
    for path in options.snapshots:
        snapshot = malax.load(path)
        with tempfile.TemporaryDirectory() as name:
            found = three_runs(emulator, snapshot, Path(name), options)
        spread = 1e3 * RYDBERG * np.ptp([energy for _, energy in found]) / len(snapshot.atoms)
        counts = np.array([count for count, _ in found])
        totals += counts
        print(f"{snapshot.name:10s}{columns(counts)}  {spread:.1e}", flush=True)
    saved = 100 * (totals[0] - totals[1]) / (totals[0] - totals[2])
    print(f"{'sum':10s}{columns(totals)}")
    print(
        "of the possible saving: "
        + ", ".join(f"{s:.0f} % at {t:g} Ry" for s, t in zip(saved, THRESHOLDS, strict=True))
    )


def columns(counts: np.ndarray) -> str:
    return "".join(f"{' '.join(map(str, row)):>14s}" for row in counts)


def three_runs(emulator, snapshot, folder: Path, options) -> list[tuple[np.ndarray, float]]:
    """From atoms, from the emulated density, from DFT's."""
    result = emulator.predict(snapshot.atoms, snapshot.temperature)
    save = SaveOptions({"Al": options.upf}, kpoints=tuple(options.kpoints))
    save_folder(result, emulator, folder, save)
    text = (folder / "scf.in").read_text().replace(" tstress = .true.\n tprnfor = .true.\n", "")
    text = re.sub(r"conv_thr = \S+", f"conv_thr = {min(THRESHOLDS):g}", text)
    emulated = scf(folder, text)
    shutil.rmtree(folder / "scf")
    atoms = scf(folder, text.replace(" startingpot = 'file'\n", ""))
    run = read_xml(folder / "scf" / "malax.save" / "data-file-schema.xml")
    density = read_charge_density(folder / "scf" / "malax.save", run.grid)
    if tuple(snapshot.provenance.get("kpoints", ())[:3]) == tuple(options.kpoints):
        density = snapshot.density
    shutil.rmtree(folder / "scf")
    (folder / "scf" / "malax.save").mkdir(parents=True)
    miller = sphere_of_waves(run.atoms.cell.array, run.ecutrho)
    target = folder / "scf" / "malax.save" / "charge-density.dat"
    write_charge_density(target, run.atoms.cell.array, miller, plane_waves(density, miller))
    return [atoms, emulated, scf(folder, text)]


if __name__ == "__main__":
    main()
