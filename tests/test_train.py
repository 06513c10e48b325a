"""Training: learns, stops, resumes bit by bit, says what is wrong, is the same on any number of ranks."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fakes
import numpy as np
import pytest
import torch
from ase import Atoms

from malax import checkpoint, config, training
from malax.comm import SerialComm
from malax.dataset import Batch, Dataset
from malax.descriptors import Descriptor
from malax.emulator import Emulator
from malax.errors import FileError, InputError, MalaxError
from malax.evaluate import evaluate_snapshot
from malax.generate import GenerateConfig, structures
from malax.io.snapshot import Snapshot
from malax.network import LDOSNetwork
from malax.optimize import Average, OptimizerConfig, ScheduleConfig, learning_rate
from malax.train import TrainConfig, TrainingInterrupted, _alike, train
from malax.train_log import Table
from malax.validation import snapshot_errors

YAML = """
output: {output}
data:
  training: ["{data}/a*.h5"]
  validation: ["{data}/v*.h5"]
  test: ["{data}/t*.h5"]
  cache: "{data}/cache"
  batch_size: 64
  pool_rows: 512
descriptor: {{twojmax: 4, cutoff: 3.5}}
network: {{hidden: [24]}}
optimizer: {{learning_rate: 3e-3}}
epochs: 4
evaluate_every: 2
seed: 3
threads: 1
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for i in range(3):
        fakes.make_snapshot(folder / f"a{i}.h5", i, complete_to=7.5 + 0.3 * i)
    fakes.make_snapshot(folder / "v0.h5", 10)
    fakes.make_snapshot(folder / "t0.h5", 20)
    return folder


def settings(data: Path, folder: Path, *overrides: str, name: str = "m.malax") -> TrainConfig:
    path = folder / "train.yaml"
    path.write_text(YAML.format(output=folder / name, data=data))
    return config.load(path, TrainConfig, overrides)


def tensors(model: Path) -> dict[str, torch.Tensor]:
    return dict(Emulator.load(model).network.state_dict())


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def raise_signal_at(monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGTERM) -> None:
    """Send this process a signal in the given step of the training."""
    update = Average.update
    calls = []

    def patched(self: Average) -> None:
        calls.append(None)
        if len(calls) == step:
            os.kill(os.getpid(), number)
        update(self)

    monkeypatch.setattr(Average, "update", patched)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was trained without interruption for 4 epochs."""
    return train(settings(data, tmp_path_factory.mktemp("trained")))


def test_a_model_is_made(trained: Path, data: Path) -> None:
    model = Emulator.load(trained)
    info = model.info
    assert info.elements == ("Al",) and info.valence == {"Al": 3.0}
    assert info.complete_to == 7.5 and info.kernel == "gaussian" and info.sigma == 0.5
    assert info.training_temperatures == (1000.0,)
    assert [(s.name, s.role) for s in info.training_snapshots] == [
        ("a0", "training"), ("a1", "training"), ("a2", "training"), ("v0", "validation"),
    ]  # fmt: skip
    assert info.grid_spacing == pytest.approx(4.05 / 8)
    assert info.config["network"]["hidden"] == [24] and info.config["data"]["test"] == ["t0.h5"]
    assert str(data) not in json.dumps(info.config)  # no paths of this machine
    errors = info.test_errors["t0"]
    report = json.loads(trained.with_suffix(".test.json").read_text())
    assert report["snapshots"][0]["errors"]["band"] == errors["band"]
    assert report["sha256"] == model.hash
    found = evaluate_snapshot(model, Snapshot.load(data / "t0.h5"))
    assert found is not None and found.errors["total_free"] == pytest.approx(errors["total_free"], abs=1e-6)


def test_the_log(trained: Path) -> None:
    folder = trained.with_suffix(".run")
    log = rows(folder / "log.csv")
    assert [int(row["epoch"]) for row in log] == [1, 2, 3, 4]
    assert float(log[-1]["validation_loss"]) < 0.7 * float(log[0]["validation_loss"])
    assert [bool(row["band_mae"]) for row in log] == [False, True, False, True]
    errors = rows(folder / "errors.csv")
    assert [(row["epoch"], row["snapshot"]) for row in errors] == [("2", "v0"), ("4", "v0")]
    assert abs(float(errors[-1]["band"])) == pytest.approx(float(log[-1]["band_mae"]))
    assert list((folder / "tensorboard").iterdir())


def test_validation_errors_are_those_of_the_whole_chain(data: Path, trained: Path) -> None:
    """From cached rows in their random order, and from the atoms by the emulator: the same numbers."""
    model = Emulator.load(trained)
    snapshot = Snapshot.load(data / "v0.h5")
    dataset = Dataset.prepare([snapshot], model.info.descriptor, data / "cache", SerialComm())
    cached = snapshot_errors(model.network, dataset, 0, torch.device("cpu"))
    whole = evaluate_snapshot(model, snapshot)
    assert whole is not None
    assert cached.band == pytest.approx(whole.errors["band"], abs=0.02)
    assert cached.total_free == pytest.approx(whole.errors["total_free"], abs=0.02)
    assert cached.entropy_term == pytest.approx(whole.errors["entropy_term"], abs=0.02)
    assert cached.fermi_level == pytest.approx(whole.fermi_level_error, abs=0.02)
    assert cached.density_mape == pytest.approx(whole.density_mape, abs=1e-3)


def test_a_perfect_network_has_no_errors(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = Snapshot.load(data / "v0.h5")
    dataset = Dataset.prepare([snapshot], settings(data, data).descriptor, data / "cache", SerialComm())
    blocks = Dataset.blocks

    def with_ldos_as_features(self: Dataset, index: int) -> Any:
        for start, batch in blocks(self, index):
            yield start, Batch(batch.ldos, batch.ldos, batch.snapshot, batch.total)

    monkeypatch.setattr(Dataset, "blocks", with_ldos_as_features)
    found = snapshot_errors(torch.nn.Identity(), dataset, 0, torch.device("cpu"))  # type: ignore[arg-type]
    assert np.abs(found).max() < 1e-3


def test_same_seed_same_model_other_seed_another(data: Path, trained: Path, tmp_path: Path) -> None:
    assert same(tensors(train(settings(data, tmp_path, name="again.malax"))), tensors(trained))
    assert not same(tensors(train(settings(data, tmp_path, "seed=4", name="other.malax"))), tensors(trained))


@pytest.mark.parametrize("step", [3, 24, 29, 57])
def test_resume_is_exact(
    data: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Interrupted in an epoch, or between two (24 steps each), and resumed: the same bits, the same log."""
    made = settings(data, tmp_path)
    raise_signal_at(monkeypatch, step)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TrainingInterrupted, match=f"SIGTERM in epoch {step // 24 + 1}, .* --resume"):
        train(made)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert not made.output.exists()
    monkeypatch.undo()
    train(made, resume=True)
    assert same(tensors(made.output), tensors(trained))
    for name in ("log.csv", "errors.csv"):
        assert rows(made.folder / name) == rows(trained.with_suffix(".run") / name)


