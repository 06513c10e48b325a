"""What goes wrong in a training: kills, damaged checkpoints, NaN, snapshots that do not go together."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import torch
from ase.build import bulk
from test_train import rows, same, settings, tensors

from malax import checkpoint
from malax.comm import SerialComm
from malax.dataset import Dataset
from malax.errors import FileError, InputError, MalaxError
from malax.feature_cache import Rows
from malax.io.snapshot import Snapshot
from malax.io.upf import read_upf
from malax.loss import Loss
from malax.train import train

PROGRAM = Path(__file__).with_name("kill_program.py")
EPOCHS = "epochs=8"
MOMENTS = ("step:5", "write:2", "rename:5", "step:30", "log:1", "rename:1", "0.5")
"""In the first epoch; while a checkpoint is written; between its two renames; in an epoch; between log and
checkpoint; between the two tables of the log; whenever the time comes."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    for i in range(3):
        fakes.make_snapshot(folder / f"a{i}.h5", i)
    fakes.make_snapshot(folder / "v0.h5", 10)
    fakes.make_snapshot(folder / "t0.h5", 20)
    return folder


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(settings(data, tmp_path_factory.mktemp("trained"), EPOCHS))


def test_killed_at_any_moment(data: Path, trained: Path, tmp_path: Path) -> None:
    """kill -9, again and again, and resume: the model and the curves of a training that was left alone."""
    settings(data, tmp_path)
    model = tmp_path / "m.malax"
    command = [sys.executable, str(PROGRAM), str(tmp_path / "train.yaml"), str(model), EPOCHS, *MOMENTS]
    environment = {**os.environ, "PYTHONPATH": str(PROGRAM.parents[1]), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert ran.returncode == 0, ran.stderr
    ends = json.loads(ran.stdout)
    # at a time, and not a place, the machine decides how far it is: it may have ended
    expected = [0 if ":" not in m and end == 0 else 9 for m, end in zip(MOMENTS, ends, strict=False)]
    assert ends == [*expected, 0], ran.stderr
    assert "holds no checkpoint, no epoch was finished" in ran.stderr
    assert same(tensors(model), tensors(trained))
    for name in ("log.csv", "errors.csv"):
        assert rows(tmp_path / "m.run" / name) == rows(trained.with_suffix(".run") / name)
    assert not list((tmp_path / "m.run").glob(".*.part"))


def resumed_from(
    data: Path, trained: Path, folder: Path, damage: Any, capfd: pytest.CaptureFixture[str]
) -> str:
    """Damage the checkpoint of a finished training, resume it, compare the model; what was said."""
    made = settings(data, folder, EPOCHS)
    shutil.copytree(trained.with_suffix(".run"), made.folder)
    assert checkpoint.load(checkpoint.previous(made.checkpoint))[1]["epoch"] == 7
    damage(made.checkpoint)
    train(made, resume=True)
    assert same(tensors(made.output), tensors(trained))
    assert rows(made.folder / "log.csv") == rows(trained.with_suffix(".run") / "log.csv")
    return capfd.readouterr().err


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    contents = bytearray(path.read_bytes())
    contents[-50] ^= 4
    path.write_bytes(contents)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(cut, "is not a whole checkpoint"), (flip, "is damaged"), (Path.unlink, "there is no checkpoint")],
)
def test_a_damaged_checkpoint_falls_back(
    damage: Any, reason: str, data: Path, trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said = resumed_from(data, trained, tmp_path, damage, capfd).splitlines()
    lines = [line for line in said if "going on from the one before it" in line]
    assert len(lines) == 1 and reason in lines[0] and "checkpoint.previous.safetensors" in lines[0]
    assert any("in epoch 8, step 0" in line for line in said)


def test_both_checkpoints_damaged(data: Path, trained: Path, tmp_path: Path) -> None:
    made = settings(data, tmp_path, EPOCHS)
    shutil.copytree(trained.with_suffix(".run"), made.folder)
    flip(made.checkpoint)
    cut(checkpoint.previous(made.checkpoint))
    with pytest.raises(FileError, match=r"checkpoint\.safetensors is damaged"):
        train(made, resume=True)


def test_a_model_without_its_checkpoint_is_not_trained_anew(
    data: Path, trained: Path, tmp_path: Path
) -> None:
    """--resume begins anew where no epoch was finished, but never over a model that is done."""
    made = settings(data, tmp_path, EPOCHS)
    made.folder.mkdir()
    shutil.copy(trained, made.output)
    with pytest.raises(FileError, match="there is no checkpoint"):
        train(made, resume=True)
    assert made.output.read_bytes() == trained.read_bytes()


def poison(data: Path, made: Any, name: str, feature: bool) -> Path:
    """Put a NaN into the cached rows of a snapshot, as a broken disk may."""
    snapshot = Snapshot.load(data / f"{name}.h5")
    rows = Dataset.prepare([snapshot], made.descriptor, made.cache, SerialComm()).rows[0]
    table = np.load(rows.path, mmap_mode="r+")
    table[300, 0 if feature else -3] = np.nan
    table.flush()
    return rows.path


@pytest.mark.parametrize(("name", "feature"), [("a1", True), ("a2", False)])
def test_nan_in_the_data_names_the_snapshot(name: str, feature: bool, data: Path, tmp_path: Path) -> None:
    made = settings(data, tmp_path, f"data.cache={tmp_path / 'cache'}", "scaling.ldos=global")
    intact, reads = Rows.read, []

    def poisoned(self: Rows, start: int, stop: int) -> np.ndarray:
        block = intact(self, start, stop)
        reads.append(self)
        # the statistics of the scalers have been taken, the third epoch is being read
        if self.path.name.startswith(name) and len(reads) > 150:
            block[0, 0 if feature else -3] = np.nan
        return block

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rows, "read", poisoned)
        pattern = (
            rf"the data of snapshot {name} are not finite in epoch \d, step \d+ .*remove .*/{name}-.*npy"
        )
        with pytest.raises(MalaxError, match=pattern):
            train(made)
    assert not made.output.exists()


