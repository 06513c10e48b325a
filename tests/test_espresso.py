"""QE's XML, charge density and wavefunctions, and snapshots from a finished run."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from qe_files import (
    BOHR,
    BOLTZMANN,
    HARTREE,
    fermi_dirac,
    gaussian,
    toy,
    write_cubes,
    write_density,
    write_run,
    write_wavefunctions,
    xml_text,
)

from malax.errors import FileError, InputError
from malax.io import espresso, wavefunctions
from malax.io.harvest import from_run

AXIS = (-4.0, 16.0, 0.25)
ENERGIES = np.arange(-4.0, 16.01, 0.25)


def test_xml_in_malax_units(tmp_path: Path) -> None:
    t = toy()
    save = write_run(tmp_path, t)
    run = espresso.read_xml(save / "data-file-schema.xml")
    np.testing.assert_allclose(run.atoms.positions, t.atoms.positions, atol=1e-12)
    np.testing.assert_allclose(run.atoms.cell.array, t.atoms.cell.array, atol=1e-12)
    np.testing.assert_allclose(run.eigenvalues, t.eigenvalues, atol=1e-12)
    np.testing.assert_allclose(run.weights, t.weights)
    reciprocal = 2 * np.pi * np.linalg.inv(t.atoms.cell.array).T
    np.testing.assert_allclose(run.kpoints, t.kpoints @ reciprocal, atol=1e-12)
    assert run.fft_shape == t.shape and run.functional == "PBE" and run.version == "6.7MaX"
    assert run.ecutwfc == pytest.approx(10 * HARTREE) and run.ecutrho == pytest.approx(40 * HARTREE)
    assert run.temperature == pytest.approx(t.temperature) and run.fermi_level == pytest.approx(t.fermi)
    assert run.energies["total_free"] == pytest.approx(-2.5 * HARTREE)
    assert run.energies["hartree"] == pytest.approx(0.3 * HARTREE)
    assert run.energies["vxc_rho"] == pytest.approx(-4.0 * HARTREE)
    assert run.energies["xc"] == pytest.approx(-3.5 * HARTREE)
    assert run.energies["ewald"] == pytest.approx(-5.25 * HARTREE)
    assert run.energies["entropy_term"] == pytest.approx(-6.25e-3 * HARTREE)
    np.testing.assert_allclose(run.forces[1], np.array([0.03, 0.04, 0.05]) * HARTREE / BOHR)
    # ASE: tension is positive, order xx yy zz yz xz xy; QE: pressure is positive
    expected = -1e-4 * np.array([1, 2, 3, 0.4, 0.5, 0.6]) * HARTREE / BOHR**3
    np.testing.assert_allclose(run.stress, expected)
    assert run.unsupported == () and run.converged
    number, band, entropy = run.band_terms()
    f = 1 / (1 + np.exp((t.eigenvalues - t.fermi) / (BOLTZMANN * t.temperature)))
    assert number == pytest.approx(6.0, abs=1e-9)
    assert band == pytest.approx(float((t.weights[:, None] * f * t.eigenvalues).sum()), abs=1e-9)
    assert band == pytest.approx(run.energies["band"], abs=1e-9)
    assert entropy < 0


def test_gzipped_xml_is_the_same(tmp_path: Path) -> None:
    text = xml_text(toy())
    (tmp_path / "a.xml").write_text(text)
    (tmp_path / "a.xml.gz").write_bytes(gzip.compress(text.encode()))
    a, b = espresso.read_xml(tmp_path / "a.xml"), espresso.read_xml(tmp_path / "a.xml.gz")
    np.testing.assert_array_equal(a.eigenvalues, b.eigenvalues)
    assert a.energies == b.energies


def test_species_labels() -> None:
    for label, element in (
        ("Al", "Al"),
        ("Al1", "Al"),
        ("fe_up", "Fe"),
        ("H", "H"),
        ("Cx", "C"),
        ("SI2", "Si"),
    ):
        assert espresso._element(label) == element
    with pytest.raises(ValueError, match="chemical symbol"):
        espresso._element("Qq")


def test_damaged_xml(tmp_path: Path) -> None:
    path, text = tmp_path / "data-file-schema.xml", xml_text(toy())
    for damaged, message in (
        (text[: len(text) // 2], "not whole XML"),
        ("", "not whole XML"),
        ("<a/>", "finished pw.x run: <output> is missing"),
        (text.replace("<nks>3", "<nks>4"), "3 k-points where <nks> says 4"),
    ):
        path.write_text(damaged)
        with pytest.raises(FileError, match=message):
            espresso.read_xml(path)
    with pytest.raises(FileError, match="does not exist"):
        espresso.read_xml(tmp_path / "none.xml")
    (tmp_path / "b.xml.gz").write_bytes(gzip.compress(text.encode())[:1000])
    with pytest.raises(FileError, match="not whole XML"):
        espresso.read_xml(tmp_path / "b.xml.gz")


def test_fixed_occupations_have_a_fermi_level_in_the_gap(tmp_path: Path) -> None:
    t = toy()
    filled = np.zeros_like(t.eigenvalues)
    filled[:, :3] = 1.0
    (tmp_path / "f.xml").write_text(xml_text(replace(t, occupations=filled), smearing="fixed"))
    run = espresso.read_xml(tmp_path / "f.xml")
    assert run.temperature == 0.0
    assert run.fermi_level == pytest.approx((t.eigenvalues[:, 2].max() + t.eigenvalues[:, 3].min()) / 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lsda": True}, "spin polarisation"),
        ({"paw": True}, "PAW"),
        ({"charge": 1.0}, "charged cell"),
        ({"extra_dft": "<hybrid><ecutfock>1</ecutfock></hybrid>"}, "hybrid functional"),
        ({"extra_dft": "<dftU/>"}, "DFT\\+U"),
        ({"extra_dft": "<vdW/>"}, "van der Waals"),
        ({"converged": False}, "did not converge"),
        ({"calculation": "nscf"}, "calculation='nscf'"),
    ],
)
def test_runs_that_no_snapshot_can_hold_are_refused_by_name(
    tmp_path: Path, options: dict, message: str
) -> None:
    write_run(tmp_path / "r", toy(), **options)
    with pytest.raises(InputError, match=message):
        from_run(tmp_path / "r", tmp_path / "a.h5")
    assert not (tmp_path / "a.h5").exists()


@pytest.mark.parametrize("smearing", ["mp", "mv", "gaussian"])
def test_other_smearings_are_adopted_without_the_energies_that_hang_on_them(
    tmp_path: Path, smearing: str
) -> None:
    t = toy(temperature=300.0)
    write_run(tmp_path / "r", t, smearing=smearing)
    s = from_run(tmp_path / "r", tmp_path / "a.h5", sigma=0.5, energies=(-14.0, 30.0, 0.5))
    assert s.temperature == 0.0 and set(s.energies) == {"hartree", "xc", "vxc_rho", "ewald"}
    assert "no electronic temperature" in s.provenance["occupations"]
    write_run(tmp_path / "fd", t)
    same = from_run(tmp_path / "fd", tmp_path / "b.h5", sigma=0.5, energies=(-14.0, 30.0, 0.5))
    assert same.temperature == pytest.approx(300.0) and "total_free" in same.energies
    np.testing.assert_array_equal(s.read_ldos(), same.read_ldos())
    np.testing.assert_array_equal(s.density, same.density)


@pytest.mark.parametrize("gamma", [False, True])
@pytest.mark.parametrize("ending", ["dat", "hdf5"])
def test_charge_density(tmp_path: Path, gamma: bool, ending: str) -> None:
    t = toy(gamma=gamma)
    run = _run(tmp_path, t)
    write_density(tmp_path / f"charge-density.{ending}", t.density(), gamma)
    density = espresso.read_charge_density(tmp_path, run.grid)
    # the writer drops the waves at the edge of even axes, as QE's sphere does; the toy has none there
    np.testing.assert_allclose(density, t.density(), atol=1e-12)
    assert density.sum() * run.grid.point_volume == pytest.approx(6.0, abs=1e-9)


def test_damaged_charge_density(tmp_path: Path) -> None:
    t = toy()
    run = _run(tmp_path, t)
    path = tmp_path / "charge-density.dat"
    with pytest.raises(FileError, match="no charge-density"):
        espresso.read_charge_density(tmp_path, run.grid)
    write_density(path, t.density(), False)
    whole = path.read_bytes()
    for size in (0, 10, 100, len(whole) - 3):
        path.write_bytes(whole[:size])
        with pytest.raises(FileError, match="truncated"):
            espresso.read_charge_density(tmp_path, run.grid)
    path.write_bytes(whole)
    with pytest.raises(FileError, match="do not fit the grid"):
        espresso.read_charge_density(tmp_path, replace(run, fft_shape=(6, 6, 6)).grid)
    write_density(path, t.density() * np.nan, False)
    with pytest.raises(FileError, match="not finite"):
        espresso.read_charge_density(tmp_path, run.grid)
    write_density(path, t.density(), False, n_spin=2)
    with pytest.raises(FileError, match="spin-polarised"):
        espresso.read_charge_density(tmp_path, run.grid)


@pytest.mark.parametrize("gamma", [False, True])
@pytest.mark.parametrize("hdf5", [False, True])
def test_ldos_from_wavefunctions_is_the_plain_sum(tmp_path: Path, gamma: bool, hdf5: bool) -> None:
    t = toy(gamma=gamma)
    save = write_run(tmp_path, t, hdf5=hdf5)
    run = espresso.read_xml(save / "data-file-schema.xml")
    expected = t.ldos(ENERGIES, gaussian(0.5))
    for options in ({}, {"density": t.density()}, {"memory": 4 * 120 * 82 * 2}):
        blocks = list(wavefunctions.ldos_blocks(run, save, ENERGIES, 0.5, **options))
        assert len(blocks) == (5 if "memory" in options else 1)
        ldos = np.concatenate(blocks)
        np.testing.assert_allclose(ldos, expected, atol=3e-6 * expected.max())
    dos = ldos.sum(axis=(0, 1, 2), dtype=float) * run.grid.point_volume
    np.testing.assert_allclose(dos, run.density_of_states(ENERGIES, "gaussian", 0.5), atol=1e-5)
    physical = np.concatenate(list(wavefunctions.ldos_blocks(run, save, ENERGIES, 0.3, kernel="fermi-dirac")))
    np.testing.assert_allclose(physical, t.ldos(ENERGIES, fermi_dirac(0.3)), atol=3e-6 * physical.max())


def test_a_strided_ldos_has_exactly_the_values_of_the_whole(tmp_path: Path) -> None:
    """Even where the coarse grid cannot hold the waves: they fold onto each other."""
    t = toy(shape=(9, 12, 12))
    save = write_run(tmp_path, t)
    run = espresso.read_xml(save / "data-file-schema.xml")
    expected = t.ldos(ENERGIES, gaussian(0.5))[::3, ::3, ::3]
    ldos = np.concatenate(list(wavefunctions.ldos_blocks(run, save, ENERGIES, 0.5, stride=3)))
    np.testing.assert_allclose(ldos, expected, atol=3e-6 * expected.max())
    with pytest.raises(InputError, match="does not divide"):
        list(wavefunctions.ldos_blocks(run, save, ENERGIES, 0.5, stride=2))


def test_damaged_or_foreign_wavefunctions(tmp_path: Path) -> None:
    t = toy()
    save = write_run(tmp_path, t)
    run = espresso.read_xml(save / "data-file-schema.xml")
    path = save / "wfc2.dat"
    whole = path.read_bytes()

    def fails(message: str, **options: object) -> None:
        with pytest.raises(FileError, match=message):
            list(wavefunctions.ldos_blocks(run, save, ENERGIES, 0.5, **options))  # type: ignore[arg-type]

    for size in (0, 30, 700, len(whole) - 5):
        path.write_bytes(whole[:size])
        fails("wfc2.dat is truncated")
    path.unlink()
    fails("no wfc2.dat or wfc2.hdf5")
    write_wavefunctions(path, toy(n_bands=7), 1)
    fails("has 7 bands.*the XML has 8 bands.*another run")
    broken = toy()
    broken.coefficients[1][2, 3] = np.nan
    write_wavefunctions(path, broken, 1)
    fails("not finite")
    for k in range(3):
        write_wavefunctions(save / f"wfc{k + 1}.dat", toy(seed=8), k)
    fails("density of the wavefunctions differs", density=t.density())


def test_symmetry_reduced_kpoints(tmp_path: Path) -> None:
    """The LDOS of one k-point, averaged over operations in either of QE's possible conventions."""
    atoms = Atoms("Al", cell=np.diag([3.0, 3.0, 4.0]), pbc=True)
    t = toy(atoms, shape=(8, 8, 8))
    turn = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    rotations = np.array([np.linalg.matrix_power(turn, n) for n in range(4)])
    plain = t.ldos(ENERGIES, gaussian(0.5))
    expected = np.zeros_like(plain)
    ijk = np.stack(np.meshgrid(*[np.arange(8)] * 3, indexing="ij"), axis=-1)
    for r in rotations:
        image = (ijk @ r.T) % 8
        expected += plain[image[..., 0], image[..., 1], image[..., 2]] / 4
    save = write_run(tmp_path, t)
    run = espresso.read_xml(save / "data-file-schema.xml")
    assert np.abs(plain - expected).max() > 0.01 * plain.max()  # the average does something
    for written in (rotations, rotations.transpose(0, 2, 1)):
        sym = replace(run, symmetries=(written, np.zeros((4, 3))))
        ldos = np.concatenate(list(wavefunctions.ldos_blocks(sym, save, ENERGIES, 0.5)))
        np.testing.assert_allclose(ldos, expected, atol=3e-6 * plain.max())


