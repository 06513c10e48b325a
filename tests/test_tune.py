"""``malax tune``: searches, prunes, goes on after an interruption, and leaves a configuration that trains."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import fakes
import pytest

from malax import cli, config, launcher, tune
from malax.errors import FileError, InputError, MissingPeerError
from malax.train import TrainConfig
from malax.training import TrainingInterrupted
from malax.tune_config import TuneConfig

YAML = """
output: $TUNE_OUT/m.malax
data:
  training: ["{folder}/a*.h5"]
  validation: ["{folder}/v0.h5"]
  test: ["{folder}/t0.h5"]
  cache: "{folder}/cache"
  batch_size: 128
descriptor: {{twojmax: 2, cutoff: 3.0}}
network: {{hidden: [8]}}
optimizer: {{average: null}}
schedule: {{warmup_epochs: 0}}
epochs: 4
evaluate_every: 1
threads: 1
search:
  space:
    optimizer.learning_rate: {{low: 1e-5, high: 1e-2, log: true}}
    network.hidden: {{choices: [[4], [16]]}}
    descriptor.twojmax: {{low: 2, high: 4, step: 2}}
  trials: 5
  seeds: 2
  objective: density
  prune: false
"""


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*launcher.TASK_COUNTS, *launcher.TASK_MARKS):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune")
    for name, seed in (("a0", 0), ("v0", 10), ("t0", 20)):
        fakes.make_snapshot(folder / f"{name}.h5", seed, shape=(6, 6, 6))
    (folder / "tune.yaml").write_text(YAML.format(folder=folder))
    return folder


@pytest.fixture
def place(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configuration file; what it makes goes into ``tmp_path``."""
    monkeypatch.setenv("TUNE_OUT", str(tmp_path))
    return folder / "tune.yaml"


def load(path: Path, *overrides: str) -> TuneConfig:
    return config.load(path, TuneConfig, overrides)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as leave:
        cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return int(leave.value.code or 0), out, err


