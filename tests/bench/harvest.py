"""From LDOS cubes of pp.x to a snapshot file, all of it: seconds, MB/s and peak memory.

    python tests/bench/harvest.py --shape 60 60 60 --files 1000

The run is the made-up one of tests/qe_files.py, so that DOS, density and energies fit together.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from qe_files import BOHR, HARTREE, Toy, gaussian, toy, write_run

from malax.generate import from_run

SIGMA = 0.2


def write_cubes(folder: Path, t: Toy, energies: np.ndarray) -> int:
    """As pp.x writes them: 5 digits, six to a line; returns the bytes."""
    squares = [w * np.abs(t.orbitals(k)) ** 2 for k, w in enumerate(t.weights)]
    squares = np.concatenate(squares).reshape(-1, np.prod(t.shape)) * (HARTREE / 2) * BOHR**3
    levels, nz, size = t.eigenvalues.reshape(-1), t.shape[2], 0
    form = "\n".join("%13.5E" * min(6, nz - start) for start in range(0, nz, 6)) + "\n"
    whole = form * (t.shape[0] * t.shape[1])
    head = [f"{len(t.atoms):5d}    0.000000    0.000000    0.000000"]
    for n, vector in zip(t.shape, t.atoms.cell.array / BOHR, strict=True):
        head.append(f"{n:5d}" + "".join(f"{x / n:12.6f}" for x in vector))
    for position in t.atoms.positions / BOHR:
        head.append("   13   13.000000" + "".join(f"{x:12.6f}" for x in position))
    for number, energy in enumerate(energies):
        values = gaussian(SIGMA)(energy - levels) @ squares
        first = " Cubefile created from PWScf calculation\n"
        first += f"  Energy ={energy:9.4f} eV, broadening ={SIGMA:9.4f} eV\n"
        path = folder / f"tmp.pp{number + 1:03d}_ldos.cube"
        path.write_text(first + "\n".join(head) + "\n" + whole % tuple(values.tolist()))
        size += path.stat().st_size
    return size


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", type=int, nargs=3, default=[24, 24, 24])
    parser.add_argument("--files", type=int, default=100)
    parser.add_argument("--run", type=Path, help="harvest this folder (used by itself, for its peak memory)")
    options = parser.parse_args()
    if options.run is not None:
        begin = time.perf_counter()
        snapshot = from_run(options.run, options.run / "s.h5")
        seconds = time.perf_counter() - begin
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        megabytes = sum(p.stat().st_size for p in options.run.glob("*.cube")) / 1e6
        print(f"{seconds:.1f} s, {megabytes / seconds:.0f} MB/s; peak memory {peak:.0f} MB")
        print(f"snapshot {snapshot.path.stat().st_size / 1e6:.0f} MB, kernel {snapshot.kernel}")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        t = toy(shape=tuple(options.shape))
        write_run(folder, t)
        low, high = t.eigenvalues.min() - 1.0, t.eigenvalues.max() + 1.0
        step = np.round((high - low) / (options.files - 1), 3)
        size = write_cubes(folder, t, np.round(low, 2) + step * np.arange(options.files))
        print(f"{options.files} cubes of {' x '.join(map(str, options.shape))} points, {size / 1e6:.0f} MB")
        subprocess.run([sys.executable, __file__, "--run", str(folder)], check=True)


if __name__ == "__main__":
    main()