def test_symmetries_with_translations_find_their_sign(tmp_path: Path) -> None:
    """A glide that maps the two atoms onto each other only with the right sign of its translation."""
    atoms = Atoms("Al2", scaled_positions=[[0.1, 0.2, 0.3], [0.1, -0.2, 0.55]], cell=[3, 3.5, 4], pbc=True)
    run = espresso.read_xml(write_run(tmp_path, toy(atoms, shape=(8, 8, 8))) / "data-file-schema.xml")
    mirror = np.diag([1, -1, 1])
    atoms.positions[1] = [0.3, -0.7, 2.2]
    for sign in (1, -1):
        shifts = np.array([[0, 0, 0], [0, 0, sign * 0.25]])
        one_way = replace(run, symmetries=(np.array([np.eye(3, dtype=int), mirror]), shifts))
        # the square of the glide is a translation by 1/2: not a symmetry of this pair, so neither sign is
        with pytest.raises(FileError, match="nosym"):
            list(wavefunctions.ldos_blocks(one_way, run.path.parent, ENERGIES, 0.5))
    half = Atoms("Al2", scaled_positions=[[0.1, 0.2, 0.3], [0.1, -0.2, 0.8]], cell=[3, 3.5, 4], pbc=True)
    t = toy(half, shape=(8, 8, 8))
    save = write_run(tmp_path / "half", t)
    run = espresso.read_xml(save / "data-file-schema.xml")
    plain = t.ldos(ENERGIES, gaussian(0.5))
    image = plain[:, (-np.arange(8)) % 8][:, :, (np.arange(8) + 4) % 8]
    shifts = np.array([[0, 0, 0], [0, 0, 0.5]])
    glide = replace(run, symmetries=(np.array([np.eye(3, dtype=int), mirror]), shifts))
    both = np.concatenate(list(wavefunctions.ldos_blocks(glide, save, ENERGIES, 0.5)))
    np.testing.assert_allclose(both, (plain + image) / 2, atol=3e-6 * plain.max())
    with pytest.raises(FileError, match="does not map the grid"):
        odd = replace(glide, fft_shape=(8, 8, 9))
        list(wavefunctions.ldos_blocks(odd, save, ENERGIES, 0.5))


