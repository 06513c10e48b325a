"""Named structures on which every kernel is compared with its reference."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.build import bulk


def orthogonal() -> Atoms:
    """Four rattled fcc Al atoms in a strained, rectangular cell."""
    atoms = bulk("Al", "fcc", a=4.05, cubic=True)
    atoms.set_cell(atoms.cell.array @ np.diag([1.0, 1.03, 0.96]), scale_atoms=True)
    return rattled(atoms, 0.1, seed=1)


def triclinic() -> Atoms:
    """Three Be atoms in a strongly sheared, right-handed cell."""
    cell = [[4.1, 0.0, 0.0], [1.3, 3.9, 0.0], [-0.9, 1.1, 4.6]]
    scaled = [[0.02, 0.11, 0.07], [0.48, 0.35, 0.60], [0.81, 0.77, 0.21]]
    return Atoms("Be3", cell=cell, scaled_positions=scaled, pbc=True)


def rotated() -> Atoms:
    """The triclinic cell turned in space: no lattice vector lies along an axis."""
    atoms = triclinic()
    atoms.rotate(37.0, (1, 2, -1), rotate_cell=True)
    return atoms


def one_atom() -> Atoms:
    """One Al in its primitive fcc cell, smaller than the cutoff."""
    return bulk("Al", "fcc", a=4.05)


def left_handed() -> Atoms:
    """A left-handed cell (negative triple product)."""
    atoms = orthogonal()
    return Atoms(atoms.symbols, positions=atoms.positions, cell=atoms.cell.array[[1, 0, 2]], pbc=True)


def three_species() -> Atoms:
    """Rattled rock-salt-like cell with Al, Be, and O."""
    atoms = bulk("Al", "fcc", a=4.4, cubic=True)
    atoms.symbols = "AlBeOAl"
    return rattled(atoms, 0.15, seed=3)


def vacuum() -> Atoms:
    """A slab of Al with 8 A of vacuum: points there have few neighbours or none."""
    atoms = bulk("Al", "fcc", a=4.05, cubic=True)
    cell = atoms.cell.array.copy()
    cell[2, 2] += 14.0
    return rattled(Atoms(atoms.symbols, positions=atoms.positions, cell=cell, pbc=True), 0.05, seed=4)


def on_grid_point() -> Atoms:
    """An atom exactly on a grid point (the origin) and one in the middle of the cell."""
    return Atoms("Al2", positions=[[0, 0, 0], [2.0, 2.0, 2.0]], cell=np.eye(3) * 4.0, pbc=True)


def rattled(atoms: Atoms, sigma: float, seed: int) -> Atoms:
    """Displace each coordinate by a normal deviate of ``sigma`` A."""
    atoms = atoms.copy()
    atoms.positions += np.random.default_rng(seed).normal(0.0, sigma, (len(atoms), 3))
    return atoms


SYSTEMS = {
    f.__name__: f
    for f in (
        orthogonal,
        triclinic,
        rotated,
        one_atom,
        left_handed,
        three_species,
        vacuum,
        on_grid_point,
    )
}
GRIDS = {
    "orthogonal": (6, 5, 7),
    "triclinic": (5, 7, 4),
    "rotated": (4, 3, 5),
    "one_atom": (4, 4, 4),
    "left_handed": (3, 5, 7),
    "three_species": (7, 5, 3),
    "vacuum": (4, 4, 11),
    "on_grid_point": (4, 4, 4),
}
"""A grid for each system; primes on purpose."""
