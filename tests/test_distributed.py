"""Training over ranks: MPI, DDP and Horovod give the model of one rank, and continue each other's."""

from __future__ import annotations

import csv
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import fakes
import pytest
import torch
from launch import mpirun

from malax import config, distributed, precision
from malax.comm import SerialComm
from malax.commands import install_horovod
from malax.emulator import Emulator
from malax.errors import InputError, MachineError, MissingPeerError
from malax.train import TrainConfig, train

# the batch is no multiple of 3, and the last one leaves ranks with unequal shares
YAML = """
output: {folder}/{name}.malax
data:
  training: ["{folder}/a*.h5"]
  validation: ["{folder}/v0.h5"]
  cache: {folder}/cache
  batch_size: 100
descriptor: {{twojmax: 4, cutoff: 3.5}}
network: {{hidden: [16]}}
loss: {{density: 0.1, integrated: 0.1}}
optimizer: {{learning_rate: 3e-3}}
epochs: 3
evaluate_every: 3
select: last
threads: 1
"""
needs_horovod = pytest.mark.skipif(
    importlib.util.find_spec("horovod") is None,
    reason=f"Horovod is not installed: {distributed.INSTALL_HOROVOD}",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    for i in range(2):
        fakes.make_snapshot(folder / f"a{i}.h5", i)
    fakes.make_snapshot(folder / "v0.h5", 10)
    return folder


def job(folder: Path, name: str, kind: str, **options: object) -> dict:
    path = folder / f"{name}.yaml"
    path.write_text(YAML.format(folder=folder, name=name))
    return {"config": str(path), "set": [f"distributed={kind}"], **options}


def launch(ranks: int, folder: Path, jobs: list[dict]) -> dict:
    path = folder / f"jobs{ranks}.json"
    path.write_text(json.dumps(jobs))
    ran = mpirun(ranks, Path(__file__).with_name("distributed_program.py"), path, cwd=folder)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def log(folder: Path, name: str) -> list[dict[str, str]]:
    with open(folder / f"{name}.run" / "log.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def through_physics(folder: Path, name: str, kind: str, points: str) -> dict:
    """Whole snapshots count in the loss, too; by all of their points, or by some."""
    made = job(folder, name, kind)
    terms = f"{{dos: 0.01, electrons: 0.01, band: 0.01, total_free: 0.01, every: 5, points: {points}}}"
    made["set"] += [
        f"loss.physics={terms}",
        "loss.ramps={total_free: {start: 1, full: 2}, integrated: {full: 1}}",
    ]
    return made


def check_same_training(folder: Path, name: str, other: str) -> None:
    """The same losses and weights to the rounding of float32 sums."""
    for a, b in zip(log(folder, name), log(folder, other), strict=True):
        for key in ("train_loss", "validation_loss"):
            assert float(b[key]) == pytest.approx(float(a[key]), rel=1e-4), (other, key)
    first, second = (Emulator.load(folder / f"{n}.malax").network.state_dict() for n in (name, other))
    for key, value in first.items():
        scale = float(value.abs().max())
        assert torch.allclose(second[key], value, rtol=0, atol=2e-3 * max(scale, 1e-3)), (other, key)


HAS_HOROVOD = importlib.util.find_spec("horovod") is not None


@pytest.fixture(scope="module")
def trained(folder: Path) -> dict[int, dict]:
    """All trainings of 1, 2 and 3 ranks, in one start for each number of ranks."""
    physics = [(f"{points}1", f"{points}3", points) for points in ("null", "101")]
    jobs = {
        1: [job(folder, "one", "mpi"), job(folder, "ddp1", "ddp")]
        + [through_physics(folder, one, "mpi", points) for one, _, points in physics],
        2: [job(folder, "ddp2", "ddp"), job(folder, "mpi2", "mpi"), job(folder, "moved", "ddp", stop=13)],
        3: [job(folder, "ddp3", "ddp"), job(folder, "moved", "mpi", resume=True)]
        + [through_physics(folder, three, "ddp", points) for _, three, points in physics],
    }
    if HAS_HOROVOD:
        jobs[1] += [job(folder, "hvd1", "horovod")]
        jobs[2] += [job(folder, "hvd2", "horovod"), job(folder, "hvdmoved", "horovod", stop=13)]
        jobs[3] += [job(folder, "hvd3", "horovod"), job(folder, "hvdmoved", "horovod", resume=True)]
    return {ranks: launch(ranks, folder, todo) for ranks, todo in jobs.items()}


def test_every_way_on_any_ranks_gives_the_model_of_one(folder: Path, trained: dict[int, dict]) -> None:
    """Also: a training that 2 ranks began by DDP is finished by 3 over MPI."""
    assert trained[1]["outcomes"][:4] == ["done"] * 4 and trained[1]["size"] == 1
    assert trained[2]["outcomes"][:3] == ["done", "done", "interrupted"]
    assert trained[3]["outcomes"][:4] == ["done"] * 4
    for name in ("ddp1", "ddp2", "mpi2", "ddp3", "moved"):
        check_same_training(folder, "one", name)
    for points in ("null", "101"):
        check_same_training(folder, f"{points}1", f"{points}3")
    ways = [Emulator.load(folder / f"{n}.malax").info.config for n in ("one", "ddp2")]
    assert ways[0] == ways[1]  # how it was computed is no property of the model


@needs_horovod
def test_horovod_gives_the_model_of_one_rank(folder: Path, trained: dict[int, dict]) -> None:
    """On 1, 2 and 3 ranks; and a training that 2 ranks began is finished by 3."""
    outcomes = [trained[ranks]["outcomes"][-2:] for ranks in (1, 2, 3)]
    assert outcomes[0][-1] == "done" and outcomes[1:] == [["done", "interrupted"], ["done", "done"]]
    for ranks, found in trained.items():
        assert found["horovod"] == [[rank, ranks] for rank in range(ranks)]
    for name in ("hvd1", "hvd2", "hvd3", "hvdmoved"):
        check_same_training(folder, "one", name)


def test_missing_horovod_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "horovod", None)
    monkeypatch.setitem(sys.modules, "horovod.torch", None)
    with pytest.raises(MissingPeerError, match="python -m malax.commands.install_horovod") as caught:
        distributed.start_horovod(SerialComm())
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    assert install_horovod.COMMAND == distributed.INSTALL_HOROVOD


def test_horovod_of_another_mpi_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Alone:
        """Horovod as it is when its MPI was not the one that started the ranks."""

        is_initialized = staticmethod(lambda: True)
        rank = staticmethod(lambda: 0)
        size = staticmethod(lambda: 2)

    package = type(sys)("horovod")
    package.torch = Alone  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "horovod", package)
    monkeypatch.setitem(sys.modules, "horovod.torch", Alone)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="rank 0 of 2 where malax is rank 0 of 1"):
        distributed.start_horovod(SerialComm())