def test_resume_of_a_plateau_schedule_without_average(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (
        "schedule={kind: plateau, patience: 1, warmup_epochs: 0.5}",
        "optimizer={learning_rate: 3e-2, average: null, gradient_clip: null}",
        "data.points_per_snapshot=200",
        "loss={density: 0.1, grand_potential: 0.1, integrated: 0.1}",
        "epochs=30",
    )
    whole = train(settings(data, tmp_path, *options, name="whole.malax"))
    rates = [float(row["learning_rate"]) for row in rows(whole.with_suffix(".run") / "log.csv")]
    reduced = [i for i in range(1, 30) if rates[i] < rates[i - 1]]
    assert reduced, "no plateau was met: the test would not see the state of the schedule"
    made = settings(data, tmp_path, *options)
    raise_signal_at(monkeypatch, 9 * reduced[0] + 4, signal.SIGINT)
    with pytest.raises(TrainingInterrupted, match="SIGINT"):
        train(made)
    monkeypatch.undo()
    train(made, resume=True)
    assert same(tensors(made.output), tensors(whole))


def test_resume_refuses_another_configuration(data: Path, trained: Path, tmp_path: Path) -> None:
    made = settings(data, tmp_path)
    shutil.copytree(trained.with_suffix(".run"), made.folder)
    for change, key in (
        ("network.hidden=[25]", "network"),
        ("data.batch_size=32", "data.batch_size"),
        ("seed=4", "seed"),
        (f"data.training=['{data}/a0.h5']", "data.training"),
    ):
        with pytest.raises(InputError, match=f"^{key} is not what it was"):
            train(settings(data, tmp_path, change), resume=True)
    # more epochs are allowed: training goes on behind the last one
    train(settings(data, tmp_path, "epochs=6"), resume=True)
    assert [row["epoch"] for row in rows(made.folder / "log.csv")] == ["1", "2", "3", "4", "5", "6"]


def test_outputs_are_not_overwritten_unasked(data: Path, trained: Path, tmp_path: Path) -> None:
    made = settings(data, tmp_path, "epochs=1")
    with pytest.raises(FileError, match="no checkpoint .* to resume from"):
        train(made, resume=True)
    made.output.write_text("precious")
    with pytest.raises(FileError, match=r"m\.malax exists"):
        train(made)
    assert made.output.read_text() == "precious"
    made.output.unlink()
    shutil.copytree(trained.with_suffix(".run"), made.folder)
    with pytest.raises(FileError, match=r"m\.run holds an unfinished training"):
        train(made)
    train(made, overwrite=True)
    assert len(rows(made.folder / "log.csv")) == 1


@pytest.mark.parametrize("name", ["checkpoint.safetensors"])
def test_a_broken_checkpoint(data: Path, trained: Path, tmp_path: Path, name: str) -> None:
    made = settings(data, tmp_path)
    made.folder.mkdir()
    contents = (trained.with_suffix(".run") / name).read_bytes()
    made.checkpoint.write_bytes(contents[: len(contents) // 2])
    with pytest.raises(FileError, match="is not a whole checkpoint"):
        train(made, resume=True)


def test_diverging_training_stops_and_keeps_the_last_checkpoint(data: Path, tmp_path: Path) -> None:
    made = settings(data, tmp_path)
    (tmp_path / "bad").mkdir()
    with pytest.raises(MalaxError, match="not finite in epoch 1, step .*there is no checkpoint yet.*smaller"):
        train(
            settings(data, tmp_path / "bad", "optimizer.learning_rate=1e37", "optimizer.gradient_clip=null")
        )
    update, calls = training.Training._end_epoch, []

    def poisoned(self: training.Training) -> None:
        update(self)
        calls.append(None)
        if len(calls) == 2:
            self.network.linear_layers[0].weight.data[0, 0] = math.nan

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Training, "_end_epoch", poisoned)
        with pytest.raises(MalaxError, match="epoch 3, step 1 .the checkpoint of epoch 2 is kept"):
            train(made)
    state, numbers = checkpoint.load(made.checkpoint)
    assert numbers["epoch"] == 2 and all(t.isfinite().all() for t in state.values())
    assert not made.output.exists()


def test_early_stopping_keeps_the_best_weights(data: Path, tmp_path: Path) -> None:
    made = settings(
        data,
        tmp_path,
        "epochs=60",
        "select=loss",
        "early_stopping.patience=3",
        "optimizer={learning_rate: 3e-2, average: null}",
        "schedule.kind=plateau",
        "schedule.patience=100",
    )
    train(made)
    losses = [float(row["validation_loss"]) for row in rows(made.folder / "log.csv")]
    assert 3 < len(losses) < 60
    assert len(losses) == int(np.argmin(losses)) + 1 + 3
    assert same(tensors(made.output), part(checkpoint.load(made.checkpoint)[0], "best."))
    assert not same(tensors(made.output), part(checkpoint.load(made.checkpoint)[0], "network."))


@pytest.mark.parametrize(
    "select, column", [("total_free", "total_free_mae"), ("density", "density_mape"), ("last", None)]
)
def test_selected_weights_are_those_asked_for(
    select: str, column: str | None, data: Path, tmp_path: Path
) -> None:
    made = settings(data, tmp_path, "epochs=4", "evaluate_every=2", f"select={select}")
    train(made)
    log = rows(made.folder / "log.csv")
    chosen = [int(row["epoch"]) for row in log if row["best"] == "1"]
    if column is None:
        assert chosen == [1, 2, 3, 4]
    else:
        errors = {int(row["epoch"]): float(row[column]) for row in log if row[column]}
        assert set(errors) == {2, 4}
        assert chosen[-1] == min(errors, key=errors.__getitem__)
    assert same(tensors(made.output), part(checkpoint.load(made.checkpoint)[0], "best."))


def part(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def test_learning_rate() -> None:
    optimizer = OptimizerConfig(learning_rate=2.0)
    cosine = ScheduleConfig(warmup_epochs=2.0, final=0.1)
    rate = [learning_rate(optimizer, cosine, p, 10, 0) for p in (0.5, 1.0, 5.0, 10.0)]
    assert rate[0] == pytest.approx(0.25 * 2.0 * (0.1 + 0.9 * (1 + math.cos(math.pi * 0.05)) / 2))
    assert rate[2] == pytest.approx(2.0 * 0.55) and rate[3] == pytest.approx(0.2)
    plateau = ScheduleConfig(kind="plateau", warmup_epochs=0, factor=0.5, final=0.2)
    assert [learning_rate(optimizer, plateau, 7.0, 10, n) for n in (0, 1, 2, 5)] == [2.0, 1.0, 0.5, 0.4]


def test_average_of_weights() -> None:
    network = LDOSNetwork(2, [], 1)
    weight = network.linear_layers[0].weight
    weight.data.fill_(0.0)
    average = Average(network, 0.5)
    for value in (1.0, 2.0, 3.0):
        weight.data.fill_(value)
        average.update()
    # decays 2/11, 3/12, 4/13
    expected = 0.0
    for value, decay in ((1.0, 2 / 11), (2.0, 3 / 12), (3.0, 4 / 13)):
        expected = decay * expected + (1 - decay) * value
    assert torch.allclose(average.network.linear_layers[0].weight, torch.full((1, 2), expected))
    off = Average(network, None)
    off.update()
    assert off.network is network


def test_table_drops_what_will_be_written_again(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    table = Table(path, ("epoch", "x"), 0)
    for epoch in (1, 2, 3):
        table.add({"epoch": epoch, "x": epoch / 3})
    with open(path, "a", encoding="utf-8") as file:
        file.write("4")  # cut by a crash
    Table(path, ("epoch", "x"), 2)
    assert [row["epoch"] for row in rows(path)] == ["1", "2"]
    Table(path, ("epoch", "x"), 0)
    assert rows(path) == []


def test_no_fermi_level_is_no_crash(data: Path, trained: Path) -> None:
    """A network that holds too few electrons has no energies yet; training goes on."""
    snapshot = Snapshot.load(data / "v0.h5")
    dataset = Dataset.prepare([snapshot], settings(data, data).descriptor, data / "cache", SerialComm())
    network = Emulator.load(trained).network
    network.ldos_scale.mul_(0.01)
    assert np.isnan(snapshot_errors(network, dataset, 0, torch.device("cpu"))).all()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("device=cudaa",), "device: 'cudaa' cannot be used here"),
        (("loss.snapshot_weights={a*: -1}",), "the weight of 'a\\*' must be >= 0"),
    ],
)
def test_bad_settings(data: Path, tmp_path: Path, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train(settings(data, tmp_path, *overrides))


def test_the_shipped_configuration_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """configs/al_train.yaml parses, names no test snapshot for training, and documents every key."""
    source = Path(__file__).resolve().parents[1] / "configs" / "al_train.yaml"
    names = (
        [f"d{i:02d}" for i in range(11)] + [f"h{i:02d}" for i in range(6)] + [f"t{i:02d}" for i in range(4)]
    )
    recipe = config.load(source.with_name("al_generate.yaml"), GenerateConfig)
    names += [structure.name for structure in structures(recipe)] + ["s00", "s01", "s05"]
    (tmp_path / "configs").mkdir()
    (tmp_path / "data" / "al").mkdir(parents=True)
    for name in names:
        (tmp_path / "data" / "al" / f"{name}.h5").touch()
    copied = shutil.copy(source, tmp_path / "configs")
    made = config.load(copied, TrainConfig)
    test = {"d08", "d09", "d10", "h04", "h05", "t02", "t03"}
    assert {p.stem for p in made.data.test} == test
    seen = {p.stem for p in (*made.data.training, *made.data.validation)}
    assert not seen & (test | {"s00", "s01", "s05"})
    text = source.read_text(encoding="utf-8")
    undocumented = [key for key in documented_keys(TrainConfig) if f"{key}:" not in text]
    assert undocumented == []


def documented_keys(model: Any) -> list[str]:
    found: list[str] = []
    for name, field in model.model_fields.items():
        found.append(name)
        for inner in config._models_in(field.annotation):
            if inner.__name__ != "EnergyWeight":
                found += documented_keys(inner)
    return found


@pytest.mark.parametrize(
    ("weights", "alike"),
    [
        (None, ["Al", "Be"]),
        ({"Al": 0.5}, []),
        ({"Al": 0.5, "Be": 0.5}, ["Al", "Be"]),
        ({"O": 2.0}, ["Al", "Be"]),
    ],
)
def test_elements_that_the_descriptors_cannot_tell_apart_are_named(weights, alike):
    snapshot = SimpleNamespace(atoms=Atoms("AlBe", positions=np.zeros((2, 3))))
    assert _alike(Descriptor(weights=weights), [snapshot]) == alike
    assert _alike(Descriptor(), [SimpleNamespace(atoms=Atoms("Al2"))]) == []
