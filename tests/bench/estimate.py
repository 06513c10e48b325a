"""The estimate beside the run: peak memory per rank, time, size of the output, of displaced fcc Al.

    python tests/bench/estimate.py [--runs 256:1 1024:2 512:1:ldos] [--points 16] [--model MODEL]

A run is ATOMS:RANKS[:ldos]; ``--points`` are grid points per cube of 4 atoms and axis. Each is done with
``malax predict --dry-run`` first and then in earnest, one thread per rank. ``time`` is what the run itself
reports (``timings``), ``together`` the whole command, ``cpu`` its processor time per rank (beside the
estimate without writing: of use on a busy machine); the ratio is estimate / measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ase.io
import numpy as np
from ase.build import bulk
from timing import table

import malax
from malax import shipped

CELLS = {256: (4, 4, 4), 512: (8, 4, 4), 1024: (8, 8, 4), 2048: (8, 8, 8), 4096: (16, 8, 8)}


def command(folder: Path, line: list[str], ranks: int) -> tuple[dict, float, float, float]:
    """The JSON of a command, its seconds, those of the processors per rank, and the largest resident memory
    of its processes in bytes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(malax.__file__).parents[1])}
    launcher = [str(Path(sys.executable).with_name("mpiexec")), "-n", str(ranks)] if ranks > 1 else []
    start = time.perf_counter()
    with open(folder / "out.json", "w") as out:
        process = subprocess.Popen(
            [*launcher, sys.executable, "-m", "malax.cli", *line], stdout=out, cwd=folder, env=environment
        )
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(line)} failed")
    seconds, cpu = time.perf_counter() - start, (usage.ru_utime + usage.ru_stime) / ranks
    return json.loads((folder / "out.json").read_text()), seconds, cpu, 1024 * usage.ru_maxrss


def compare(folder: Path, text: str, points: int, model: Path) -> list[list[str]]:
    atoms_text, ranks_text, *rest = text.split(":")
    n, ranks = int(atoms_text), int(ranks_text)
    atoms = bulk("Al", "fcc", a=4.05, cubic=True).repeat(CELLS[n])
    atoms.positions += np.random.default_rng(0).normal(0.0, 0.1, atoms.positions.shape)
    ase.io.write(folder / "al.xyz", atoms, format="extxyz", parallel=False)
    output = folder / "out.h5"
    line = ["predict", str(model), "al.xyz", "--temperature", "298", "-o", str(output), "--json"]
    line += ["--grid", *(str(points * c) for c in CELLS[n]), *(["--ldos"] if "ldos" in rest else [])]
    said, *_ = command(folder, [*line, "--dry-run"], ranks)
    assert not output.exists()
    found, seconds, cpu, peak = command(folder, line, ranks)
    pairs = {
        "memory, MB": (said["peak_bytes"] / 1e6, peak / 1e6),
        "time, s": (said["seconds"]["total"], found["timings"]["total"]),
        "together, s": (said["total_seconds"], seconds),
        "cpu, s": (said["start_seconds"] + said["seconds"]["total"], cpu),
        "output, MB": (said["output_bytes"] / 1e6, output.stat().st_size / 1e6),
    }
    stages = {"first pass", "descriptors", "network", "domain", "energies"}
    pairs |= {
        f"  {name}, s": (said["seconds"][name], found["timings"][name])
        for name in sorted(stages & set(said["seconds"]))
    }
    output.unlink()
    return [[text, name, f"{a:.2f}", f"{b:.2f}", f"{a / b:.2f}"] for name, (a, b) in pairs.items()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", nargs="+", default=["256:1", "1024:2", "512:1:ldos"])
    parser.add_argument("--points", type=int, default=16)
    parser.add_argument("--model", type=Path, default=shipped.model())
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for text in options.runs:
            rows += compare(Path(folder), text, options.points, options.model.resolve())
    print(f"load of the machine: {os.getloadavg()[0]:.1f}")
    table(["run", "what", "estimate", "measured", "ratio"], rows)


if __name__ == "__main__":
    main()