def test_snapshot_from_wavefunctions(tmp_path: Path) -> None:
    t = toy()
    write_run(tmp_path / "al2", t)
    s = from_run(tmp_path / "al2", tmp_path / "a.h5", sigma=0.4, energies=AXIS, keep_bits=None)
    assert s.name == "al2" and s.kernel == "gaussian" and s.sigma == 0.4 and s.temperature == 2000.0
    expected = t.ldos(ENERGIES, gaussian(0.4))
    np.testing.assert_allclose(s.read_ldos().reshape(expected.shape), expected, atol=3e-6 * expected.max())
    np.testing.assert_allclose(s.density, t.density(), atol=1e-12)
    assert s.complete_to == pytest.approx(t.eigenvalues[:, -1].min() - 0.8)
    assert s.pseudopotentials["Al"].z_valence == 3.0
    assert s.provenance["ldos_from"] == "wavefunctions" and s.provenance["kpoints"][:3] == [2, 2, 1]
    json.dumps(s.provenance)
    # the .save folder may be named instead, and a stride asked for
    u = from_run(
        tmp_path / "al2/tmp/malax.save", tmp_path / "b.h5", sigma=0.4, energies=AXIS, stride=1, name="x"
    )
    assert u.name == "x" and u.energies == s.energies


@pytest.mark.parametrize("kernel", [gaussian, fermi_dirac])
def test_snapshot_from_cubes_measures_the_kernel(tmp_path: Path, kernel: Callable) -> None:
    """pp.x up to 7.1 takes the kernel from the smearing, not from what was asked for."""
    t = toy()
    save = write_run(tmp_path / "r", t)
    for path in save.glob("wfc*"):
        path.unlink()
    wide = np.arange(-14.0, 24.01, 0.5)
    write_cubes(tmp_path / "r", t, wide, 0.5, kernel)
    s = from_run(tmp_path / "r", tmp_path / "a.h5", keep_bits=None)
    name, widths, variance = (
        ("gaussian", 2, 0.125) if kernel is gaussian else ("fermi-dirac", 6, np.pi**2 * 0.25 / 3)
    )
    assert s.kernel == name and s.sigma == 0.5 and s.broadening_variance == pytest.approx(variance)
    assert s.complete_to == pytest.approx(t.eigenvalues[:, -1].min() - widths * 0.5)
    expected = t.ldos(wide, kernel(0.5))
    np.testing.assert_allclose(s.read_ldos().reshape(expected.shape), expected, rtol=2e-4, atol=1e-9)


