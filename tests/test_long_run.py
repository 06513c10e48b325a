"""Runs that are ended and taken up again: the same numbers, and nothing done twice."""

from __future__ import annotations

import json
import signal
import time

import h5py
import numpy as np
import pytest
from ase import Atoms
from fakes import make_atoms
from models import tiny_model

from malax.comm import SerialComm
from malax.commands.console import _LogLines, duration
from malax.commands.predict_options import seconds
from malax.domain import Domain
from malax.emulator import Emulator
from malax.errors import InputError, MachineError, Stopped
from malax.grid import Grid
from malax.interruption import Interruption
from malax.long_run import LongRun
from malax.streaming import Chain, Clock
from malax.tiles import PairwiseSum, Tiles, tile_costs

QUIET = pytest.mark.filterwarnings("ignore::malax.checks.ModelDomainWarning")
SHAPE = (12, 13, 14)  # five tiles
ALONE = SerialComm()


class StopsAfter(Interruption):
    """Asks for the end after some tiles."""

    def __init__(self, tiles: int) -> None:
        super().__init__(ALONE)
        self.left = tiles

    def wanted(self) -> str | None:
        self.left -= 1
        return "the test" if self.left <= 0 else None


@pytest.fixture
def counted(monkeypatch) -> list[int]:
    """Rows that each network was asked about, tile by tile."""
    calls: list[int] = []
    whole = Chain._tile

    def asked(self, features, reducers, shape):
        calls.extend([len(features)] * len(reducers))
        return whole(self, features, reducers, shape)

    monkeypatch.setattr(Chain, "_tile", asked)
    return calls


def predict(model: Emulator, run: LongRun | None, kelvins=(950.0, 1000.0), ldos: bool = True):
    return model.predict_many(make_atoms(0), kelvins, SHAPE, ldos=ldos, long_run=run)


@QUIET
@pytest.mark.parametrize("after", [1, 2, 4])
def test_goes_on_with_the_same_numbers(tmp_path, counted, after):
    model = tiny_model()
    wanted = predict(model, None)
    whole = len(counted)
    counted.clear()
    with pytest.raises(
        Stopped, match=f"stopped by the test after {after} of 5 tiles; the same command goes on"
    ):
        predict(model, LongRun(ALONE, tmp_path / "t", StopsAfter(after)))
    first = len(counted)
    counted.clear()
    run = LongRun(ALONE, tmp_path / "t")
    found = predict(model, run)
    assert len(counted) == whole - first  # the first pass is remembered, too
    for a, b in zip(found, wanted, strict=True):
        assert a.energies == b.energies and a.fermi_level == b.fermi_level
        np.testing.assert_array_equal(a.density, b.density)
        np.testing.assert_array_equal(a.ldos, b.ldos)
        np.testing.assert_array_equal(a.dos, b.dos)
        assert f"{after} of 5 tiles were kept by a run that was ended" in a.notes
    run.clear()
    assert list(tmp_path.iterdir()) == []