def quiet(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def searched(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished search of two workers."""
    pytest.importorskip("optuna", reason="Optuna is not installed")
    out = tmp_path_factory.mktemp("searched")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNE_OUT", str(out))
        for name in (*launcher.TASK_COUNTS, *launcher.TASK_MARKS):
            patch.delenv(name, raising=False)
        patch.setenv("PYTHONPATH", str(Path(cli.__file__).parents[1]))
        with pytest.raises(SystemExit) as leave:
            cli.main(["tune", str(folder / "tune.yaml"), "--workers", "2"])
    assert not leave.value.code
    return out / "m.tune", json.loads((out / "m.tune" / "tune.json").read_text())


def test_a_search(searched: tuple[Path, dict[str, Any]]) -> None:
    made, summary = searched
    finished = [t for t in summary["trials"] if t["state"] == "complete"]
    assert len(finished) >= 5 and {t["epochs"] for t in finished} == {4}
    assert summary["value"] == min(t["value"] for t in finished)
    assert summary["values"] == summary["trials"][summary["winner"]]["values"]
    for trial in finished:
        assert 1e-5 <= trial["values"]["optimizer.learning_rate"] <= 1e-2
        assert trial["values"]["network.hidden"] in ([4], [16])
        assert trial["values"]["descriptor.twojmax"] in (2, 4)
        with open(made / "trials" / f"{trial['number']:04d}.run" / "log.csv", newline="") as file:
            errors = [float(row["density_mape"]) for row in csv.DictReader(file)]
        assert trial["value"] == pytest.approx(min(errors))
    assert len(summary["seeds"]) == 2 and len(set(summary["seeds"])) == 2
    assert summary["seed_spread"] == pytest.approx(max(summary["seeds"]) - min(summary["seeds"]))
    with open(made / "trials.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(summary["trials"])
    assert float(table[summary["winner"]]["density"]) == summary["value"]
    for name in ("history.png", "parameters.png"):
        assert (made / name).read_bytes().startswith(b"\x89PNG")


def test_best_yaml_is_a_training_configuration(searched: tuple[Path, dict[str, Any]], folder: Path) -> None:
    made, summary = searched
    best = config.load(made / "best.yaml", TrainConfig)
    assert best.output == made.parent / "m.malax"
    assert best.data.training == ((folder / "a0.h5").resolve(),)
    assert best.data.test == ((folder / "t0.h5").resolve(),)
    assert list(best.network.hidden) == summary["values"]["network.hidden"]
    assert best.optimizer.learning_rate == summary["values"]["optimizer.learning_rate"]
    assert best.descriptor.cutoff == 3.0 and best.epochs == 4


def test_a_finished_search_only_reports(
    searched: tuple[Path, dict[str, Any]], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    made, summary = searched
    monkeypatch.setenv("TUNE_OUT", str(made.parent))
    monkeypatch.setattr(tune, "train", None)  # nothing is trained
    code, out, _ = run(capsys, "tune", folder / "tune.yaml", "--json")
    assert code == 0
    found = json.loads(out)
    assert {key: found[key] for key in summary} == summary
    code, out, _ = run(capsys, "tune", folder / "tune.yaml")
    assert code == 0 and f"winner    trial {summary['winner']}" in out and "best.yaml" in out
    code, _, err = run(capsys, "tune", folder / "tune.yaml", "--set", "epochs=5")
    assert code == 2 and "another configuration" in err
    with tune.alone_in(made):
        code, _, err = run(capsys, "tune", folder / "tune.yaml")
    assert code == 2 and "is being searched by another process" in err


def test_an_interrupted_search_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna", reason="Optuna is not installed")
    made = load(place, "search.trials=3")
    whole, calls = tune.train, []

    def stopped(settings: TrainConfig, **options: Any) -> Path:
        calls.append(settings.output.stem)
        watch = options["watch"]

        def interrupt(row: Any) -> None:
            watch(row)
            if len(calls) == 2:
                os.kill(os.getpid(), signal.SIGINT)

        return whole(settings, **{**options, "watch": interrupt})

    monkeypatch.setattr(tune, "train", stopped)
    with pytest.raises(TrainingInterrupted, match="run the same command to go on"):
        tune.Search(made).run(quiet)
    # a trial of a process that was killed
    left = tune.Search(made)
    left.study.ask()
    tune.fail_leftovers(left)
    monkeypatch.setattr(tune, "train", whole)
    again = tune.Search(made)
    again.run(quiet)
    states = [trial.state.name for trial in again.study.get_trials()]
    assert states == ["COMPLETE", "FAIL", "FAIL", "COMPLETE", "COMPLETE"]
    assert again.best().value == min(t.value for t in again.study.get_trials() if t.value is not None)


def test_bad_trials_are_pruned(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What diverges, and what is worse than the median; both count as trials that were made."""
    pytest.importorskip("optuna", reason="Optuna is not installed")
    rates = iter([3e-3, 4e-3, 1e-12, 1e30])
    monkeypatch.setattr(
        "malax.tune_config.Candidates.suggest", lambda self, trial, key: next(rates) if self.log else 2
    )
    made = load(
        place,
        "search={space: {optimizer.learning_rate: {low: 1e-5, high: 1.0, log: true}}, trials: 4, "
        "prune_after: 2, objective: density}",
        "optimizer.gradient_clip=null",
    )
    search = tune.Search(made)
    search.run(quiet)
    trials = search.study.get_trials()
    assert [t.state.name for t in trials] == ["COMPLETE", "COMPLETE", "PRUNED", "PRUNED"]
    assert max(trials[2].intermediate_values) < 4 and "not finite" in trials[3].user_attrs["failed"]
    assert search.best().number in (0, 1)


def test_no_trial_was_any_good(place: Path) -> None:
    pytest.importorskip("optuna", reason="Optuna is not installed")
    with pytest.raises(InputError, match="no trial of .* came to a finite density"):
        tune.Search(load(place)).best()


@pytest.mark.parametrize(
    "space, message",
    [
        ("{optimizer.rate: {choices: [1]}}", r"search.space: optimizer.rate: unknown key"),
        ("{network.hidden: {choices: [[8], 8]}}", "search.space: network.hidden"),
        ("{descriptor.twojmax: {low: 2, high: 40}}", "search.space: descriptor.twojmax"),
        ("{descriptor.cutoff: {low: 3.0, high: 4.0}}", "descriptor.cutoff needs choices or a step"),
        ("{seed: {choices: [1, 2]}}", "seed cannot be searched; keys that can: network"),
        ("{optimizer.learning_rate: {low: 1.0, high: 0.1}}", r"low \(1.0\) must be below high \(0.1\)"),
        ("{optimizer.learning_rate: {low: 0.0, high: 0.1, log: true}}", "log needs a low above 0"),
        ("{optimizer.learning_rate: {low: 0.1}}", "give choices"),
        ("{optimizer.learning_rate: {low: 0.1, choices: [1]}}", "give either choices, or low and high"),
        ("{optimizer.learning_rate: {lowest: 0.1}}", "unknown key; did you mean low"),
    ],
)
def test_what_cannot_be_searched(place: Path, space: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        tune.check_space(load(place, f"search.space={space}"))
    assert "\n" not in str(caught.value)


def test_the_loss_is_no_objective_for_its_own_weights(place: Path) -> None:
    with pytest.raises(InputError, match="changes the loss itself"):
        load(place, "search.objective=loss", "search.space={loss.density: {choices: [0.0, 1.0]}}")


def test_refusals(place: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(capsys, "tune")[0] == 2
    code, out, _ = run(capsys, "tune", "--schema")
    assert code == 0 and "  space: mapping from text to section of 1 or more (" in out
    monkeypatch.setenv("PMI_SIZE", "2")
    code, _, err = run(capsys, "tune", place)
    assert code == 2 and "give --workers N" in err
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(MissingPeerError, match=r"pip install 'malax\[tune\]'"):
        tune.import_optuna()


def test_dollars_and_lock(tmp_path: Path) -> None:
    assert tune.escaped({"a": ["$x", 1], "b": None}) == {"a": ["$$x", 1], "b": None}
    with tune.alone_in(tmp_path), pytest.raises(FileError), tune.alone_in(tmp_path):
        pass
    assert math.isinf(tune._Watch(None, "x").value)
