"""The snapshot file: round trip, partial reads, refusals, interrupted writes, the shared data."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from qe_files import UPF, Toy, gaussian, toy

from malax.errors import FileError, InputError
from malax.generate import from_shared
from malax.io.hdf5 import round_mantissa
from malax.io.snapshot import ENERGY_TERMS, Snapshot, save_snapshot
from malax.io.upf import read_upf

ENERGIES = np.arange(-4.0, 20.01, 0.25)


@pytest.fixture(scope="module")
def made() -> tuple[Toy, np.ndarray, Snapshot]:
    t = toy(shape=(6, 8, 9))
    ldos = t.ldos(ENERGIES, gaussian(0.4)).astype(np.float32)
    snapshot = Snapshot(
        name="toy",
        atoms=t.atoms,
        energy_grid=ENERGIES,
        kernel="gaussian",
        sigma=0.4,
        complete_to=9.5,
        temperature=2000.0,
        n_electrons=6.0,
        fermi_level=t.fermi,
        energies={term: -1.5 - i for i, term in enumerate(ENERGY_TERMS)},
        density=t.density(),
        ldos_shape=(6, 8, 9),
        pseudopotentials={"Al": read_upf(UPF)},
        xc="PBE",
        ecutrho=1088.0,
        forces=np.arange(6.0).reshape(2, 3),
        stress=np.arange(6.0),
        provenance={"code": "toy", "kpoints": [1, 2, 3]},
    )
    return t, ldos, snapshot


def slabs(ldos: np.ndarray, n: int = 2) -> Iterator[np.ndarray]:
    for start in range(0, len(ldos), n):
        yield ldos[start : start + n]


def test_round_trip(tmp_path: Path, made) -> None:
    t, ldos, snapshot = made
    s = save_snapshot(tmp_path / "a.h5", snapshot, slabs(ldos), keep_bits=None)
    scalars = (
        "name kernel sigma complete_to temperature n_electrons fermi_level energies ldos_shape xc ecutrho"
    )
    for key in (*scalars.split(), "provenance"):
        assert getattr(s, key) == getattr(snapshot, key), key
    for key in ("energy_grid", "density", "forces", "stress"):
        np.testing.assert_array_equal(getattr(s, key), getattr(snapshot, key))
    np.testing.assert_array_equal(s.atoms.positions, t.atoms.positions)
    np.testing.assert_array_equal(s.atoms.cell.array, t.atoms.cell.array)
    assert s.atoms.pbc.all() and list(s.atoms.symbols) == ["Al", "Al"]
    assert s.grid.shape == (6, 8, 9) and s.density_grid.shape == (6, 8, 9)
    assert s.broadening_variance == pytest.approx(0.08)
    ours, theirs = s.pseudopotentials["Al"], snapshot.pseudopotentials["Al"]
    assert ours.sha256 == theirs.sha256 and ours.z_valence == theirs.z_valence
    np.testing.assert_array_equal(ours.core_density, theirs.core_density)
    np.testing.assert_array_equal(s.read_ldos(), ldos.reshape(-1, len(ENERGIES)))
    expected = ldos.sum(axis=(0, 1, 2), dtype=float) * s.grid.point_volume
    np.testing.assert_allclose(s.dos, expected, rtol=1e-12)


def test_any_flat_range_is_read_alone(tmp_path: Path, made, monkeypatch: pytest.MonkeyPatch) -> None:
    _, ldos, snapshot = made
    monkeypatch.setattr("malax.io.snapshot.CHUNK_BYTES", 20 * 4 * len(ENERGIES))
    s = save_snapshot(tmp_path / "a.h5", snapshot, slabs(ldos, 4), keep_bits=None)
    with h5py.File(s.path) as file:
        assert file["ldos"].chunks == (20, len(ENERGIES))
    flat = ldos.reshape(-1, len(ENERGIES))
    for start, stop in ((0, 1), (17, 65), (431, 432), (100, 100), (0, 432)):
        part = s.read_ldos(start, stop)
        assert part.dtype == np.float32 and part.flags.c_contiguous
        np.testing.assert_array_equal(part, flat[start:stop])


def test_units_are_attributes(tmp_path: Path, made) -> None:
    _, ldos, snapshot = made
    s = save_snapshot(tmp_path / "a.h5", snapshot, [ldos])
    with h5py.File(s.path) as file:
        assert file.attrs["format"] == "malax snapshot" and file.attrs["format_version"] == 1
        found = {}
        file.visititems(
            lambda name, item: (
                found.update({name: item.attrs.get("unit")}) if isinstance(item, h5py.Dataset) else None
            )
        )
    assert found["ldos"] == "1/(eV A^3)" and found["density"] == "1/A^3" and found["stress"] == "eV/A^3"
    assert all(unit for name, unit in found.items() if not name.startswith("pseudopotentials/"))


def test_rounding_is_relative_and_to_nearest(tmp_path: Path, made) -> None:
    _, ldos, snapshot = made
    s = save_snapshot(tmp_path / "a.h5", snapshot, [ldos], keep_bits=13)
    exact = save_snapshot(tmp_path / "b.h5", snapshot, [ldos], keep_bits=None)
    rounded, flat = s.read_ldos(), ldos.reshape(-1, len(ENERGIES))
    normal = flat > np.finfo(np.float32).tiny
    relative = rounded[normal] / flat[normal].astype(float) - 1
    assert 2e-5 < np.abs(relative).max() <= 2.0**-14 and abs(relative.mean()) < 1e-6
    assert (tmp_path / "a.h5").stat().st_size < 0.8 * exact.path.stat().st_size
    # 1 + 2^-14 lies between 1 and 1 + 2^-13: half to even
    values = np.array([1, 1 + 2.0**-14, 1 + 3 * 2.0**-14, -1 - 2.0**-13, 0.0], dtype=np.float32)
    np.testing.assert_array_equal(round_mantissa(values, 13), [1, 1, 1 + 2 * 2.0**-13, -1 - 2.0**-13, 0])


def test_the_same_data_gives_the_same_hash(tmp_path: Path, made) -> None:
    _, ldos, snapshot = made
    a = save_snapshot(tmp_path / "a.h5", snapshot, [ldos])
    b = save_snapshot(tmp_path / "b.h5", snapshot, [ldos])
    assert a.sha256 == b.sha256
    c = save_snapshot(tmp_path / "c.h5", replace(snapshot, temperature=2001.0), [ldos])
    assert c.sha256 != a.sha256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fermi_level": np.nan}, "not finite.*Fermi level"),
        ({"forces": np.full((2, 3), np.inf)}, "not finite: forces"),
        ({"forces": np.zeros((3, 3))}, "forces have shape"),
        ({"kernel": "lorentz"}, "kernel 'lorentz'"),
        ({"sigma": 0.0}, "kernel 'gaussian' of width 0.0"),
        ({"energies": {"total": 1.0}}, "unknown energy terms"),
        ({"energy_grid": ENERGIES**3}, "evenly spaced"),
        ({"energy_grid": ENERGIES[::-1]}, "ascending"),
        ({"pseudopotentials": {}}, "no pseudopotential for Al"),
        ({"n_electrons": 5.0}, "integrates to 6.0000 electrons"),
        ({"fermi_level": 25.0}, "outside the energy grid"),
        ({"fermi_level": 3.0}, "below the Fermi level holds"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, made, change: dict, message: str) -> None:
    _, ldos, snapshot = made
    with pytest.raises(InputError, match=message):
        save_snapshot(tmp_path / "a.h5", replace(snapshot, **change), [ldos])
    assert list(tmp_path.iterdir()) == []


def test_ldos_and_density_that_do_not_fit_are_refused(tmp_path: Path, made) -> None:
    t, ldos, snapshot = made
    nan = ldos.copy()
    nan[3, 2, 1, 0] = np.nan
    bigger = t.atoms.copy()
    bigger.set_cell(bigger.cell.array * 1.1, scale_atoms=True)
    for changed, blocks, message in (
        (snapshot, [nan], "not finite"),
        (snapshot, [ldos, ldos[:1]], "more than the 432 points"),
        (snapshot, [ldos[:5]], "has 360 points, its grid"),
        (snapshot, [ldos * 14.4], "the LDOS below the Fermi level holds"),
        (replace(snapshot, atoms=bigger), [ldos], "grid .* or unit does not match the cell"),
        (replace(snapshot, atoms=bigger, density=None), [ldos], "cell or unit is wrong"),
        (replace(snapshot, density=t.density()[:5]), [ldos], "does not match the cell"),
    ):
        with pytest.raises(InputError, match=message):
            save_snapshot(tmp_path / "a.h5", changed, blocks)
        assert list(tmp_path.iterdir()) == []


def test_damaged_files(tmp_path: Path, made) -> None:
    _, ldos, snapshot = made
    path = save_snapshot(tmp_path / "a.h5", snapshot, [ldos]).path
    assert path is not None
    whole = path.read_bytes()

    def fails(message: str) -> None:
        with pytest.raises(FileError, match=message):
            Snapshot.load(path)

    path.write_bytes(whole[: len(whole) // 2])
    fails("truncated")
    path.write_bytes(b"")
    fails("not an HDF5 file")
    path.write_text("hello")
    fails("not an HDF5 file")
    path.unlink()
    fails("does not exist")
    path.mkdir()
    fails("does not exist or is not a file")
    path.rmdir()
    with h5py.File(path, "w") as file:
        file.attrs["format"] = "malax result"
    fails("is malax result; a malax snapshot is needed")
    with h5py.File(path, "w") as file:
        file["x"] = 1
    fails("another program")
    for change, message in (
        (lambda f: f.attrs.update(format_version=99), "format version 99.*update malax"),
        (lambda f: f.pop("fermi_level"), "not a whole malax snapshot"),
        (lambda f: f["ldos"].attrs.update(grid=[6, 8, 10]), "do not match"),
        (lambda f: f["density"].write_direct(np.full((6, 8, 9), np.nan)), "not finite: density"),
    ):
        path.write_bytes(whole)
        with h5py.File(path, "r+") as file:
            change(file)
        fails(message)


def test_nan_and_damage_in_the_ldos_are_found_when_read(tmp_path: Path, made) -> None:
    _, ldos, snapshot = made
    s = save_snapshot(tmp_path / "a.h5", snapshot, [ldos])
    with h5py.File(s.path, "r+") as file:
        file["ldos"][100, 5] = np.nan
    assert np.isfinite(s.read_ldos(0, 100)).all()
    with pytest.raises(FileError, match="not finite"):
        s.read_ldos(90, 110)
    with h5py.File(s.path, "r+") as file:
        offset, size = file["ldos"].id.get_chunk_info(0).byte_offset, file["ldos"].id.get_chunk_info(0).size
    with open(s.path, "r+b") as raw:
        raw.seek(offset)
        raw.write(b"\xff" * size)
    with pytest.raises(FileError, match="cannot read the LDOS"):
        s.read_ldos()
    s.path.unlink()
    with pytest.raises(FileError, match="cannot read the LDOS"):
        s.read_ldos()
    with pytest.raises(InputError, match="not been written"):
        snapshot.read_ldos()


def test_a_failed_or_interrupted_write_leaves_what_was_there(tmp_path: Path, made) -> None:
    _, ldos, snapshot = made
    path = tmp_path / "a.h5"
    path.write_text("precious")

    def interrupted() -> Iterator[np.ndarray]:
        yield ldos[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_snapshot(path, snapshot, interrupted())
    with pytest.raises(FileError, match="exists"):
        save_snapshot(path, snapshot, [ldos], overwrite=False)
    with pytest.raises(FileError, match="does not exist"):
        save_snapshot(tmp_path / "no/a.h5", snapshot, [ldos])
    assert path.read_text() == "precious" and list(tmp_path.iterdir()) == [path]


FULL_DISK = """
import resource, signal, sys
sys.path.insert(0, {tests!r})
from malax.errors import MachineError
from malax.generate import from_run
from qe_files import toy, write_run
write_run({folder!r} / Path("r"), toy(shape=(12, 12, 12)))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    from_run({folder!r} / Path("r"), {folder!r} / Path("a.h5"), sigma=0.4, energies=(-4.0, 20.0, 0.25))
except MachineError as error:
    print("MACHINE", error)
