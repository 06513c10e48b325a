"""Does the free energy know where the grid lies? Its change under rigid shifts, rotations and other grids.

    python tests/bench/invariance.py [MODEL [STRUCTURE]]

By default the shipped model on the structure of the shipped snapshot. A rotation turns atoms and cell.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from timing import table

from malax import Emulator, Grid, Snapshot, shipped
from malax.emulator import ModelDomainWarning


def shifted(atoms: Atoms, grid: Grid, fractions: np.ndarray) -> Atoms:
    """The structure moved by fractions (3,) of the grid's steps."""
    moved = atoms.copy()
    moved.positions += (fractions / np.array(grid.shape)) @ grid.cell
    return moved


def rotated(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """The structure with its cell turned about a random axis by a random angle."""
    turned = atoms.copy()
    turned.rotate(float(rng.uniform(0, 360)), rng.normal(size=3), rotate_cell=True)
    return turned


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("structure", type=Path, nargs="?", help="any file that ASE reads")
    parser.add_argument("--temperature", type=float, help="K; by default the lowest of the training")
    parser.add_argument("--number", type=int, default=8, help="shifts, and rotations")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore", ModelDomainWarning)
    emulator = Emulator.load(options.model or shipped.model())
    atoms = ase.io.read(options.structure) if options.structure else Snapshot.load(shipped.snapshot()).atoms
    rng = np.random.default_rng(options.seed)
    grid = Grid.from_spacing(atoms.cell.array, emulator.info.grid_spacing)

    def energy(structure: Atoms, shape: tuple[int, int, int] = grid.shape) -> tuple[float, float]:
        found = emulator.predict(structure, temperature=options.temperature, grid=shape).energies
        return 1e3 * found.total_free / len(structure), 1e3 * found.band / len(structure)

    reference = energy(atoms)
    finer = tuple(n + 4 for n in grid.shape)
    variants = {
        "rigid shifts": [energy(shifted(atoms, grid, rng.random(3))) for _ in range(options.number)],
        "rotations": [energy(rotated(atoms, rng)) for _ in range(options.number)],
        f"grid {' x '.join(map(str, finer))}": [energy(atoms, finer)],
    }
    rows = []
    for name, found in variants.items():
        change = np.array(found) - np.array(reference)
        largest, rms = np.abs(change).max(axis=0), np.sqrt((change**2).mean(axis=0))
        rows.append(
            [name, len(found), *(f"{x:.4f}" for pair in zip(largest, rms, strict=True) for x in pair)]
        )
    print(f"{atoms.get_chemical_formula()}, grid {' x '.join(map(str, grid.shape))}; changes in meV/atom")
    table(["", "n", "F largest", "F rms", "band largest", "band rms"], rows)


if __name__ == "__main__":
    main()
