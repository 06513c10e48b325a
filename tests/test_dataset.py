"""Cached rows, batches, scalers: complete, random, the same whatever the number of ranks."""

from __future__ import annotations

import threading
from pathlib import Path

import fakes
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from malax import feature_cache
from malax.comm import SerialComm
from malax.compatibility import check_compatible, check_distinct
from malax.dataset import Batch, DataConfig, Dataset, prefetched
from malax.descriptors import Descriptor
from malax.errors import FileError, InputError, MachineError
from malax.feature_cache import cached_rows, random_order
from malax.io.snapshot import Snapshot
from malax.loss import Loss, LossConfig, functionals
from malax.network import LDOSNetwork
from malax.observables import from_ldos
from malax.scaling import ScalingConfig, collect, scale_network

DESCRIPTOR = Descriptor(twojmax=2, cutoff=3.0)


class FakeRank(SerialComm):
    """One of several ranks that never talk."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("snapshots")


@pytest.fixture(scope="module")
def snapshots(folder: Path) -> list[Snapshot]:
    """Three snapshots of different grids and different sound parts."""
    return [
        fakes.make_snapshot(folder / "a.h5", 1, shape=(8, 8, 8)),
        fakes.make_snapshot(folder / "b.h5", 2, shape=(9, 7, 10), complete_to=6.2),
        fakes.make_snapshot(folder / "c.h5", 3, shape=(6, 6, 6)),
    ]


@pytest.fixture(scope="module")
def dataset(snapshots: list[Snapshot], folder: Path) -> Dataset:
    return Dataset.prepare(snapshots, DESCRIPTOR, folder / "cache", SerialComm())


def config(**settings: object) -> DataConfig:
    """Reading options; the files are not looked at here."""
    base = DataConfig.model_construct(
        training=(),
        validation=(),
        test=(),
        cache=None,
        points_per_snapshot=None,
        points_per_atom=None,
        batch_size=64,
        pool_rows=500,
    )
    return base.model_copy(update=settings)


def keys(batches: list[Batch]) -> list[tuple[int, bytes]]:
    """What identifies each row."""
    return [
        (int(s), f.numpy().tobytes() + d.numpy().tobytes())
        for b in batches
        for f, d, s in zip(b.features, b.ldos, b.snapshot, strict=True)
    ]


def test_rows_are_a_permutation_of_the_grid(dataset: Dataset, snapshots: list[Snapshot]) -> None:
    for rows, s in zip(dataset.rows, snapshots, strict=True):
        assert sorted(rows.order) == list(range(s.grid.n_points))
        table = rows.read(0, rows.n_points)
        features = DESCRIPTOR.compute(s.atoms, s.grid, dtype="float32")
        assert np.array_equal(table[:, rows.n_features :], s.read_ldos()[rows.order])
        assert np.allclose(table[:, : rows.n_features], features[rows.order], rtol=1e-5, atol=1e-5)
        # a block is a random sample: its points lie all over the grid
        assert len(set(rows.order[:100] // s.grid.shape[2] // s.grid.shape[1])) == s.grid.shape[0]


def test_cache_is_used_and_knows_what_it_is_of(
    snapshots: list[Snapshot], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    compute = Descriptor.compute

    def counted(
        self: Descriptor, atoms: object, grid: object, start: int, stop: int, **options: object
    ) -> object:
        calls.append((start, stop))
        return compute(self, atoms, grid, start, stop, **options)

    monkeypatch.setattr(Descriptor, "compute", counted)
    monkeypatch.setattr(feature_cache, "TILE_POINTS", 150)  # not a divisor of anything
    rows = cached_rows(snapshots[1], DESCRIPTOR, tmp_path / "new")
    assert [stop for _, stop in calls] == [140, 280, 420, 560, 630]
    before = rows.read(0, rows.n_points)
    assert cached_rows(snapshots[1], DESCRIPTOR, tmp_path / "new") == rows
    assert len(calls) == 5  # nothing was computed again
    other = cached_rows(snapshots[1], Descriptor(twojmax=2, cutoff=3.1), tmp_path / "new")
    assert other.path != rows.path and len(calls) == 10
    # a truncated file is not believed
    with open(rows.path, "r+b") as file:
        file.truncate(rows.path.stat().st_size - 8)
    with pytest.raises(FileError, match="truncated"):
        rows.read(rows.n_points - 10, rows.n_points)
    again = cached_rows(snapshots[1], DESCRIPTOR, tmp_path / "new")
    assert len(calls) == 15
    assert np.array_equal(again.read(0, again.n_points), before)
    assert not list((tmp_path / "new").glob("*.part"))


def test_full_disk_leaves_nothing(
    snapshots: list[Snapshot], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_cache.os, "pwrite", lambda descriptor, data, offset: 3)
    with pytest.raises(MachineError, match="the disk is full"):
        cached_rows(snapshots[0], DESCRIPTOR, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_features_that_are_not_finite_are_refused(
    snapshots: list[Snapshot], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(
        self: Descriptor, atoms: object, grid: object, start: int, stop: int, **_: object
    ) -> np.ndarray:
        return np.full((stop - start, self.n_features), np.nan, dtype=np.float32)

    monkeypatch.setattr(Descriptor, "compute", broken)
    with pytest.raises(FileError, match=r"a\.h5: the descriptors of grid points 0 to 511 are not finite"):
        cached_rows(snapshots[0], DESCRIPTOR, tmp_path)


def test_random_order_is_fixed_for_good() -> None:
    """Caches and checkpoints of today must be read in the same order tomorrow."""
    assert random_order(8).tolist() == [2, 0, 7, 5, 6, 3, 4, 1]
    assert not np.array_equal(random_order(100, 1), random_order(100, 2))


def test_every_row_once_per_epoch(dataset: Dataset) -> None:
    total = dataset.n_points
    batches = list(dataset.batches(config(), seed=1, epoch=0, comm=SerialComm()))
    assert len(batches) == dataset.n_batches(config()) == total // 64
    assert all(len(b.features) == b.total == 64 for b in batches)
    found = keys(batches)
    assert len(set(found)) == len(found)
    everything = {key for i in range(3) for _, b in dataset.blocks(i) for key in keys([b])}
    assert set(found) <= everything and len(everything) - len(found) == total % 64
    # mixed: nearly every batch holds rows of all snapshots
    assert np.mean([len(set(b.snapshot.tolist())) for b in batches]) > 2.5


def test_order_depends_on_seed_and_epoch_only(dataset: Dataset) -> None:
    def run(seed: int, epoch: int) -> list[tuple[int, bytes]]:
        return keys(list(dataset.batches(config(), seed, epoch, SerialComm())))

    first = run(1, 0)
    assert run(1, 0) == first
    assert run(1, 1) != first and run(2, 0) != first


@pytest.mark.parametrize("skip", [1, 7, 8, 9, 19])
def test_an_epoch_can_be_continued(dataset: Dataset, skip: int) -> None:
    whole = list(dataset.batches(config(), 1, 3, SerialComm()))
    rest = list(dataset.batches(config(), 1, 3, SerialComm(), skip=skip))
    assert keys(rest) == keys(whole[skip:])


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_share_the_same_batches(dataset: Dataset, size: int) -> None:
    whole = list(dataset.batches(config(), 1, 0, SerialComm()))
    parts = [list(dataset.batches(config(), 1, 0, FakeRank(r, size))) for r in range(size)]
    for i, batch in enumerate(whole):
        assert keys([p[i] for p in parts]) == keys([batch])
        assert {p[i].total for p in parts} == {64}


def test_a_sample_per_epoch_moves_through_the_snapshot(dataset: Dataset) -> None:
    some = config(points_per_snapshot=72, batch_size=72)
    seen: set[tuple[int, bytes]] = set()
    for epoch in range(3):
        found = keys(list(dataset.batches(some, 1, epoch, SerialComm())))
        assert len(found) == 3 * 72
        assert not seen & set(found)
        seen |= set(found)
    assert sum(s == 2 for s, _ in seen) == 216  # all of the smallest snapshot after three epochs
    assert dataset.take(config(points_per_snapshot=0.5)) == [256, 315, 108]
    assert dataset.take(config(points_per_snapshot=600)) == [512, 600, 216]
    atoms = [len(s.atoms) for s in dataset.snapshots]
    expected = [min(90 * a, n) for a, n in zip(atoms, [512, 630, 216], strict=True)]
    assert dataset.take(config(points_per_atom=90)) == expected


def test_fewer_rows_than_a_batch(dataset: Dataset) -> None:
    few = config(points_per_snapshot=5, batch_size=64)
    (batch,) = dataset.batches(few, 1, 0, SerialComm())
    assert batch.total == len(batch.features) == 15


def test_memory_does_not_grow_with_snapshots(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """No pool is larger than pool_rows and a block, however many snapshots there are."""
    many = Dataset(dataset.snapshots * 20, dataset.rows * 20)
    sizes = [len(owner) for _, owner in many._pools(config(pool_rows=1000), 1, 0)]
    assert sum(sizes) == 20 * dataset.n_points
    assert max(sizes) < 1000 + 16


def test_prefetch_hands_over_errors_and_ends_its_thread() -> None:
    def broken():  # type: ignore[no-untyped-def]
        yield 1
        raise FileError("gone")

    items = prefetched(broken(), 2)
    assert next(items) == 1
    with pytest.raises(FileError, match="gone"):
        next(items)
    endless = prefetched(iter(range(10**9)), 2)
    assert [next(endless) for _ in range(5)] == [0, 1, 2, 3, 4]
    endless.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name == "malax-prefetch"]


def test_scalers_against_all_rows_in_memory(dataset: Dataset) -> None:
    found = collect(dataset, functionals(dataset.snapshots), SerialComm())
    tables = [r.read(0, r.n_points).astype(np.float64) for r in dataset.rows]
    f = dataset.rows[0].n_features
    features = np.concatenate(tables)[:, :f]
    assert np.allclose(found.features.mean, features.mean(axis=0), rtol=1e-12)
    assert np.allclose(found.features.deviation, features.std(axis=0), rtol=1e-9)
    for e, energy in enumerate(dataset.energy_grid):
        sound = [
            t[:, f + e] for t, s in zip(tables, dataset.snapshots, strict=True) if energy <= s.complete_to
        ]
        column = np.concatenate(sound) if sound else np.empty(0)
        assert found.ldos.count[e] == len(column)
        if sound:
            assert np.isclose(found.ldos.mean[e], column.mean(), rtol=1e-12)
            assert np.isclose(found.ldos.deviation[e], column.std(), rtol=1e-9)
    assert (found.ldos.count == 0).any() and (found.ldos.count == 512 + 216).any()


@pytest.mark.parametrize("non_negative", [False, True])
def test_energies_nobody_knows_are_silent(dataset: Dataset, non_negative: bool) -> None:
    statistics = collect(dataset, functionals(dataset.snapshots), SerialComm())
    network = LDOSNetwork(DESCRIPTOR.n_features, [8], len(dataset.energy_grid), non_negative=non_negative)
    scale_network(network, statistics, ScalingConfig())
    out = network(torch.randn(5, DESCRIPTOR.n_features))
    unknown = dataset.energy_grid > 8.0 + 1e-9
    assert unknown.sum() == 2
    assert (out[:, unknown] == 0).all() and (out[:, ~unknown] != 0).all()


def test_no_loss_above_the_sound_energies(dataset: Dataset) -> None:
    """What a network says above a snapshot's complete part changes neither loss nor gradient."""
    statistics = collect(dataset, functionals(dataset.snapshots), SerialComm())
    network = LDOSNetwork(DESCRIPTOR.n_features, [], len(dataset.energy_grid))
    scale_network(network, statistics, ScalingConfig())
    terms = LossConfig(density=0.5, grand_potential=0.3, integrated=0.7)
    loss = Loss(dataset, terms, network.ldos_scale, statistics.spread, torch.device("cpu"))
    _, batch = next(dataset.blocks(1))  # complete to 6.2 eV
    value = loss(network, batch)
    value.backward()
    above = torch.from_numpy(dataset.energy_grid > 6.2)
    gradient = network.linear_layers[0].weight.grad
    assert gradient is not None
    assert (gradient[above] == 0).all() and (gradient[~above] != 0).any(dim=1).all()
    changed = batch._replace(ldos=batch.ldos + 7.0 * above)
    assert loss(network, changed).item() == value.item()


