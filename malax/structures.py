"""Structures by recipe: a lattice, a supercell, a random strain and random displacements from a seed.

The structure of a group (one letter) with an index comes from its own generator,

    rng = numpy.random.default_rng([seed, ord(letter), index]),

which gives first, if the group is strained, three normal deviates e (the cell is multiplied by
diag(1 + e)), then a normal displacement for each coordinate, then, if there are vacancies, which atoms are
missing, then, if the group is sheared, three normal deviates for yz, xz, xy. So a structure does not depend
on which others are made, and a recipe of a few lines stands for any number of files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import ase.io
import numpy as np
from ase import Atoms
from ase.build import bulk, make_supercell
from pydantic import Field, model_validator

from malax.errors import FileError, InputError
from malax.selection import farthest
from malax.settings import FileList, Settings

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]
Triple = tuple[Count, Count, Count]
Row = tuple[int, int, int]


class Lattice(Settings):
    """A crystal as ``ase.build.bulk`` knows it."""

    name: str
    """Chemical symbol or formula, e.g. Al or MgO."""
    structure: str | None = None
    """fcc, bcc, hcp, diamond, rocksalt, ...; by default the element's own."""
    a: Positive | None = None
    """Lattice constant in A."""
    c: Positive | None = None
    """Second lattice constant in A, where the structure has one."""
    cubic: bool = False
    """The conventional cubic cell instead of the primitive one."""

    def build(self) -> Atoms:
        """The unit cell. InputError if ASE knows no such crystal."""
        try:
            return bulk(self.name, self.structure, a=self.a, c=self.c, cubic=self.cubic)
        except (ValueError, KeyError, RuntimeError) as error:
            raise InputError(f"lattice {self.name} {self.structure or ''}: {error}") from error


class Group(Settings):
    """Structures that are computed alike: from a lattice by seed, or read from files."""

    lattice: Lattice | None = None
    """The crystal to start from; its group needs a name of one letter, and indices."""
    supercell: tuple[Row, Row, Row] = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    """Rows: the supercell's vectors in those of the lattice."""
    strain: NonNegative = 0.0
    """Standard deviation of the diagonal strain."""
    shear: NonNegative = 0.0
    """Standard deviation of the off-diagonal strains."""
    rattle: NonNegative = 0.0
    """Standard deviation of each coordinate's displacement in A."""
    volumes: tuple[Positive, ...] = (1.0,)
    """Factors of the lattice's volume; index i gets number i modulo their number."""
    vacancies: Annotated[int, Field(ge=0)] = 0
    """Atoms that are taken away at random."""
    indices: tuple[Index, ...] = ()
    """Which structures of the seed to make, e.g. [0, 1, 2]."""
    files: FileList = ()
    """Structure files or trajectories (whatever ASE reads, all their frames) instead of a lattice."""
    every: Count | None = None
    """Of the frames of all files take every n-th."""
    random: Count | None = None
    """Of these take so many at random, by the recipe's seed."""
    farthest: Count | None = None
    """Of these take so many that differ most: farthest points in the space of their descriptors."""

    temperature: Positive
    """Electronic temperature in K."""
    kpoints: Triple
    """Monkhorst-Pack mesh with Gamma."""
    n_bands: Count | Literal["auto"] = "auto"
    """Bands to compute: the LDOS is complete up to 2 sigma below the highest. auto: as many as are occupied
    at the temperature to 1e-6, from a coarse run."""
    fft_grid: Triple | None = None
    """Dense FFT grid; by default pw.x's own."""
    ldos_stride: Count = 1
    """Keep the LDOS on every n-th point in each direction (the density stays whole)."""

    @model_validator(mode="after")
    def _one_source(self) -> Group:
        if (self.lattice is None) == (not self.files):
            raise ValueError("a group needs either a lattice or files")
        if self.lattice is not None and not self.indices:
            raise ValueError("a group with a lattice needs indices, e.g. [0, 1, 2]")
        changed = self.strain or self.rattle or self.shear or self.vacancies or self.volumes != (1.0,)
        if self.files and (self.indices or changed):
            raise ValueError(
                "indices, strain, shear, rattle, volumes and vacancies are for a lattice; structures from "
                "files stay as they are"
            )
        if self.lattice is not None and (self.every or self.random or self.farthest):
            raise ValueError("every, random and farthest select frames of files; a lattice has indices")
        if self.random and self.farthest:
            raise ValueError("random and farthest exclude each other")
        if len(set(self.indices)) != len(self.indices):
            raise ValueError("an index stands twice")
        if abs(round(float(np.linalg.det(np.array(self.supercell))))) < 1:
            raise ValueError("the rows of the supercell are not independent")
        return self


