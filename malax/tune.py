"""``malax tune``: a hyperparameter search with Optuna over trainings.

The study is a journal file beside the trials: any number of processes work on it, and an interrupted search
goes on where it was. A trial is an ordinary training; its validation errors are reported as they come, and
trials that do worse than the median are pruned. The winner is trained again with new seeds, because the best
of many trials is also the luckiest of them.
"""

from __future__ import annotations

import fcntl
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from malax import config as configuration
from malax.errors import FileError, InputError, MalaxError, MissingPeerError
from malax.io.files import atomic_path
from malax.train import train
from malax.train_config import TrainConfig
from malax.training import TrainingInterrupted
from malax.tune_config import TuneConfig

COLUMNS = {"total_free": "total_free_mae", "density": "density_mape", "loss": "validation_loss"}
"""Objective -> column of log.csv."""

Say = Callable[[str], None]


def check_space(config: TuneConfig) -> None:
    """Refuse a search some of whose values are no valid configuration, before anything is trained."""
    for key, candidates in config.search.space.items():
        for value in candidates.extremes():
            try:
                trial_config(config, {key: value}, config.output)
            except InputError as error:
                raise InputError(f"search.space: {error}") from error


def trial_config(config: TuneConfig, values: Mapping[str, Any], output: Path, **more: Any) -> TrainConfig:
    """The training configuration with searched values put in; ``more`` sets whole keys."""
    tree = config.model_dump(mode="json", exclude={"search"})
    for key, value in {**values, "output": str(output), **more}.items():
        *sections, name = key.split(".")
        node = tree
        for section in sections:
            node = node[section] if isinstance(node.get(section), dict) else node.setdefault(section, {})
        node[name] = value
    return configuration.validate(escaped(tree), TrainConfig)