def test_cubes_that_do_not_belong_to_the_run(tmp_path: Path) -> None:
    t = toy()
    write_run(tmp_path / "r", t)
    wide = np.arange(-14.0, 24.01, 0.5)
    paths = write_cubes(tmp_path / "r", t, wide, 0.5, gaussian)
    with pytest.raises(FileError, match="differs from that of the eigenvalues.*is sigma right"):
        from_run(tmp_path / "r", tmp_path / "a.h5", sigma=0.4)
    (tmp_path / "r/pp.in").write_text("&inputpp plot_num=3, emin=-14, emax=30.0, delta_e=0.5 /")
    with pytest.raises(FileError, match="ends here.*asks for 30 eV"):
        from_run(tmp_path / "r", tmp_path / "a.h5")
    (tmp_path / "r/pp.in").unlink()
    paths[20].unlink()
    with pytest.raises(FileError, match="LDOS cube 021 is missing"):
        from_run(tmp_path / "r", tmp_path / "a.h5")
    assert not (tmp_path / "a.h5").exists()


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    def fails(error: type[Exception], message: str, where: str = "r", **options: object) -> None:
        with pytest.raises(error, match=message):
            from_run(tmp_path / where, tmp_path / "a.h5", **{"energies": AXIS, "sigma": 0.4, **options})  # type: ignore[arg-type]
        assert not (tmp_path / "a.h5").exists()

    fails(FileError, "is not a folder")
    (tmp_path / "r").mkdir()
    fails(FileError, "no finished pw.x run")
    save = write_run(tmp_path / "r", toy())
    fails(FileError, "no LDOS cubes", ldos="cubes")
    fails(InputError, "sigma=0.1 eV is below", sigma=0.1)
    fails(InputError, "above the lowest states: start at -", energies=(2.0, 16.0, 0.1))
    fails(InputError, "must be positive and divide", energies=(2.0, 16.0, 0.3))
    (save / "charge-density.dat").rename(save / "x")
    fails(FileError, "no charge-density.dat")
    (save / "x").rename(save / "charge-density.dat")
    (save / "wfc3.dat").unlink()
    fails(FileError, "no wfc3.dat")
    (save / "Al.pbe-nc.UPF").unlink()
    fails(FileError, "no pseudopotential Al.pbe-nc.UPF")
    write_run(tmp_path / "r", toy(), prefix="other")
    fails(FileError, "has 2 runs")


def _run(folder: Path, t) -> espresso.PwRun:  # type: ignore[no-untyped-def]
    (folder / "t.xml").write_text(xml_text(t))
    return espresso.read_xml(folder / "t.xml")
