"""Reading the LDOS cubes of pp.x: MB/s of malax's reader and, for comparison, of ASE's.

python tests/bench/cubes.py --shape 60 60 60 --files 20
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from pathlib import Path

import ase.io
import numpy as np
from ase.build import bulk
from timing import best, table

from malax.grid import Grid
from malax.io.cube import read_cube
from malax.io.cube_series import find_series, open_series
from malax.units import BOHR


def write_series(folder: Path, shape: tuple[int, int, int], n_files: int) -> Grid:
    """Cubes as pp.x writes them: 5 digits, six to a line."""
    atoms = bulk("Al", "fcc", a=4.05, cubic=True)
    rng = np.random.default_rng(0)
    form = "\n".join("%13.5E" * min(6, shape[2] - start) for start in range(0, shape[2], 6))
    for number in range(n_files):
        lines = [" Cubefile created from PWScf calculation"]
        lines.append(f"  Energy ={-6 + 0.1 * number:9.4f} eV, broadening =   0.2000 eV")
        lines.append(f"{len(atoms):5d}    0.000000    0.000000    0.000000")
        for n, vector in zip(shape, atoms.cell.array / BOHR, strict=True):
            lines.append(f"{n:5d}" + "".join(f"{x / n:12.6f}" for x in vector))
        for position in atoms.positions / BOHR:
            lines.append(f"   13   13.000000{position[0]:12.6f}{position[1]:12.6f}{position[2]:12.6f}")
        values = rng.random((shape[0] * shape[1], shape[2]))
        lines += [form % tuple(row) for row in values.tolist()]
        (folder / f"tmp.pp{number + 1:03d}_ldos.cube").write_text("\n".join(lines) + "\n")
    return Grid(atoms.cell.array, shape)


def harvest(paths: list[Path], grid: Grid) -> None:
    """All that a harvest does with cubes but compressing: read, transposed, handed on."""
    for _ in open_series(paths, grid).blocks():
        pass


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", type=int, nargs=3, default=[40, 40, 40])
    parser.add_argument("--files", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=1.0, help="time spent on each entry")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        grid = write_series(folder, tuple(options.shape), options.files)
        paths = find_series(folder)
        size = paths[0].stat().st_size / 1e6
        rows = []
        for what, call, n in (
            ("one cube, malax", lambda: read_cube(paths[0]), 1),
            ("one cube, ASE", lambda: ase.io.read(paths[0], read_data=True, full_output=True), 1),
            ("whole series, malax", lambda: harvest(paths, grid), len(paths)),
        ):
            seconds = best(call, options.seconds)
            rows.append([what, f"{1e3 * seconds:.1f}", f"{n * size / seconds:.0f}"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(f"peak memory {peak:.0f} MB; LDOS {4e-6 * grid.n_points * options.files:.0f} MB")
    print(f"{options.files} cubes of {' x '.join(map(str, options.shape))} points, {size:.1f} MB each")
    table(["", "ms", "MB/s"], rows)


if __name__ == "__main__":
    main()
