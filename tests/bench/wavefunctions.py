"""The LDOS from pw.x's wavefunctions: s per run and us per point, over strides.

python tests/bench/wavefunctions.py RUN          the folder of a finished pw.x run
python tests/bench/wavefunctions.py              runs pw.x on 4 Al atoms first
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from ase.build import bulk
from timing import best, table

from malax.io import wavefunctions
from malax.io.espresso import read_xml
from malax.io.harvest import energy_axis, find_run
from malax.io.pw_input import pw_input

UPF = Path(__file__).resolve().parents[2] / "malax" / "data" / "Al.pbe-nc.UPF"


def run_pw(folder: Path) -> None:
    """Four displaced Al atoms, 4^3 k-points."""
    atoms = bulk("Al", "fcc", a=4.05, cubic=True)
    atoms.positions += np.random.default_rng(0).normal(0.0, 0.1, (4, 3))
    shutil.copyfile(UPF, folder / UPF.name)
    system = {"ecutwfc": 20, "nosym": True}
    text = pw_input(
        atoms,
        {"Al": UPF.name},
        temperature=933.0,
        n_bands=12,
        kpoints=(4, 4, 4),
        namelists={"system": system},
    )
    (folder / "pw.in").write_text(text)
    done = subprocess.run(["pw.x", "-in", "pw.in"], cwd=folder, capture_output=True, text=True, check=False)
    if "JOB DONE" not in done.stdout:
        sys.exit(f"pw.x failed: {done.stdout[-500:]}")


def measure(folder: Path, options: argparse.Namespace) -> None:
    place = find_run(folder)
    run = read_xml(place.xml)
    axis = energy_axis(tuple(options.energies))
    rows = []
    for stride in options.stride:
        if any(n % stride for n in run.fft_shape):
            print(f"left out: a stride of {stride} does not divide the grid {run.fft_shape}")
            continue
        grid = wavefunctions.strided_grid(run, stride)

        def ldos() -> None:
            blocks = wavefunctions.ldos_blocks(run, place.save, axis, 0.2, stride=stride)  # noqa: B023
            for _ in blocks:
                pass

        seconds = best(ldos, options.seconds)
        each = 1e6 * seconds / grid.n_points
        rows.append([stride, " x ".join(map(str, grid.shape)), f"{seconds:.2f}", f"{each:.1f}"])
    n_k, n_bands = run.eigenvalues.shape
    print(f"{place.name}: {len(run.atoms)} atoms, {n_k} k-points, {n_bands} bands, {len(axis)} energies")
    table(["stride", "grid", "s", "us/point"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, nargs="?", help="folder of a finished pw.x run")
    parser.add_argument("--stride", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--energies", type=float, nargs=3, default=[-6.0, 12.0, 0.1], metavar=("LOW", "HIGH", "STEP")
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0, help="time spent on each entry")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.run is not None:
        measure(options.run, options)
        return
    if shutil.which("pw.x") is None:
        sys.exit("no pw.x on the PATH: name the folder of a finished run")
    with tempfile.TemporaryDirectory() as name:
        run_pw(Path(name))
        measure(Path(name), options)


if __name__ == "__main__":
    main()
