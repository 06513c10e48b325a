"""Results: the file, the checks on reading it, cube and plots."""

from __future__ import annotations

import dataclasses
import errno
import json

import h5py
import numpy as np
import pytest
from fakes import make_atoms, make_snapshot
from models import tiny_model

import malax
from malax.errors import FileError, InputError, MachineError
from malax.grid import Grid
from malax.io import files, hdf5, parallel
from malax.io.cube import read_cube
from malax.io.snapshot import Snapshot
from malax.preview import preview
from malax.result import Result
from malax.units import BOHR

SHAPE = (6, 7, 8)


@pytest.fixture(scope="module")
def result() -> Result:
    with pytest.warns(malax.emulator.ModelDomainWarning, match="coarser"):
        return tiny_model().predict(make_atoms(0), grid=SHAPE, ldos=True)


def test_round_trip(result, tmp_path):
    again = malax.load(result.save(tmp_path / "r.h5"))
    assert isinstance(again, Result)
    assert again.energies == result.energies
    for name in ("fermi_level", "n_electrons", "temperature", "timings", "provenance", "notes", "warnings"):
        assert getattr(again, name) == getattr(result, name), name
    for name in ("dos", "energy_grid", "density", "ldos"):
        np.testing.assert_array_equal(getattr(again, name), getattr(result, name))
    assert again.grid.shape == SHAPE
    np.testing.assert_array_equal(again.atoms.positions, result.atoms.positions)
    assert again.atoms.get_chemical_formula() == "Al4" and again.atoms.pbc.all()
    assert again.is_whole and again.gather() is again


def test_every_dataset_has_its_unit(result, tmp_path):
    units = {}
    with h5py.File(result.save(tmp_path / "r.h5")) as file:
        file.visititems(
            lambda n, o: units.update({n: o.attrs["unit"]}) if isinstance(o, h5py.Dataset) else None
        )
        # a slab can be read alone
        assert file["density"].chunks == (1, *SHAPE[1:])
        assert file["ldos"].chunks == (1, *SHAPE[1:], 27)
    assert units["density"] == "1/A^3" and units["ldos"] == "1/(eV A^3)" and units["dos"] == "1/eV"
    assert units["energies/entropy_term"] == units["fermi_level"] == "eV"


def test_json_holds_what_is_promised(result):
    value = json.loads(json.dumps(result.as_json()))
    assert {"energies", "fermi_level", "n_electrons", "temperature", "grid", "timings", "provenance"} <= set(
        value
    )
    assert value["energies"]["internal"] == pytest.approx(
        result.energies.total_free - result.energies.entropy_term
    )
    assert value["grid"] == list(SHAPE)
    assert len(value["provenance"]["model_sha256"]) == 64
    options = {"unbroaden": True, "descriptors": "native", "precision": "float32", "ldos": True}
    assert value["provenance"]["options"] == options
    assert value["provenance"]["peak_memory_bytes"] > 1e8


def test_load_tells_snapshots_from_results(tmp_path):
    snapshot = make_snapshot(tmp_path / "s.h5")
    assert isinstance(malax.load(snapshot.path), Snapshot)
    with pytest.raises(FileError, match="malax snapshot; a malax result is needed"):
        Result.load(snapshot.path)


