"""Ensembles: mean and spread are those of the members alone; files; the distance to the training data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import ase.io
import fakes
import numpy as np
import pytest
import torch
from models import tiny_model
from test_mpi import mpirun
from test_train import YAML, raise_signal_at, same

from malax import cli, config, domain, launcher, model_file
from malax.comm import SerialComm
from malax.dataset import Dataset
from malax.domain import Domain
from malax.emulator import Emulator, ModelDomainWarning
from malax.ensemble import EnsembleNetwork, Spread, members_of
from malax.errors import FileError, InputError
from malax.io.snapshot import Snapshot
from malax.network import LDOSNetwork
from malax.preview import preview
from malax.result import Result
from malax.train import TrainConfig, TrainingInterrupted, train

SEEDS = (0, 1, 2)
GRID = (10, 10, 10)
pytestmark = pytest.mark.filterwarnings("ignore::malax.checks.ModelDomainWarning")


@pytest.fixture(scope="module")
def ensemble() -> Emulator:
    return Emulator.combine([tiny_model(seed=seed) for seed in SEEDS])


@pytest.fixture(scope="module")
def together(ensemble: Emulator) -> list[Result]:
    return ensemble.predict_many(fakes.make_atoms(0), [1000.0, 1100.0], GRID, ldos=True)


@pytest.fixture(scope="module")
def alone() -> list[Result]:
    return [tiny_model(seed=s).predict(fakes.make_atoms(0), 1000.0, GRID, ldos=True) for s in SEEDS]


def test_the_prediction_is_that_of_the_mean_ldos(together: list[Result], alone: list[Result]) -> None:
    one = together[0]
    assert one.ldos is not None
    np.testing.assert_allclose(one.ldos, np.mean([a.ldos for a in alone], axis=0), rtol=0, atol=1e-7)
    np.testing.assert_allclose(one.dos, np.mean([a.dos for a in alone], axis=0), rtol=1e-9)
    held = one.density.sum() * one.grid.point_volume
    assert held == pytest.approx(12.0, rel=1e-6)  # one Fermi level for the mean, not a mean of densities


def test_every_member_goes_through_the_whole_chain(together: list[Result], alone: list[Result]) -> None:
    spread = together[0].spread
    assert spread is not None and spread.n_members == 3
    levels = [a.fermi_level for a in alone]
    assert np.ptp(levels) > 0.05  # further apart than the nodes of the mean's Fermi level reach
    np.testing.assert_allclose(spread.fermi_levels, levels, rtol=0, atol=1e-9)
    for term, values in spread.energies.items():
        np.testing.assert_allclose(values, [a.terms()[term] for a in alone], rtol=1e-6, err_msg=term)
        assert spread.std[term] == pytest.approx(np.std(values, ddof=1))
    assert set(spread.energies) == set(alone[0].terms())
    np.testing.assert_allclose(spread.dos_std, np.std([a.dos for a in alone], axis=0, ddof=1), atol=1e-9)
    found = np.std([a.density for a in alone], axis=0, ddof=1)
    np.testing.assert_allclose(spread.density_std, found, rtol=0, atol=2e-6 * together[0].density.max())
    assert together[1].spread is not None and together[1].spread.std != spread.std


def test_what_members_get_wrong_alike_drops_out_of_differences() -> None:
    common = np.array([1.0, -2.0, 5.0])
    small = np.array([0.01, 0.02, 0.0])

    def make(values: np.ndarray) -> Spread:
        return Spread({"band": values}, values, np.zeros(2), np.zeros(2), 0.0)

    a, b = make(common + small), make(common)
    assert a.std["band"] > 3
    assert a.minus(b)["band"] == pytest.approx(np.std(small, ddof=1))
    assert a.minus(make(2 * common), (1.0, 0.5))["band"] == pytest.approx(np.std(small, ddof=1))
    with pytest.raises(InputError, match="one ensemble, got 3 and 2 members"):
        a.minus(Spread({}, np.zeros(2), np.zeros(2), np.zeros(2), 0.0))


def test_file_of_an_ensemble(ensemble: Emulator, together: list[Result], tmp_path: Path) -> None:
    path = ensemble.save(tmp_path / "e.malax")
    again = Emulator.load(path)
    assert again.hash == ensemble.hash and again.info.format_version == 2
    for a, b in zip(members_of(again.network), members_of(ensemble.network), strict=True):
        assert same(a.state_dict(), b.state_dict())
    single = tiny_model().save(tmp_path / "s.malax")
    assert Emulator.load(single).info.format_version == 1  # readable as ever
    # an older malax knows version 1 only: it must refuse, not take the first member
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_file, "FORMAT_VERSION", 1)
        with pytest.raises(FileError, match="has model format 2, this malax reads up to 1"):
            Emulator.load(path)
        Emulator.load(single)


def test_members_of_different_networks(tmp_path: Path) -> None:
    first = tiny_model()
    wide = LDOSNetwork(first.network.n_features, [5, 6], first.network.n_energies, "gelu")
    other = Emulator(wide, first.info.model_copy(update={"network": wide.config}), first.energy_grid, {})
    with pytest.raises(InputError, match="must have the same pseudopotentials"):
        Emulator.combine([first, other])
    other.pseudopotentials = first.pseudopotentials
    loaded = Emulator.load(Emulator.combine([first, other]).save(tmp_path / "m.malax"))
    assert [m.config.hidden for m in members_of(loaded.network)] == [(12,), (5, 6)]
    with pytest.raises(InputError, match="must have the same sigma"):
        Emulator.combine([first, tiny_model(sigma=0.3)])
    with pytest.raises(InputError, match="must have one shape"):
        EnsembleNetwork([wide, LDOSNetwork(3, [], 4)])
    x = torch.rand(4, first.network.n_features)
    mean = (first.network(x) + wide(x)) / 2
    assert torch.allclose(EnsembleNetwork([first.network, wide])(x), mean)  # type: ignore[list-item]


def test_file_of_a_result(together: list[Result], tmp_path: Path) -> None:
    one = together[0]
    again = Result.load(one.save(tmp_path / "r.h5"))
    assert again.spread is not None and one.spread is not None and again.outside is None
    for name in ("fermi_levels", "dos_std", "density_std"):
        np.testing.assert_array_equal(getattr(again.spread, name), getattr(one.spread, name))
    assert again.as_json() == one.as_json()
    small = preview(one, 8)
    assert small.density.shape == (8, 8, 8) and small.spread is None and one.spread is not None
    assert json.loads(json.dumps(one.as_json()))["spread"]["energies_std"] == one.spread.std


def test_the_command_with_several_models(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    """Two model files, on one rank and on two: the same errors; the table shows them."""
    for name in (*launcher.TASK_COUNTS, *launcher.TASK_MARKS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        tiny_model(seed=seed).save(tmp_path / f"{seed}.malax")
    ase.io.write(tmp_path / "al.xyz", fakes.make_atoms(0), format="extxyz", parallel=False)
    arguments = ["predict", "0.malax", "1.malax", "al.xyz", "--grid", "9", "9", "9"]

    def run(*more: str) -> str:
        with pytest.raises(SystemExit) as leave:
            cli.main([*arguments, *more])
        assert not leave.value.code
        return capsys.readouterr().out

    table = run()
    assert "+- meV/atom" in table and "members      2" in table
    one = json.loads(run("--json"))
    ran = mpirun(2, "-m", "malax.cli", *arguments, "--json", "-o", "o.h5", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    two = json.loads(ran.stdout)
    for term, std in one["spread"]["energies_std"].items():
        assert two["spread"]["energies_std"][term] == pytest.approx(std, abs=1e-6), term
    assert two["spread"]["density_std_mean"] == pytest.approx(one["spread"]["density_std_mean"], rel=1e-9)
    assert two["spread"]["density_std_mean"] > 0
    stored = Result.load(tmp_path / "o.h5").spread
    assert stored is not None and stored.density_std.shape == (9, 9, 9)
    assert float(stored.density_std.mean()) == pytest.approx(one["spread"]["density_std_mean"], rel=1e-6)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ensemble")
    for i in range(3):
        fakes.make_snapshot(folder / f"a{i}.h5", i)
    fakes.make_snapshot(folder / "v0.h5", 10)
    fakes.make_snapshot(folder / "t0.h5", 20)
    return folder


def settings(data: Path, folder: Path, *overrides: str, name: str = "m.malax") -> TrainConfig:
    path = folder / "train.yaml"
    path.write_text(YAML.format(output=folder / name, data=data))
    return config.load(path, TrainConfig, ["epochs=2", *overrides])


def test_training_of_members(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted in the second member and resumed: the members are the models of their seeds."""
    made = settings(data, tmp_path, "members=2")
    with pytest.raises(FileError, match="nothing in .* to resume from"):
        train(made, resume=True)
    raise_signal_at(monkeypatch, 60)  # 2 epochs of 24 steps each
    with pytest.raises(TrainingInterrupted):
        train(made)
    monkeypatch.undo()
    with pytest.raises(FileError, match=r"member0\.malax exists"):
        train(made)
    first = (made.folder / "member0.malax").stat().st_mtime_ns
    train(made, resume=True)
    assert (made.folder / "member0.malax").stat().st_mtime_ns == first  # not trained again
    model = Emulator.load(made.output)
    for i, network in enumerate(members_of(model.network)):
        seed = train(settings(data, tmp_path, f"seed={3 + i}", name=f"s{i}.malax"))
        assert same(network.state_dict(), Emulator.load(seed).network.state_dict())
    assert model.info.config["members"] == 2 and "t0" in model.info.test_errors
    assert model.domain is not None and len(model.info.training_snapshots) == 4
    shutil.rmtree(made.folder)