@QUIET
@pytest.mark.parametrize("after, left", [(3, 2), (9, 3)])
def test_an_ensemble_goes_on(tmp_path, counted, after, left):
    """Ended in the main pass, and in that of the exact weights: members are kept as their mean is."""
    model = Emulator.combine([tiny_model(seed=seed) for seed in (0, 1)])
    n = model.network.n_features
    model.domain = Domain(np.full(n, 10.0), np.eye(n) / 10.0, 1.0)
    wanted = predict(model, None)
    assert wanted[0].spread is not None and 0 < wanted[0].outside < 1
    counted.clear()
    with pytest.raises(Stopped):
        predict(model, LongRun(ALONE, tmp_path / "t", StopsAfter(after), interval=0.0))
    counted.clear()
    found = predict(model, LongRun(ALONE, tmp_path / "t"))
    exact = 5 if after < 5 else 0
    assert len(counted) == 2 * (left + exact)
    for a, b in zip(found, wanted, strict=True):
        assert a.energies == b.energies and a.outside == b.outside
        assert a.spread.as_json() == b.spread.as_json()
        for name in ("density", "ldos", "dos"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        np.testing.assert_array_equal(a.spread.density_std, b.spread.density_std)
        np.testing.assert_array_equal(a.spread.dos_std, b.spread.dos_std)


@QUIET
def test_tiles_of_another_calculation_do_not_count(tmp_path, counted):
    model = tiny_model()
    with pytest.raises(Stopped):
        predict(model, LongRun(ALONE, tmp_path / "t", StopsAfter(3)))
    counted.clear()
    other = predict(model, LongRun(ALONE, tmp_path / "t"), kelvins=(1000.0,))[0]
    assert not any("kept" in note for note in other.notes)
    alone = model.predict(make_atoms(0), 1000.0, SHAPE)
    np.testing.assert_array_equal(other.density, alone.density)


@QUIET
@pytest.mark.parametrize("damage", ["cut values", "no values", "cut json", "no ldos"])
def test_damaged_tiles_do_not_count(tmp_path, damage):
    model = tiny_model()
    with pytest.raises(Stopped):
        predict(model, LongRun(ALONE, tmp_path / "t", StopsAfter(3)))
    values, said = tmp_path / "t" / "main.0.values", tmp_path / "t" / "main.0.json"
    if damage == "cut values":
        values.write_bytes(values.read_bytes()[:-8])
    elif damage == "no values":
        values.unlink()
    elif damage == "no ldos":
        (tmp_path / "t" / "main.0.ldos").unlink()
    else:
        said.write_text(said.read_text()[:50])
    found = predict(model, LongRun(ALONE, tmp_path / "t"))[0]
    wanted = predict(model, None)[0]
    np.testing.assert_array_equal(found.density, wanted.density)
    np.testing.assert_array_equal(found.ldos, wanted.ldos)


@QUIET
def test_a_saving_that_was_cut_off_is_dropped(tmp_path):
    model = tiny_model()
    with pytest.raises(Stopped):
        predict(model, LongRun(ALONE, tmp_path / "t", StopsAfter(2)))
    with open(tmp_path / "t" / "main.0.values", "ab") as file:
        file.write(b"x" * 1000)  # killed between the values and the count
    with pytest.raises(Stopped):
        predict(model, LongRun(ALONE, tmp_path / "t", StopsAfter(2)))
    found = predict(model, LongRun(ALONE, tmp_path / "t"))[0]
    np.testing.assert_array_equal(found.density, predict(model, None)[0].density)


@QUIET
def test_saved_now_and_then(tmp_path):
    run = LongRun(ALONE, tmp_path / "t", interval=0.0)
    predict(tiny_model(), run)
    assert json.loads((tmp_path / "t" / "main.0.json").read_text())["tiles"] == 5
    short = LongRun(ALONE, tmp_path / "s")
    predict(tiny_model(), short, ldos=False)
    assert not (tmp_path / "s").exists()  # nothing is written by what is quick


@QUIET
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signals(tmp_path, monkeypatch, number):
    interruption = Interruption(ALONE)
    before = signal.getsignal(number)
    whole = Chain._tile

    def signalled(self, *arguments):
        signal.raise_signal(number)
        return whole(self, *arguments)

    monkeypatch.setattr(Chain, "_tile", signalled)
    run = LongRun(ALONE, tmp_path / "t", interruption)
    run.begin("x")
    run.remember("first", np.zeros(1))
    with interruption.watch(), pytest.raises(Stopped) as stop:
        chain = Chain(tiny_model(), make_atoms(0), ALONE, "native", Clock(), run)
        chain.reduce(Grid(make_atoms(0).cell.array, SHAPE), np.zeros((0, 27)), name="main")
    assert f"stopped by {signal.Signals(number).name} after 1 of 5 tiles" in str(stop.value)
    assert stop.value.exit_code == 75
    assert signal.getsignal(number) == before
    with pytest.raises(Stopped), Interruption(ALONE).watch():
        signal.raise_signal(number)  # outside of the tiles there is nothing to wait for


def test_a_time_limit():
    interruption = Interruption(ALONE, max_time=0.01)
    time.sleep(0.02)
    with pytest.raises(Stopped, match="stopped by --max-time"):
        interruption.check()
    Interruption(ALONE, max_time=100.0).check()


@pytest.mark.parametrize(
    "text, value", [("90", 90), ("1:30", 90), ("2:00:01", 7201), ("1-00:00:00", 86400), ("0.5", 0.5)]
)
def test_times(text, value):
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "x", "0", "-5", "1:2:3:4", "1-5", "::"])
def test_no_times(text):
    with pytest.raises(InputError, match="--max-time"):
        seconds(text)