def escaped(value: Any) -> Any:
    """A tree in whose strings no $ starts the name of an environment variable."""
    if isinstance(value, dict):
        return {key: escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [escaped(item) for item in value]
    return value.replace("$", "$$") if isinstance(value, str) else value


class Search:
    """One process's part in a search.

    Parameters
    ----------
    config : checked configuration
    create : make the study if it is not there; workers only join it

    Raises
    ------
    MissingPeerError
        Optuna is not installed.
    InputError
        the folder holds a search with another configuration.
    """

    def __init__(self, config: TuneConfig, create: bool = True) -> None:
        self.optuna = import_optuna()
        self.config, self.folder = config, config.tune_folder
        (self.folder / "trials").mkdir(parents=True, exist_ok=True)
        identity = self._identity()
        path = self.folder / "identity.json"
        if create and not path.exists():
            with atomic_path(path) as temporary:
                temporary.write_text(identity, encoding="utf-8")
        if path.read_text(encoding="utf-8") != identity:
            raise InputError(
                f"{self.folder} holds a search with another configuration (only search.trials and "
                "search.seeds may change): give another output, or --overwrite to start anew"
            )
        journal = self.optuna.storages.journal.JournalFileBackend(str(self.folder / "study.journal"))
        self.study = self.optuna.create_study(
            storage=self.optuna.storages.JournalStorage(journal),
            study_name="malax",
            load_if_exists=True,
            direction="minimize",
            sampler=self._sampler(create),
            pruner=self._pruner(),
        )

    def _identity(self) -> str:
        plain = self.config.model_dump(mode="json", exclude={"output", "threads", "device", "distributed"})
        for key in ("trials", "seeds"):
            plain["search"].pop(key)
        return json.dumps(plain, indent=1, sort_keys=True)

    def _sampler(self, first: bool) -> Any:
        # workers must not draw the same values; constant_liar keeps them off each other's trials
        seed = self.config.search.sampler_seed if first else None
        return self.optuna.samplers.TPESampler(seed=seed, constant_liar=True)

    def _pruner(self) -> Any:
        search = self.config.search
        if not search.prune:
            return self.optuna.pruners.NopPruner()
        warmup = math.ceil(self.config.epochs / 4)
        return self.optuna.pruners.MedianPruner(n_startup_trials=search.prune_after, n_warmup_steps=warmup)

    def run(self, say: Say) -> None:
        """Train trials until the study has as many as were asked for."""
        states = (self.optuna.trial.TrialState.COMPLETE, self.optuna.trial.TrialState.PRUNED)
        enough = self.optuna.study.MaxTrialsCallback(self.config.search.trials, states=states)
        if len(self.study.get_trials(deepcopy=False, states=states)) >= self.config.search.trials:
            return
        try:
            self.study.optimize(lambda trial: self._objective(trial, say), callbacks=[enough])
        except TrainingInterrupted as error:
            raise TrainingInterrupted(
                "interrupted; the trials that are done are kept: run the same command to go on"
            ) from error

    def _objective(self, trial: Any, say: Say) -> float:
        space = self.config.search.space
        values = {key: candidates.suggest(trial, key) for key, candidates in space.items()}
        trial.set_user_attr("values", values)
        watch = _Watch(trial, COLUMNS[self.config.search.objective], self.optuna.TrialPruned)
        say(f"trial {trial.number}: {shown(values)}")
        made = self._settings(values, self.folder / "trials" / f"{trial.number:04d}.malax")
        try:
            train(made, overwrite=True, watch=watch, quiet=True)
        except (InputError, TrainingInterrupted):
            raise
        except MalaxError as error:
            trial.set_user_attr("failed", str(error))
            say(f"trial {trial.number}: {error}")
            raise self.optuna.TrialPruned(str(error)) from error
        say(f"trial {trial.number}: {self.config.search.objective} {watch.value:.6g}")
        return watch.value

    def _settings(self, values: Mapping[str, Any], output: Path, **more: Any) -> TrainConfig:
        objective = self.config.search.objective
        select = "last" if self.config.select == "last" else objective
        cache = str(self.config.data.cache or self.folder / "cache")
        more = {"data.test": [], "members": 1, **more}
        return trial_config(self.config, values, output, **{"select": select, "data.cache": cache, **more})

    def best(self) -> Any:
        """The best finished trial.

        Raises
        ------
        InputError
            no trial has a finite error.
        """
        done = self.study.get_trials(states=(self.optuna.trial.TrialState.COMPLETE,))
        finite = [trial for trial in done if math.isfinite(trial.value)]
        if not finite:
            raise InputError(
                f"no trial of {self.folder} came to a finite {self.config.search.objective}: search other "
                "values, more epochs, or more trials"
            )
        return min(finite, key=lambda trial: (trial.value, trial.number))

    def winner_seeds(self, trial: Any, say: Say) -> list[float]:
        """The objective of the winner's values, trained with ``search.seeds`` new seeds."""
        found = []
        for i in range(1, self.config.search.seeds + 1):
            seed = self.config.seed + i
            output = self.folder / f"winner{trial.number:04d}_seed{seed}.malax"
            done = output.with_suffix(".objective.json")
            if not (done.exists() and output.exists()):
                watch = _Watch(None, COLUMNS[self.config.search.objective])
                train(self._settings(trial.user_attrs["values"], output, seed=seed), overwrite=True,
                      watch=watch, quiet=True)  # fmt: skip
                with atomic_path(done) as temporary:
                    temporary.write_text(json.dumps(watch.value), encoding="utf-8")
            found.append(float(json.loads(done.read_text(encoding="utf-8"))))
            say(f"winner with seed {seed}: {self.config.search.objective} {found[-1]:.6g}")
        return found


class _Watch:
    """Follows a training: the objective of the weights that are kept; prunes what does badly."""

    def __init__(self, trial: Any, column: str, pruned: type[Exception] = Exception) -> None:
        self.trial, self.column, self.pruned = trial, column, pruned
        self.value = math.inf

    def __call__(self, row: Mapping[str, Any]) -> None:
        error = row.get(self.column)
        if error is None:  # an epoch without energies
            return
        error = float(error) if math.isfinite(error) else math.inf
        if row["best"] or math.isinf(self.value):
            self.value = error
        if self.trial is not None:
            self.trial.report(error, row["epoch"])
            if self.trial.should_prune():
                raise self.pruned()


def import_optuna() -> Any:
    """The module optuna, its own talk turned off."""
    try:
        import optuna
    except ImportError as error:
        raise MissingPeerError("malax tune needs Optuna: pip install 'malax[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Refuse a second search in a folder; the lock goes away with the process, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FileError(
                f"{folder} is being searched by another process; for several give --workers N"
            ) from error
        yield


def fail_leftovers(search: Search) -> None:
    """Trials that a killed process left as running are marked as failed: nobody works on them."""
    states = search.optuna.trial.TrialState
    for trial in search.study.get_trials(states=(states.RUNNING,)):
        search.study.tell(trial.number, state=states.FAIL)


def shown(values: Mapping[str, Any]) -> str:
    """Values in one line."""
    return ", ".join(f"{key} {f'{v:.4g}' if isinstance(v, float) else v}" for key, v in values.items())