def test_domain_of_training_points(data: Path, tmp_path: Path) -> None:
    made = settings(data, tmp_path)
    snapshots = [Snapshot.load(p) for p in made.data.training]
    dataset = Dataset.prepare(snapshots, made.descriptor, data / "cache", SerialComm())
    found = domain.collect(dataset, SerialComm())
    features = np.concatenate([r.read(0, r.n_points)[:, : r.n_features] for r in dataset.rows])
    distances = found.distances(features)
    assert np.mean(distances**2) == pytest.approx(1.0, abs=1e-3)
    assert found.outside(features) / len(features) == pytest.approx(1 - domain.INSIDE, abs=1e-3)
    x = features.astype(np.float64)
    whitened = (x - found.mean) @ found.axes
    np.testing.assert_allclose(np.cov(whitened.T, bias=True), np.eye(whitened.shape[1]), atol=1e-3)
    # the textbook's formula, where the covariance can be inverted
    kept = x[:, :3]
    axes = domain.principal_axes(np.cov(kept.T, bias=True), kept.mean(axis=0))
    inverse = np.linalg.inv(np.cov(kept.T, bias=True))
    off = kept - kept.mean(axis=0)
    expected = np.sqrt(np.einsum("pi,ij,pj->p", off, inverse, off) / 3)
    np.testing.assert_allclose(Domain(kept.mean(axis=0), axes, 1.0).distances(kept), expected, rtol=1e-6)


