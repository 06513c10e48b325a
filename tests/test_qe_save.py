"""A predicted density as pw.x's save folder, and the other formats that results are written in."""

from __future__ import annotations

import dataclasses
import io
import re
import shutil
from types import SimpleNamespace

import ase.io
import h5py
import numpy as np
import pytest
from ase.io.xsf import read_xsf
from fakes import UPF, make_atoms
from models import tiny_model

from malax.errors import FileError, InputError
from malax.grid import Grid
from malax.interfaces import quantum_espresso as qe
from malax.io import fortran
from malax.io.charge_density import (
    plane_waves,
    read_charge_density,
    sphere_of_waves,
    write_charge_density,
)
from malax.io.espresso import read_xml
from malax.io.qe_text import fortran_e, pw_energies, write_dos
from malax.io.structures import as_atoms
from malax.io.xsf import write_xsf
from malax.units import BOHR, HARTREE, RYDBERG

CELLS = {
    "cubic": 4.05 * np.eye(3),
    "triclinic": np.array([[3.0, 0.2, -0.1], [0.5, 4.1, 0.3], [-0.2, 0.4, 5.2]]),
    "left-handed": np.array([[0.0, 3.3, 0.1], [4.0, 0.2, 0.0], [0.3, 0.0, 2.9]]),
    "hexagonal": 2.3 * np.array([[1, 0, 0], [-0.5, np.sqrt(3) / 2, 0], [0, 0, 1.6]]),
}


@pytest.fixture(scope="module")
def emulator():
    return tiny_model(ecutrho=30 * RYDBERG)


@pytest.fixture(scope="module")
def result(emulator):
    return emulator.predict(make_atoms(0), temperature=1000.0, grid=(15, 16, 18))


def plain_order(cell: np.ndarray, ecutrho: float, gamma_only: bool) -> list[tuple[int, int, int]]:
    """All waves of the sphere by three loops, then an insertion sort with pw.x's tolerance."""
    b = 2 * np.pi * np.linalg.inv(cell / BOHR).T
    unit = (2 * np.pi / np.linalg.norm(cell[0] / BOHR)) ** 2
    found = []
    for i in range(-12, 13):
        for j in range(-12, 13):
            for k in range(-12, 13):
                first = next((n for n in (i, j, k) if n), 0)
                square = float(((i * b[0] + j * b[1] + k * b[2]) ** 2).sum())
                if square / 2 * HARTREE <= ecutrho and not (gamma_only and first < 0):
                    found.append((round(square / unit / 1e-7), (i, j, k)))
    return [wave for _, wave in sorted(found)]


@pytest.mark.parametrize("gamma_only", [False, True])
@pytest.mark.parametrize("name", CELLS)
def test_order_of_the_waves(name, gamma_only):
    found = sphere_of_waves(CELLS[name], 12 * RYDBERG, gamma_only)
    assert [tuple(m) for m in found.tolist()] == plain_order(CELLS[name], 12 * RYDBERG, gamma_only)


@pytest.mark.parametrize("gamma_only", [False, True])
@pytest.mark.parametrize("ending", ["dat", "hdf5"])
@pytest.mark.parametrize("name", ["triclinic", "left-handed"])
def test_density_comes_back(name, ending, gamma_only, tmp_path):
    cell = CELLS[name]
    miller = sphere_of_waves(cell, 10 * RYDBERG)
    shape = tuple(2 * np.abs(miller).max(axis=0) + [1, 2, 3])
    grid = Grid(cell, shape)
    rng = np.random.default_rng(3)
    waves = plane_waves(rng.random(shape), miller)
    # a density without waves beyond the sphere, which a file cannot hold
    x = np.stack(np.meshgrid(*(np.arange(n) / n for n in shape), indexing="ij"), axis=-1)
    density = sum(c * np.exp(2j * np.pi * (x @ m)) for c, m in zip(waves, miller, strict=True)).real
    kept = sphere_of_waves(cell, 10 * RYDBERG, gamma_only)
    path = tmp_path / f"charge-density.{ending}"
    write_charge_density(path, cell, kept, plane_waves(density, kept), gamma_only=gamma_only)
    np.testing.assert_allclose(read_charge_density(tmp_path, grid), density, rtol=0, atol=1e-12)
    if ending == "hdf5":
        with h5py.File(path) as file:
            assert set(file) == {"MillerIndices", "rhotot_g"} and set(file["MillerIndices"].attrs) == {
                "bg1", "bg2", "bg3",
            }  # fmt: skip