"""


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    """A file size limit stands for a full disk: writes fail part of the way."""
    code = FULL_DISK.format(tests=str(Path(__file__).parent), folder="@").replace(
        "'@'", f"Path({str(tmp_path)!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", "from pathlib import Path\n" + code],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("MACHINE cannot write") and done.stdout.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r"]


def test_shared_data(shared_al: Path, tmp_path: Path) -> None:
    """The one documented call, on a whole-grid snapshot and on one whose LDOS is on every second point."""
    d = from_shared(shared_al / "d00", tmp_path / "d00.h5")
    with h5py.File(shared_al / "d00/ldos.h5") as file:
        np.testing.assert_array_equal(d.read_ldos(500, 600), file["ldos"][()].reshape(-1, 181)[500:600])
    assert (
        d.temperature == 298.0
        and d.n_electrons == 12.0
        and d.complete_to == pytest.approx(10.431007, abs=1e-6)
    )
    assert d.energies["total_free"] == pytest.approx(-233.70346343341706, abs=1e-9)
    assert d.energies["band"] == pytest.approx(41.233190982099295, abs=1e-9)
    assert d.energies["entropy_term"] == pytest.approx(-0.0028486112980199148, abs=1e-12)
    t = from_shared(shared_al / "t01", tmp_path / "t01.h5")
    assert t.ldos_shape == (24, 24, 24) and t.density_grid.shape == (48, 48, 48) and len(t.atoms) == 32
    assert t.provenance["ldos_stride"] == 2 and t.temperature == 933.0
    # QE's stress is that of the text output with the sign turned: pressure is positive there
    np.testing.assert_allclose(t.stress[0] * 160.21766, -6.764590449464187, rtol=1e-6)


def test_shared_data_with_a_file_missing_or_cut(shared_al: Path, tmp_path: Path) -> None:
    folder = tmp_path / "al" / "d00"
    shutil.copytree(shared_al / "d00", folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    with pytest.raises(FileError, match="no Al.pbe-nc.UPF"):
        from_shared(folder, tmp_path / "a.h5")
    shutil.copyfile(shared_al / "Al.pbe-nc.UPF", folder.parent / "Al.pbe-nc.UPF")
    ldos = (folder / "ldos.h5").read_bytes()
    (folder / "ldos.h5").write_bytes(ldos[:100000])
    with pytest.raises(FileError, match="ldos.h5"):
        from_shared(folder, tmp_path / "a.h5")
    (folder / "ldos.h5").write_bytes(ldos)
    (folder / "info.json").unlink()
    with pytest.raises(FileError, match="info.json is missing"):
        from_shared(folder, tmp_path / "a.h5")
    assert not (tmp_path / "a.h5").exists()