def test_loss_is_the_formula(dataset: Dataset) -> None:
    network = LDOSNetwork(DESCRIPTOR.n_features, [], len(dataset.energy_grid))
    statistics = collect(dataset, functionals(dataset.snapshots), SerialComm())
    scale_network(network, statistics, ScalingConfig())
    spread = statistics.spread
    terms = LossConfig(
        density=0.5, grand_potential=0.3, integrated=0.7, snapshot_weights={"[ac]": 2.0, "c": 3.0}
    )
    loss = Loss(dataset, terms, network.ldos_scale, spread, torch.device("cpu"))
    for i, weight in enumerate([2.0, 1.0, 3.0]):
        s = dataset.snapshots[i]
        _, batch = next(dataset.blocks(i))
        error = (network(batch.features) - batch.ldos).detach().double().numpy() * dataset.sound[i]
        expected = ((error / network.ldos_scale.numpy()) ** 2).mean()
        w = functionals([s])[0]
        expected += ((error @ w.T / spread[:2]) ** 2 * [0.5, 0.3]).sum(axis=1).mean()
        integrated = 0.5 * np.cumsum(error, axis=1) * dataset.sound[i]  # 0.5 eV between energies
        expected += 0.7 * ((integrated / spread[2]) ** 2).mean()
        expected *= weight
        assert loss(network, batch).item() == pytest.approx(expected, rel=1e-4)