def test_constant_features_are_left_out() -> None:
    rng = np.random.default_rng(0)
    x = np.hstack([rng.normal(size=(500, 2)), np.full((500, 1), 16.6)])
    axes = domain.principal_axes(np.cov(x.T, bias=True), x.mean(axis=0))
    assert axes.shape == (3, 2) and np.isfinite(axes).all() and not axes[2].any()


def test_predictions_know_how_far_they_are(data: Path, tmp_path: Path) -> None:
    path = train(settings(data, tmp_path, "epochs=1"))
    model = Emulator.load(path)
    like = model.predict(fakes.make_atoms(33), grid=(8, 8, 8))
    assert like.outside is not None and like.outside < domain.MANY
    assert not any("unlike" in w for w in like.warnings)
    squeezed = fakes.make_atoms(33)
    squeezed.set_cell(0.85 * squeezed.cell.array, scale_atoms=True)
    with pytest.warns(ModelDomainWarning, match="unlike the training data"):
        far = model.predict(squeezed, grid=(8, 8, 8))
    assert far.outside is not None and far.outside > 0.5
    assert Result.load(far.save(tmp_path / "far.h5")).outside == far.outside
    # a model of an earlier version does not know, and says nothing
    silent = Emulator(model.network, model.info, model.energy_grid, model.pseudopotentials)
    assert silent.predict(squeezed, grid=(8, 8, 8)).outside is None