def test_bad_files(result, tmp_path):
    whole = result.save(tmp_path / "r.h5").read_bytes()
    with pytest.raises(FileError, match="does not exist"):
        malax.load(tmp_path / "none.h5")
    for keep in (0, 100, len(whole) // 2):
        (tmp_path / "cut.h5").write_bytes(whole[:keep])
        with pytest.raises(FileError):
            malax.load(tmp_path / "cut.h5")
    for name in ("density", "dos", "fermi_level"):
        path = result.save(tmp_path / "less.h5")
        with h5py.File(path, "r+") as file:
            del file[name]
        with pytest.raises(FileError, match="not a whole malax result"):
            malax.load(path)
    path = result.save(tmp_path / "nan.h5")
    with h5py.File(path, "r+") as file:
        file["density"][0, 0, 0] = np.nan
    with pytest.raises(FileError, match="NaN"):
        malax.load(path)


def test_nothing_is_overwritten_unasked(result, tmp_path):
    path = result.save(tmp_path / "r.h5", overwrite=False)
    with pytest.raises(FileError, match="exists"):
        result.save(path, overwrite=False)
    result.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["r.h5"]


def test_a_full_disk_leaves_nothing_half_written(result, tmp_path, monkeypatch):
    path = result.save(tmp_path / "r.h5")
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(MachineError, match="the disk is full"):
        result.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["r.h5"]


def test_interrupted_write(result, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(parallel.os, "pwrite", interrupt)
    with pytest.raises(KeyboardInterrupt):
        result.save(tmp_path / "r.h5")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cuts", [[], [1], [7], [55, 56, 57], [56, 112], [3, 200, 201, 330]])
@pytest.mark.parametrize("largest", [parallel._LARGEST_CHUNK, 300])
def test_space_is_filled_from_parts_that_end_anywhere(tmp_path, monkeypatch, cuts, largest):
    monkeypatch.setattr(parallel, "_LARGEST_CHUNK", largest)
    values = np.random.default_rng(0).random((336, 2))
    path = tmp_path / "p.h5"
    with h5py.File(path, "w") as file:
        places = parallel.allocate(file, "x", (*SHAPE, 2), "<f8", "1")
        assert len(places) == 6 * (1 if largest > 1000 else 7)
    with open(path, "r+b") as file:
        for start, part in zip([0, *cuts], np.split(values, cuts), strict=True):
            for offset, data in parallel.field_pieces(part, start, 336, places):
                file.seek(offset)
                file.write(data)
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["x"][()], values.reshape(*SHAPE, 2))
        for start, stop in ((0, 336), (5, 5), (50, 60), (300, 336)):
            np.testing.assert_array_equal(hdf5.flat_range(file["x"], start, stop), values[start:stop])


@pytest.mark.parametrize("points", [96, 7, 4, 2])
def test_preview_keeps_the_electrons(result, points):
    small = preview(result, points)
    expected = tuple(min(n, max(8, round(n * points / 8))) for n in SHAPE)
    assert small.grid.shape == (SHAPE if points >= 8 else expected)
    assert small.density.shape == small.grid.shape
    electrons = result.density.sum() * result.grid.point_volume
    assert small.density.sum() * small.grid.point_volume == pytest.approx(electrons, rel=1e-12)


def test_preview_is_the_smooth_part(result):
    x = np.arange(24)[:, None, None] / 24 + np.zeros((24, 24, 24))
    waves = 1 + 0.3 * np.cos(2 * np.pi * x)
    fine = dataclasses.replace(
        result,
        grid=Grid(result.grid.cell, (24, 24, 24)),
        density=waves + 0.2 * np.cos(2 * np.pi * 11 * x),
        ldos=None,
    )
    np.testing.assert_allclose(preview(fine, 12).density, waves[::2, ::2, ::2], atol=1e-13)


def test_cube(result, tmp_path):
    cube = read_cube(result.write_cube(tmp_path / "d.cube"))
    assert cube.grid.shape == SHAPE
    # 1/bohr^3, as other programs expect
    np.testing.assert_allclose(cube.values, result.density * BOHR**3, rtol=1e-8)
    np.testing.assert_allclose(cube.atoms.positions, result.atoms.positions, atol=1e-6)
    assert "1/bohr^3" in cube.comments[0]


def test_plots(result):
    import matplotlib

    matplotlib.use("Agg")
    axes = result.plot_dos()
    line = axes.get_lines()[0]
    np.testing.assert_allclose(line.get_ydata(), result.dos / 4)
    assert axes.get_lines()[1].get_xdata()[0] == result.fermi_level
    axes = result.plot_slice("x", 0.5)
    image = axes.collections[0].get_array()
    np.testing.assert_allclose(np.asarray(image).reshape(8, 9)[:-1, :-1], result.density[3])
    with pytest.raises(InputError, match="'x', 'y' or 'z'"):
        result.plot_slice("w")
    with pytest.raises(InputError, match="fraction"):
        result.plot_slice("z", float("nan"))


def test_an_ldos_in_a_file_leaves_memory_while_it_is_copied(tmp_path, monkeypatch):
    """The pieces are the same whether pages are given back after each of them or never."""
    values = np.memmap(tmp_path / "ldos", dtype=np.float32, mode="w+", shape=(6 * 4096, 16))
    values[:] = np.random.default_rng(0).random(values.shape)
    wanted = values.tobytes()
    values.flush()
    monkeypatch.setattr(parallel, "_BLOCK", 1 << 17)

    def mapped() -> int:
        """Bytes of the file that are in this process's memory."""
        lines = open("/proc/self/smaps").read().split(str(tmp_path / "ldos"))[1].splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("Rss:")).split()[1])

    before = mapped()
    places = np.arange(6) * values.nbytes // 6
    found, most = b"", 0
    for i, (where, piece) in enumerate(parallel.field_pieces(values, 0, len(values), places)):
        assert where == len(found)
        found += bytes(piece)
        most = max(most, mapped()) if i else 0  # the first piece finds all pages there
    assert found == wanted
    assert before == values.nbytes and most <= values.nbytes / 3
