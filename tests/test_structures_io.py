"""Structures from files: formats, images, LAMMPS types."""

from __future__ import annotations

import ase.io
import numpy as np
import pytest
from fakes import make_atoms
from systems import three_species, triclinic

from malax.errors import FileError, InputError
from malax.io.structures import read_structures


@pytest.mark.parametrize(
    "name, format", [("POSCAR", "vasp"), ("s.cif", "cif"), ("s.xyz", "extxyz"), ("s.traj", "traj")]
)
def test_formats(tmp_path, name, format):
    atoms = three_species()
    ase.io.write(tmp_path / name, atoms, format=format, parallel=False)
    (found,) = read_structures(tmp_path / name)
    assert sorted(found.symbols) == sorted(atoms.symbols)
    assert found.pbc.all() and found.get_volume() == pytest.approx(atoms.get_volume(), rel=1e-5)
    assert found.calc is None and not found.constraints


def test_images(tmp_path):
    path = tmp_path / "t.xyz"
    ase.io.write(path, [make_atoms(i) for i in range(5)], format="extxyz", parallel=False)
    for index, wanted in (("-1", [4]), ("0", [0]), (":", range(5)), ("::2", [0, 2, 4]), ("1:3", [1, 2])):
        found = read_structures(path, index)
        assert len(found) == len(wanted)
        for atoms, seed in zip(found, wanted, strict=True):
            np.testing.assert_allclose(atoms.positions, make_atoms(seed).positions, atol=1e-6)
    with pytest.raises(InputError, match="no image is in --index 7:9"):
        read_structures(path, "7:9")


@pytest.mark.parametrize("index", ["", "a", "1.5", "1,2", "::x"])
def test_bad_index(tmp_path, index):
    path = tmp_path / "t.xyz"
    ase.io.write(path, make_atoms(0), format="extxyz", parallel=False)
    with pytest.raises(InputError, match="is no index"):
        read_structures(path, index)


def distances(atoms) -> np.ndarray:
    return atoms.get_all_distances(mic=True)


def dump(path, atoms, columns: str, species: list[str]) -> None:
    """A LAMMPS dump of an orthogonal cell."""
    lines = ["ITEM: TIMESTEP", "0", "ITEM: NUMBER OF ATOMS", str(len(atoms)), "ITEM: BOX BOUNDS pp pp pp"]
    lines += [f"0 {length}" for length in atoms.cell.lengths()] + [f"ITEM: ATOMS {columns}"]
    for i, (symbol, position) in enumerate(zip(atoms.symbols, atoms.positions, strict=True)):
        values = {"id": i + 1, "type": species.index(symbol) + 1, "element": symbol}
        values.update(zip("xyz", (f"{x:.9f}" for x in position), strict=True))
        lines.append(" ".join(str(values[c]) for c in columns.split()))
    path.write_text("\n".join(lines) + "\n")


def test_lammps_dump(tmp_path):
    atoms, species = three_species(), ["O", "Al", "Be"]
    dump(tmp_path / "types", atoms, "id type x y z", species)
    with pytest.raises(InputError, match="numbered types; name their elements, e.g. --species Al,Be"):
        read_structures(tmp_path / "types")
    (found,) = read_structures(tmp_path / "types", species=species)
    assert list(found.symbols) == list(atoms.symbols)
    np.testing.assert_allclose(distances(found), distances(atoms), atol=1e-6)
    with pytest.raises((InputError, FileError)):
        read_structures(tmp_path / "types", species=["O"])
    dump(tmp_path / "elements", atoms, "id element x y z", species)
    assert list(read_structures(tmp_path / "elements")[0].symbols) == list(atoms.symbols)


def test_lammps_data(tmp_path):
    atoms = triclinic()
    atoms.symbols = ["Be", "Al", "Be"]
    path = tmp_path / "in.data"
    ase.io.write(path, atoms, format="lammps-data", specorder=["Al", "Be"], masses=True, parallel=False)
    with pytest.raises(InputError, match="numbered types"):
        read_structures(path)
    (found,) = read_structures(path, species=["Al", "Be"])
    assert list(found.symbols) == list(atoms.symbols)
    np.testing.assert_allclose(distances(found), distances(atoms), atol=1e-5)
    with pytest.raises(FileError, match="type 2 has no element: --species names 1"):
        read_structures(path, species=["Al"])
    with pytest.raises(InputError, match="'Zz' is no element"):
        read_structures(path, species=["Al", "Zz"])


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(FileError, match="does not exist"):
        read_structures(tmp_path / "none.xyz")
    (tmp_path / "empty.xyz").write_text("")
    with pytest.raises(FileError, match="empty.xyz cannot be read"):
        read_structures(tmp_path / "empty.xyz")
    ase.io.write(tmp_path / "whole.xyz", make_atoms(0), format="extxyz", parallel=False)
    text = (tmp_path / "whole.xyz").read_text()
    (tmp_path / "cut.xyz").write_text(text[: len(text) // 2])
    with pytest.raises(FileError, match="cut.xyz cannot be read as extxyz"):
        read_structures(tmp_path / "cut.xyz")
    (tmp_path / "odd").write_bytes(bytes(range(256)))
    with pytest.raises(FileError, match="not known; give --format"):
        read_structures(tmp_path / "odd")
    with pytest.raises(FileError, match="--format qux is no format of ASE"):
        read_structures(tmp_path / "odd", format="qux")
    with pytest.raises(InputError, match="--species is for LAMMPS files"):
        read_structures(tmp_path / "whole.xyz", species=["Al"])