def test_nan_on_the_disk_names_the_snapshot(data: Path, tmp_path: Path) -> None:
    made = settings(data, tmp_path, f"data.cache={tmp_path / 'cache'}")
    bad = poison(data, made, "a1", True)
    with pytest.raises(FileError, match=rf"of snapshot a1 hold NaN or infinity: remove .*/{bad.name}"):
        train(made)
    bad.unlink()
    bad = poison(data, made, "v0", False)
    with pytest.raises(MalaxError, match="the validation loss of snapshot v0 is not finite after epoch 1"):
        train(made)


def test_nan_in_the_loss_of_one_snapshot_names_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = Loss.__init__

    def broken(self: Loss, *arguments: Any) -> None:
        begin(self, *arguments)
        if len(self.snapshot_weights) > 1:
            self.snapshot_weights[2] = torch.inf

    monkeypatch.setattr(Loss, "__init__", broken)
    with pytest.raises(
        MalaxError, match=r"the loss \(that of snapshot a2\) is not finite in epoch 1, step 1"
    ):
        train(settings(data, tmp_path))


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("role", ["training", "validation", "test"])
def test_snapshots_that_do_not_go_together(role: str, members: int, data: Path, tmp_path: Path) -> None:
    """Refused before anything is computed, whatever their role."""
    other = tmp_path / "other.h5"
    if role == "test":
        fake = dataclasses.replace(read_upf(fakes.UPF), element="Be")
        atoms = bulk("Be", "hcp", a=2.3, c=3.6)
        fakes.make_snapshot(other, atoms=atoms, pseudopotentials={"Be": fake})
        what = "elements"
    else:
        fakes.make_snapshot(other, energy_grid=np.linspace(-4.0, 9.0, 28))
        what = "energy grid"
    lists = {
        "training": f"['{data}/a*.h5', '{other}']",
        "validation": f"['{data}/v*.h5', '{other}']",
        "test": f"['{data}/t*.h5', '{other}']",
    }
    cache = tmp_path / "cache"
    made = settings(data, tmp_path, f"data.{role}={lists[role]}", f"members={members}", f"data.cache={cache}")
    with pytest.raises(InputError, match=f"a0 and other differ in their {what}.*train on snapshots that"):
        train(made)
    assert not cache.exists() and not made.output.exists()