def test_waves_that_a_coarse_grid_does_not_hold():
    density = np.random.default_rng(0).random((6, 7, 8))
    waves = plane_waves(density, np.array([[0, 0, 0], [2, -3, -3], [3, 0, 0], [0, 0, 4], [9, 0, 0]]))
    assert waves[0] == pytest.approx(density.mean())
    assert waves[1] == pytest.approx(np.fft.fftn(density)[2, -3, -3] / density.size)
    assert (waves[2:] == 0).all()


def test_long_records_are_split_as_gfortran_does(tmp_path):
    data = bytes(range(100))
    file = io.BytesIO()
    fortran.write_record(file, data, longest=40)
    fortran.write_record(file, b"")
    marks = np.frombuffer(file.getvalue(), dtype=np.uint8)
    assert int.from_bytes(marks[:4].tobytes(), "little", signed=True) == -40
    path = tmp_path / "records"
    path.write_bytes(file.getvalue())
    with fortran.FortranFile(path) as back:
        assert back.read("u1").tobytes() == data
        assert len(back.read("u1")) == 0


def test_density_files_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"charge-density\.dat"):
        write_charge_density(tmp_path / "x.txt", np.eye(3), np.zeros((1, 3)), np.ones(1))
    with pytest.raises(InputError, match="do not fit"):
        write_charge_density(tmp_path / "x.dat", np.eye(3), np.zeros((2, 3)), np.ones(1))
    assert list(tmp_path.iterdir()) == []


def test_save_folder(emulator, result, tmp_path):
    options = qe.SaveOptions({"Al": UPF}, kpoints=(3, 2, 2))
    written = qe.save_folder(result, emulator, tmp_path / "qe", options)
    assert written == qe.planned_files(tmp_path / "qe", options) and all(p.is_file() for p in written)
    save = tmp_path / "qe" / "malax.save"
    run = read_xml(save / "data-file-schema.xml")
    np.testing.assert_allclose(run.atoms.positions, result.atoms.positions, atol=1e-9)
    np.testing.assert_allclose(run.atoms.cell.array, result.atoms.cell.array, atol=1e-9)
    assert run.fermi_level == pytest.approx(result.fermi_level, abs=1e-9)
    assert run.temperature == pytest.approx(result.temperature, abs=1e-6)
    assert run.ecutrho == pytest.approx(30 * RYDBERG) and run.ecutwfc == pytest.approx(7.5 * RYDBERG)
    for term in ("total_free", "hartree", "xc", "ewald", "entropy_term", "vxc_rho"):
        assert run.energies[term] == pytest.approx(getattr(result.energies, term), abs=1e-9), term
    assert run.unsupported == ("a density that malax predicted, which no pw.x has worked on yet",)
    density = read_charge_density(save, run.grid)
    assert density.mean() * run.atoms.get_volume() == pytest.approx(12.0, abs=1e-12)
    assert (save / UPF.name).read_bytes() == (tmp_path / "qe" / UPF.name).read_bytes() == UPF.read_bytes()
    inputs = {name: (tmp_path / "qe" / f"{name}.in").read_text() for name in ("scf", "nscf", "bands")}
    assert "startingpot = 'file'" in inputs["scf"] and "startingpot" not in inputs["nscf"]
    assert "\n3 2 2 0 0 0\n" in inputs["scf"] and "\n3 2 2 0 0 0\n" in inputs["nscf"]
    assert "outdir = './scf'" in inputs["scf"] and "outdir = '.'" in inputs["bands"]
    path = qe.band_path(result.atoms).kpts
    assert f"K_POINTS crystal\n{len(path)}\n" in inputs["bands"] and "nbnd = 13" in inputs["bands"]
    degauss = float(re.search(r"degauss = (\S+)", inputs["nscf"])[1])
    assert degauss == pytest.approx(1000 * 6.3336231e-6, rel=1e-6)
    with pytest.raises(FileError, match="exists; give --overwrite"):
        qe.save_folder(result, emulator, tmp_path / "qe", options)
    qe.save_folder(result, emulator, tmp_path / "qe", dataclasses.replace(options, overwrite=True))