def test_functionals_are_density_and_grand_potential(dataset: Dataset) -> None:
    s = dataset.snapshots[0]
    density, omega = (s.read_ldos().astype(np.float64) @ functionals([s])[0].T).T
    found = from_ldos(
        s.read_ldos(), s.energy_grid, s.grid.volume, s.temperature, s.n_electrons, s.broadening_variance
    )
    assert np.allclose(density, found.density, rtol=1e-6)
    expected = found.band_energy + found.entropy_term - found.fermi_level * s.n_electrons
    assert omega.sum() * s.grid.point_volume == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"energy_grid": np.linspace(-4.0, 9.0, 53)}, "energy grid"),
        ({"sigma": 0.6}, "sigma"),
        ({"kernel": "fermi-dirac", "sigma": 0.3}, "kernel"),
    ],
)
def test_snapshots_that_do_not_go_together(
    folder: Path, snapshots: list[Snapshot], change: dict, what: str
) -> None:
    other = fakes.make_snapshot(folder / "other.h5", 9, **change)
    with pytest.raises(InputError, match=f"snapshots a and other differ in their {what}"):
        check_compatible([*snapshots, other])


def test_the_same_calculation_twice(folder: Path, snapshots: list[Snapshot]) -> None:
    check_distinct(snapshots)
    with pytest.raises(InputError, match=r"a\.h5 and .*a\.h5 have the same name"):
        check_distinct([*snapshots, snapshots[0]])


def test_data_configuration(folder: Path, snapshots: list[Snapshot]) -> None:
    a, b = str(folder / "a.h5"), str(folder / "b.h5")
    assert DataConfig(training=(a,), validation=(b,)).training == (folder / "a.h5",)
    with pytest.raises(ValidationError, match=r"a\.h5 is named under training and under test"):
        DataConfig(training=(a,), validation=(b,), test=(a,))
    with pytest.raises(ValidationError, match="pool_rows"):
        DataConfig(training=(a,), validation=(b,), pool_rows=10, batch_size=20)
    with pytest.raises(ValueError, match="points_per_snapshot or points_per_atom, not both"):
        DataConfig(training=(a,), validation=(b,), points_per_snapshot=5, points_per_atom=5)
    with pytest.raises(ValidationError):
        DataConfig(training=(), validation=(b,))
