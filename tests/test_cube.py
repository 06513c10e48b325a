"""Cube files: round trips, other writers' habits, damage, and the LDOS series of pp.x."""

from __future__ import annotations

import io
import re
from pathlib import Path

import ase.io.cube
import numpy as np
import pytest
from ase import Atoms
from qe_files import fortran, gaussian, toy, write_cubes

from malax.errors import FileError, InputError
from malax.grid import Grid
from malax.io import cube, cube_series, cube_text

ENERGIES = np.arange(-4.0, 14.01, 1.0)


def fixed_columns(body: bytes, shape: tuple[int, int, int]) -> np.ndarray | None:
    return cube_text.fixed_columns(io.BytesIO(body), shape)


def field(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def test_round_trip_in_a_triclinic_cell(tmp_path: Path) -> None:
    atoms, values = toy().atoms, field((3, 4, 7))
    cube.write_cube(tmp_path / "a.cube", atoms, values, comment="a test")
    read = cube.read_cube(tmp_path / "a.cube")
    np.testing.assert_allclose(read.values, values, rtol=1e-9)
    np.testing.assert_allclose(read.grid.cell, atoms.cell.array, atol=1e-6)
    np.testing.assert_allclose(read.atoms.positions, atoms.positions, atol=1e-7)
    assert list(read.atoms.symbols) == list(atoms.symbols)
    assert read.comments[0] == "a test"


def test_ase_reads_ours_and_we_read_its(tmp_path: Path) -> None:
    atoms, values = toy().atoms, field((3, 4, 5))
    cube.write_cube(tmp_path / "ours.cube", atoms, values)
    with open(tmp_path / "ours.cube") as file:
        theirs = ase.io.cube.read_cube(file)
    np.testing.assert_allclose(theirs["data"], values, rtol=1e-9)
    np.testing.assert_allclose(theirs["atoms"].cell.array, atoms.cell.array, atol=1e-6)
    with open(tmp_path / "theirs.cube", "w") as file:
        ase.io.cube.write_cube(file, atoms, data=values)
    ours = cube.read_cube(tmp_path / "theirs.cube")
    np.testing.assert_allclose(ours.values, values, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours.grid.cell, atoms.cell.array, atol=1e-4)


def test_gaussian_habits(tmp_path: Path) -> None:
    """Negative counts mean Angstrom; a negative number of atoms, one more line."""
    text = "t\nu\n -1 0 0 0\n-2 1.5 0 0\n-1 0 2 0\n-3 0 0 1\n 13 13 0.1 0.2 0.3\n 1 5\n1 2 3\n4 5 6\n"
    (tmp_path / "g.cube").write_text(text)
    read = cube.read_cube(tmp_path / "g.cube")
    np.testing.assert_allclose(read.grid.cell, np.diag([3.0, 2.0, 3.0]))
    np.testing.assert_allclose(read.atoms.positions, [[0.1, 0.2, 0.3]])
    np.testing.assert_array_equal(read.values.ravel(), [1, 2, 3, 4, 5, 6])


def test_three_digit_exponents_of_fortran(tmp_path: Path) -> None:
    (tmp_path / "f.cube").write_text(
        "t\nu\n 0 0 0 0\n1 3 0 0\n1 0 3 0\n3 0 0 1\n 0.12345-102 -0.50000-110  0.12345E+01\n"
    )
    np.testing.assert_allclose(
        cube.read_cube(tmp_path / "f.cube").values.ravel(), [0.12345e-102, -0.5e-110, 1.2345]
    )


def test_damage_is_named(tmp_path: Path) -> None:
    atoms = Atoms("Al", cell=np.eye(3) * 4, pbc=True)
    path = tmp_path / "a.cube"
    cube.write_cube(path, atoms, field((4, 4, 4)))
    whole = path.read_text()
    for text, message in (
        (whole[: len(whole) // 2], "truncated"),
        (whole[:40], "not a cube file"),
        ("", "not a cube file"),
        (whole + " 1.0\n", "more than one field"),
        (whole.replace("E-01", "E-01 ***", 1), "no number"),
        (whole.rsplit(None, 1)[0] + " NaN\n", "not finite"),
    ):
        path.write_text(text)
        with pytest.raises(FileError, match=message):
            cube.read_cube(path)
    with pytest.raises(FileError, match="does not exist"):
        cube.read_cube(tmp_path / "none.cube")
    bad = field((2, 2, 2))
    bad[0, 0, 0] = np.nan
    with pytest.raises(InputError, match="finite"):
        cube.write_cube(tmp_path / "b.cube", atoms, bad)
    assert not (tmp_path / "b.cube").exists()


def test_ldos_series(tmp_path: Path) -> None:
    t = toy()
    write_cubes(tmp_path, t, ENERGIES, 1.0, gaussian)
    (tmp_path / "density.cube1").write_text("not of the series\n")
    paths = cube_series.find_series(tmp_path)
    assert len(paths) == len(ENERGIES) and cube_series.series_broadening(paths) == 1.0
    energies, values = cube_series.read_ldos_series(paths, Grid(t.atoms.cell.array, t.shape))
    np.testing.assert_allclose(energies, ENERGIES, atol=1e-12)
    expected = t.ldos(ENERGIES, gaussian(1.0))
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-30)
    _, strided = cube_series.read_ldos_series(paths, Grid(t.atoms.cell.array, t.shape), stride=3)
    np.testing.assert_array_equal(strided, values[::3, ::3, ::3])


def test_series_is_sorted_by_number_not_by_name(tmp_path: Path) -> None:
    t = toy(shape=(6, 6, 6))
    for i, path in enumerate(write_cubes(tmp_path, t, ENERGIES[:12], 1.0, gaussian)):
        path.rename(tmp_path / f"Al4_298_{i + 995:03d}.cub")  # 995 ... 1006
    # a series need not begin at 1 to be read in order, but then what is before it is missing
    with pytest.raises(FileError, match="LDOS cube 001 is missing"):
        cube_series.find_series(tmp_path)
    for path in tmp_path.iterdir():
        number = int(path.stem.split("_")[-1]) - 994
        path.rename(tmp_path / f"Al4_298_{number}.cub")
    assert [int(p.stem.split("_")[-1]) for p in cube_series.find_series(tmp_path)] == list(range(1, 13))


def test_a_series_with_a_gap_an_early_end_or_another_grid(tmp_path: Path) -> None:
    t = toy()
    grid = Grid(t.atoms.cell.array, t.shape)
    paths = write_cubes(tmp_path, t, ENERGIES, 1.0, gaussian)
    text = paths[4].read_text()
    paths[4].unlink()
    with pytest.raises(FileError, match="LDOS cube 005 is missing"):
        cube_series.find_series(tmp_path)
    paths[4].write_text(text[: len(text) // 2])
    with pytest.raises(FileError, match="005_ldos.cube is truncated"):
        cube_series.read_ldos_series(paths, grid)
    paths[4].write_text(text.replace("0.0000 eV", "0.3000 eV"))
    with pytest.raises(FileError, match="005_ldos.cube.*out of step"):
        cube_series.read_ldos_series(paths, grid)
    paths[4].write_text(text)
    with pytest.raises(FileError, match="ends here, at 13 eV.*asks for 14 eV"):
        cube_series.read_ldos_series(paths[:-1], grid, highest=14.0)
    with pytest.raises(FileError, match="do not match the run's grid"):
        cube_series.read_ldos_series(paths, Grid(t.atoms.cell.array, (9, 10, 13)))
    with pytest.raises(FileError, match="do not match the run's grid"):
        cube_series.read_ldos_series(paths, Grid(t.atoms.cell.array * 1.001, t.shape))
    paths[0].with_name("other_001.cube").write_text(text)
    with pytest.raises(FileError, match="more than one series"):
        cube_series.find_series(tmp_path)


@pytest.mark.parametrize("shape", [(2, 3, 5), (3, 2, 6), (2, 2, 13), (40, 40, 181)])
def test_fixed_columns_are_the_words(shape: tuple[int, int, int]) -> None:
    """All magnitudes that E13.5 writes, three-digit exponents among them, as float() reads them."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=shape) * 10.0 ** rng.integers(-130, 40, size=shape)
    values[0, 0, :2] = 0.0, -0.0
    lines = []
    for run in values.reshape(-1, shape[2]):
        words = [f"{fortran(x):>13s}" for x in run]
        lines += ["".join(words[i : i + 6]) for i in range(0, len(words), 6)]
    body = ("\n".join(lines) + "\n").encode()
    found = fixed_columns(body, shape)
    assert found is not None
    plain = [float(re.sub(r"(\d)([-+]\d{3})$", r"\1E\2", word)) for line in lines for word in line.split()]
    # exact up to 10^22, where powers of ten are; beyond to rounding
    np.testing.assert_allclose(found, plain, rtol=1e-15)
    moderate = (np.abs(plain) > 1e-16) & (np.abs(plain) < 1e16)
    np.testing.assert_array_equal(found[moderate], np.array(plain)[moderate])


def test_fixed_columns_at_the_ends_of_double() -> None:
    words = ["0.12345-310", "-0.12345-318", "0.99999-330", "0.10000+304", "0.17976+309", "0.10000+310"]
    found = fixed_columns(("".join(f"{word:>13s}" for word in words) + "\n").encode(), (1, 1, 6))
    plain = [float(re.sub(r"([-+]\d{3})$", r"E\1", word)) for word in words]
    assert found is not None and plain[2] == 0 and plain[5] == np.inf
    np.testing.assert_allclose(found, plain, rtol=1e-15, atol=1e-323)


def test_any_byte_that_is_wrong_is_seen() -> None:
    body = b" -0.12345E-02  0.12345-102\n" * 4
    assert fixed_columns(body, (2, 2, 2)) is not None
    for place in range(len(body)):
        for byte in b"x\0\xff:/":
            damaged = body[:place] + bytes([byte]) + body[place + 1 :]
            assert fixed_columns(damaged, (2, 2, 2)) is None, (place, byte)


@pytest.mark.parametrize("change", [b"x", b" ", b"D", b"\n", b"."])
def test_other_formats_are_left_to_the_reader_of_words(change: bytes) -> None:
    body = b"  0.12345E-02  0.12345E-02\n" * 4
    assert fixed_columns(body, (2, 2, 2)) is not None
    for place in (2, 3, 5, 9, 11, 26):
        damaged = body[:place] + change + body[place + 1 :]
        if damaged != body:
            assert fixed_columns(damaged, (2, 2, 2)) is None, place
    assert fixed_columns(body[:-5], (2, 2, 2)) is None
    assert fixed_columns(body + body, (2, 2, 2)) is None
    assert fixed_columns(body + b" \n", (2, 2, 2)) is not None


def test_a_series_is_the_same_with_any_threads_and_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    t = toy()
    paths = write_cubes(tmp_path, t, ENERGIES, 1.0, gaussian)
    grid = Grid(t.atoms.cell.array, t.shape)
    _, whole = cube_series.read_ldos_series(paths, grid)
    monkeypatch.setattr(cube_series, "BLOCK", 1000)
    seen: list[tuple[int, int]] = []
    for threads in (1, 3):
        series = cube_series.open_series(paths, grid, threads=threads, progress=lambda *n: seen.append(n))
        blocks = list(series.blocks())
        assert len(blocks) > 10
        np.testing.assert_array_equal(np.concatenate(blocks), whole.reshape(-1, len(ENERGIES)))
        np.testing.assert_allclose(series.sums, whole.sum(axis=(0, 1, 2), dtype=float), rtol=1e-6)
    assert seen[-1] == (len(paths), len(paths))
    assert sorted(tmp_path.iterdir()) == sorted(paths)