def test_save_folder_of_one_k_point_is_gammas(emulator, result, tmp_path):
    options = qe.SaveOptions({"Al": UPF}, kpoints=(1, 1, 1), hdf5=True)
    qe.save_folder(result, emulator, tmp_path, options)
    assert "K_POINTS gamma" in (tmp_path / "scf.in").read_text()
    assert "K_POINTS crystal\n1\n" in (tmp_path / "nscf.in").read_text()
    with (
        h5py.File(tmp_path / "malax.save/charge-density.hdf5") as whole,
        h5py.File(tmp_path / "scf/malax.save/charge-density.hdf5") as half,
    ):
        assert half.attrs["gamma_only"] == b".TRUE." and whole.attrs["gamma_only"] == b".FALSE."
        assert 2 * half.attrs["ngm_g"] == whole.attrs["ngm_g"] + 1
    grid = read_xml(tmp_path / "malax.save/data-file-schema.xml").grid
    np.testing.assert_allclose(
        read_charge_density(tmp_path / "malax.save", grid),
        read_charge_density(tmp_path / "scf/malax.save", grid),
        atol=1e-12,
    )


def test_mesh_by_spacing(result):
    # 2 pi / 4.05 A / 0.2 = 7.8
    assert qe.run_mesh(result.atoms, qe.SaveOptions({})) == (8, 8, 8)


def test_save_folder_refuses(emulator, result, tmp_path, monkeypatch):
    other = tmp_path / "Al.UPF"
    other.write_bytes(UPF.read_bytes() + b"\n")
    monkeypatch.chdir(tmp_path)
    save = lambda em, **options: qe.save_folder(result, em, tmp_path / "no", qe.SaveOptions(**options))  # noqa: E731
    with pytest.raises(InputError, match=r"not the file that the model was trained with: .* this one has"):
        save(emulator, pseudo_files={"Al": other})
    with pytest.raises(FileError, match="no such file"):
        save(emulator, pseudo_files={"Al": tmp_path / "nope.UPF"})
    with pytest.raises(InputError, match="--pseudo Be=...: the structure has Al only"):
        save(emulator, pseudo_files={"Be": UPF})
    with pytest.raises(InputError, match="holds no pseudopotential of Al"):
        save(tiny_model(with_pseudopotentials=False, ecutrho=400.0), pseudo_files={})
    with pytest.raises(InputError, match="does not know the ecutrho"):
        save(tiny_model(), pseudo_files={"Al": UPF})
    with pytest.raises(InputError, match=r"ecutwfc of 20 Ry: .* at most 7\.5 Ry"):
        save(emulator, pseudo_files={"Al": UPF}, ecutwfc=20 * RYDBERG)
    unknown = tiny_model(ecutrho=400.0)
    known = unknown.pseudopotentials["Al"]
    unknown.pseudopotentials["Al"] = dataclasses.replace(known, sha256="0" * 64)
    with pytest.raises(InputError, match=r"give --pseudo Al=PATH, the file Al\.pbe-nc\.UPF"):
        save(unknown, pseudo_files={})
    assert not (tmp_path / "no").exists()