def test_the_installer_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(install_horovod.sys, "executable", str(tmp_path / "python"))
    with pytest.raises(InputError, match="there is no mpicxx on the PATH; pip install 'malax\\[mpi\\]'"):
        install_horovod.install()


def test_a_failed_build_shows_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(command: list[str], stdout: object, **_: object) -> subprocess.CompletedProcess:
        stdout.write("-- looking\nhvd.cc:1: error: no such thing\n")  # type: ignore[attr-defined]
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(install_horovod.subprocess, "run", failing)
    monkeypatch.setattr(install_horovod.tempfile, "gettempdir", lambda: str(tmp_path))
    with pytest.raises(MachineError, match="hvd.cc:1: error: no such thing"):
        install_horovod._build(tmp_path / "wheels", {})


def test_devices_of_the_ranks() -> None:
    assert distributed.rank_device("cpu", SerialComm()) == torch.device("cpu")
    assert distributed.rank_device("cuda", SerialComm()) == torch.device("cuda")


def test_bfloat16_trains_nearly_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hidden layers only, and only while training; refused where it would be imitated."""
    for name, more in (("single", []), ("mixed", ["precision=bfloat16", "optimizer.fused=true"])):
        made = job(folder, name, "mpi")
        settings = config.load(made["config"], TrainConfig, [*more, "optimizer.average=null"])
        if more:
            with monkeypatch.context() as patch:
                patch.setattr(precision, "cpu_flags", lambda: ["avx2"])
                with pytest.raises(MissingPeerError, match="bfloat16 needs a processor with amx_bf16"):
                    train(settings)
            # the arithmetic is torch's, imitated or not
            monkeypatch.setattr(precision, "cpu_flags", lambda: ["avx512_bf16"])
        train(settings, overwrite=True)
    a, b = ([float(row["validation_loss"]) for row in log(folder, n)] for n in ("single", "mixed"))
    assert b == pytest.approx(a, rel=0.1) and a != b
    network = Emulator.load(folder / "mixed.malax").network
    x = torch.rand(8, network.n_features)
    plain = network.train().scaled(x)
    network.mixed = True
    mixed = network.scaled(x)
    assert mixed.dtype == torch.float32
    assert 0 < (mixed - plain).abs().max() < 0.05 * plain.abs().max()
    assert torch.equal(network.eval().scaled(x), plain)