def test_remaining_time(monkeypatch):
    lines: list[str] = []
    clock = iter([0.0, 100.0, 120.0, 130.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    console = type("Console", (), {"print": lambda self, text, **_: lines.append(text)})()
    progress = _LogLines("predicting", console)
    progress(51, 101)  # a run that went on: 50 tiles were there
    progress(61, 101)
    progress(66, 101)
    assert lines == [
        "predicting: 50 %",
        "predicting: 60 %, 80 s left",
        "predicting: 65 %, 70 s left",
    ]
    assert [duration(s) for s in (5, 89, 600, 12000)] == ["5 s", "89 s", "10 min", "3 h 20 min"]


@pytest.mark.parametrize("cuts", [[], [1], [13, 13, 20], [5, 6, 7, 30], list(range(1, 37))])
def test_sums_do_not_depend_on_who_adds(cuts):
    rows = np.random.default_rng(0).normal(size=(37, 5)) * 10.0 ** np.arange(5)

    class Ranks(SerialComm):
        def __init__(self, trees: list[np.ndarray]) -> None:
            self.trees = trees

        def allgatherv(self, array: np.ndarray) -> np.ndarray:
            return np.concatenate(self.trees)

    def total(cuts: list[int]) -> np.ndarray:
        trees = []
        for tiles in np.split(np.arange(37), cuts):
            some = PairwiseSum(5)
            for tile in tiles:
                some.add(int(tile), rows[tile])
            assert len(some.trees) <= 12
            trees.append(some.trees)
        return PairwiseSum(5).total(Ranks(trees))

    np.testing.assert_array_equal(total(cuts), total([18]))
    np.testing.assert_allclose(total(cuts), rows.sum(axis=0), rtol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_tiles_are_dealt_out_by_cost(size):
    """All atoms in one corner of a large cell: the ranks there get fewer tiles."""
    cell = np.eye(3) * 80.0
    rng = np.random.default_rng(0)
    atoms = Atoms("Al4000", positions=rng.random((4000, 3)) * 20.0, cell=cell, pbc=True)
    grid = Grid(cell, (64, 64, 64))
    tiles = Tiles.of(grid)
    costs = tile_costs(tiles, grid, atoms, 4.7)
    assert costs.shape == (len(tiles),) and (costs >= tiles.size).all()
    assert costs[4] > 1.05 * costs[len(tiles) // 2]
    owned = [tiles.owned(type("C", (), {"rank": r, "size": size})(), costs) for r in range(size)]
    assert owned[0].start == 0 and owned[-1].stop == len(tiles)
    assert all(a.stop == b.start for a, b in zip(owned[:-1], owned[1:], strict=True))
    shares = [costs[list(o)].sum() for o in owned]
    assert max(shares) < costs.sum() / size + costs.max()


def test_a_uniform_structure_costs_the_same_everywhere():
    atoms = make_atoms(0).repeat(4)
    grid = Grid(atoms.cell.array, (40, 40, 40))
    tiles = Tiles.of(grid)
    costs = tile_costs(tiles, grid, atoms, 4.7) / tiles.size
    np.testing.assert_allclose(costs[:-1], 1 + 4 / 4.05**3 * 4 / 3 * np.pi * 4.7**3 / 240, rtol=0.05)


@QUIET
def test_the_ldos_is_in_a_file(tmp_path):
    run = LongRun(ALONE, tmp_path / "t")
    found = predict(tiny_model(), run)[0]
    assert isinstance(found.ldos.base, np.memmap) or isinstance(found.ldos, np.memmap)
    assert [p.name for p in (tmp_path / "t").iterdir()] == ["main.0.ldos"]
    wanted = predict(tiny_model(), None)[0].ldos
    np.testing.assert_array_equal(found.ldos, wanted)
    found.save(tmp_path / "o.h5")
    run.clear()
    with h5py.File(tmp_path / "o.h5") as file:
        np.testing.assert_array_equal(file["ldos"][()], wanted)


@QUIET
def test_no_room_for_the_ldos_is_said_at_once(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(MachineError, match="cannot keep the LDOS in .*: No space left"):
        predict(tiny_model(), LongRun(ALONE, tmp_path / "t"))