def test_pseudopotential_is_found_by_name_and_hash(emulator, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(UPF, tmp_path / UPF.name)
    assert qe.find_pseudopotentials(emulator, ["Al"], {}) == {"Al": qe.Path(UPF.name)}
    (tmp_path / UPF.name).write_text("another")
    (tmp_path / "lib").mkdir()
    shutil.copyfile(UPF, tmp_path / "lib" / UPF.name)
    monkeypatch.setenv("ESPRESSO_PSEUDO", str(tmp_path / "lib"))
    assert qe.find_pseudopotentials(emulator, ["Al"], {}) == {"Al": tmp_path / "lib" / UPF.name}


# other formats


def test_xsf_is_read_by_ase(result, tmp_path):
    result.write_xsf(tmp_path / "o.xsf")
    values, origin, span, atoms = read_xsf(open(tmp_path / "o.xsf"), read_data=True)
    np.testing.assert_allclose(values[:-1, :-1, :-1], result.density, atol=1e-7)
    np.testing.assert_array_equal(values[-1], values[0])
    np.testing.assert_allclose(span, result.atoms.cell.array, atol=1e-9)
    np.testing.assert_allclose(atoms.positions, result.atoms.positions, atol=1e-9)
    assert not np.any(origin)
    with pytest.raises(InputError, match="finite field"):
        write_xsf(tmp_path / "n.xsf", result.atoms, np.full((2, 2, 2), np.nan), "x")


def test_dos_in_the_format_of_dos_x(result, tmp_path):
    result.write_dos(tmp_path / "o.dos")
    head, first, *_ = (tmp_path / "o.dos").read_text().splitlines()
    assert head == f"#  E (eV)   dos(E)     Int dos(E) EFermi = {result.fermi_level:8.3f} eV"
    assert re.fullmatch(r" {2}-?\d\.\d{3} {1,2}-?0\.\d{4}E[-+]\d\d {1,2}-?0\.\d{4}E[-+]\d\d", first), first
    table = np.loadtxt(tmp_path / "o.dos")
    np.testing.assert_allclose(table[:, 0], result.energy_grid, atol=5e-4)
    np.testing.assert_allclose(table[:, 1], result.dos, rtol=1e-3, atol=1e-10)
    step = result.energy_grid[1] - result.energy_grid[0]
    np.testing.assert_allclose(table[-1, 2], result.dos.sum() * step, rtol=1e-3)
    with pytest.raises(InputError, match="energies and values alike"):
        write_dos(tmp_path / "n.dos", np.arange(3), np.arange(4), 0.0)


@pytest.mark.parametrize(
    "value, text",
    [(0.0, "0.0000E+00"), (1.788e-10, "0.1788E-09"), (-12.34567, "-0.1235E+02"), (1.5e-120, "0.1500-119"),
     (0.99999, "0.1000E+01")],
)  # fmt: skip
def test_fortran_numbers(value, text):
    assert fortran_e(value) == text


def test_energies_as_pw_prints_them(result):
    terms = result.energies.as_dict()
    found = pw_energies(terms)
    parts = ("one-electron contribution", "hartree contribution", "xc contribution", "ewald contribution")
    # as pw.x says: E is the sum of these, and F = E - TS
    assert sum(found[p] for p in parts) == pytest.approx(found["internal energy E=F+TS"], abs=1e-9)
    assert found["total energy"] * RYDBERG == pytest.approx(terms["total_free"], abs=1e-9)
    assert pw_energies({**terms, "xc": None}) is None
    assert result.as_json()["energies_as_pw"] == found


def test_extxyz(result, tmp_path):
    result.write_extxyz(tmp_path / "o.xyz")
    atoms = ase.io.read(tmp_path / "o.xyz", parallel=False)
    assert atoms.get_potential_energy() == pytest.approx(result.energies.total_free, abs=1e-8)
    assert atoms.info["malax_hartree"] == pytest.approx(result.energies.hartree, abs=1e-8)
    np.testing.assert_allclose(atoms.positions, result.atoms.positions, atol=1e-7)


# structures of pymatgen


def test_structures_like_those_of_pymatgen(emulator, result):
    atoms = make_atoms(0)
    lattice = SimpleNamespace(matrix=atoms.cell.array, pbc=(True, True, True))
    species = [SimpleNamespace(symbol=s) for s in atoms.get_chemical_symbols()]
    like = SimpleNamespace(lattice=lattice, species=species, cart_coords=atoms.positions, is_ordered=True)
    found = emulator.predict(like, temperature=1000.0, grid=(15, 16, 18))
    assert found.energies.total_free == pytest.approx(result.energies.total_free, abs=1e-9)
    like.is_ordered = False
    with pytest.raises(InputError, match="several elements share"):
        as_atoms(like)
    with pytest.raises(InputError, match="str is no structure"):
        as_atoms("al.xyz")


def test_pymatgen():
    core = pytest.importorskip("pymatgen.core", reason="pymatgen is not installed")
    structure = core.Structure(
        core.Lattice.hexagonal(2.3, 3.6), ["Be", "Be"], [[0, 0, 0], [1 / 3, 2 / 3, 0.5]]
    )
    atoms = as_atoms(structure)
    assert atoms.get_chemical_formula() == "Be2" and atoms.pbc.all()
    np.testing.assert_allclose(atoms.get_scaled_positions(), structure.frac_coords, atol=1e-12)