@dataclass(frozen=True, eq=False)
class Structure:
    """One structure of a recipe: its name (group and number), group, and atoms."""

    name: str
    group: str
    number: int
    atoms: Atoms


def seeded(group: Group, letter: str, index: int, seed: int) -> Atoms:
    """The structure with this index of a group with a lattice (see the module's text)."""
    assert group.lattice is not None
    atoms = make_supercell(group.lattice.build(), np.array(group.supercell))
    rng = np.random.default_rng([seed, ord(letter), index])
    volume = group.volumes[index % len(group.volumes)]
    if volume != 1.0:
        atoms.set_cell(atoms.cell.array * volume ** (1 / 3), scale_atoms=True)
    if group.strain:
        stretch = np.diag(1 + rng.normal(0.0, group.strain, 3))
        atoms.set_cell(atoms.cell.array @ stretch, scale_atoms=True)
    atoms.positions += rng.normal(0.0, group.rattle, (len(atoms), 3))
    if group.vacancies:
        if group.vacancies >= len(atoms):
            raise InputError(f"group {letter!r}: {group.vacancies} vacancies in {len(atoms)} atoms")
        del atoms[sorted(rng.choice(len(atoms), group.vacancies, replace=False).tolist())]
    if group.shear:
        yz, xz, xy = rng.normal(0.0, group.shear, 3)
        strain = np.array([[1, xy, xz], [xy, 1, yz], [xz, yz, 1]])
        atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
    return atoms


def structures_of(name: str, group: Group, seed: int) -> list[Structure]:
    """All structures of one group.

    InputError for a seeded group whose name is not one letter; FileError for a file ASE cannot read or
    a structure that is not periodic in three directions.
    """
    if group.lattice is not None:
        if len(name) != 1 or not name.isalpha():
            raise InputError(f"group {name!r}: its name seeds its structures and must be one letter")
        return [Structure(f"{name}{i}", name, i, seeded(group, name, i, seed)) for i in group.indices]
    frames = [atoms for path in group.files for atoms in _read(path)]
    # numbered as in the files: a structure keeps its name when others are selected
    return [Structure(f"{name}{i}", name, i, frames[i]) for i in selected(name, group, frames, seed)]


def selected(name: str, group: Group, frames: list[Atoms], seed: int) -> list[int]:
    """The indices of the frames that a group takes. InputError if it wants more than there are."""
    taken = list(range(0, len(frames), group.every or 1))
    number = group.random or group.farthest
    if number is None:
        return taken
    if number > len(taken):
        raise InputError(f"group {name!r}: {number} structures are wanted, its files have {len(taken)}")
    if group.random:
        rng = np.random.default_rng([seed, *name.encode()])
        return sorted(rng.choice(taken, number, replace=False).tolist())
    return [taken[i] for i in farthest([frames[i] for i in taken], number)]


def _read(path: Path) -> list[Atoms]:
    try:
        frames = list(ase.io.iread(path))
    except Exception as error:  # ASE's readers raise whatever they like
        raise FileError(
            f"cannot read structures from {path}: {str(error) or type(error).__name__}"
        ) from error
    for atoms in frames:
        if not atoms.pbc.all() or not atoms.cell.rank == 3:
            raise FileError(f"{path}: a structure is not periodic in three directions")
    return frames
