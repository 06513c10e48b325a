"""What ``malax tune`` reads: a training configuration with a section ``search``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from malax.settings import Settings
from malax.train_config import TrainConfig

SEARCHED = ("network", "descriptor", "optimizer", "schedule", "scaling", "loss")
"""Sections whose keys may be searched; beside them single keys of ``data``."""
SEARCHED_DATA = ("data.batch_size", "data.points_per_snapshot")


class Candidates(Settings):
    """The values that one key may take: ``choices``, or from ``low`` to ``high``."""

    choices: tuple[Any, ...] | None = None
    """A list of values, such as [[128, 128], [256, 256, 256]] for network.hidden."""
    low: int | float | None = None
    """Smallest value."""
    high: int | float | None = None
    """Largest value."""
    step: int | float | None = Field(default=None, gt=0)
    """Distance of values; null: any number between (whole numbers: 1)."""
    log: bool = False
    """Draw the logarithm evenly, as for a learning rate."""

    @model_validator(mode="after")
    def _one_kind(self) -> Candidates:
        if self.choices is not None:
            if any(x is not None for x in (self.low, self.high, self.step)) or self.log:
                raise ValueError("give either choices, or low and high")
            if not self.choices:
                raise ValueError("choices must hold at least one value")
        elif self.low is None or self.high is None:
            raise ValueError("give choices: [...], or low: and high:")
        elif not self.low < self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        elif self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log needs a low above 0, and no step")
        return self

    @property
    def is_whole(self) -> bool:
        """Whether a range is one of whole numbers."""
        return all(x is None or isinstance(x, int) for x in (self.low, self.high, self.step))

    def extremes(self) -> list[Any]:
        """All choices, or both ends: what must be valid for the search to be."""
        return list(self.choices) if self.choices is not None else [self.low, self.high]

    def suggest(self, trial: Any, key: str) -> Any:
        """A value for an Optuna trial."""
        if self.choices is not None:  # Optuna stores plain values only: lists go as JSON
            return json.loads(trial.suggest_categorical(key, [json.dumps(c) for c in self.choices]))
        if self.is_whole:
            return trial.suggest_int(key, self.low, self.high, step=self.step or 1, log=self.log)
        step = None if self.step is None else float(self.step)
        return trial.suggest_float(key, float(self.low or 0), float(self.high or 0), step=step, log=self.log)


class SearchConfig(Settings):
    """How ``malax tune`` searches."""

    space: dict[str, Candidates] = Field(min_length=1)
    """Keys of the training configuration, such as optimizer.learning_rate, and the values they may take."""
    trials: int = Field(default=30, ge=1)
    """Trainings to finish or prune, of all workers and runs of the command together."""
    objective: Literal["total_free", "density", "loss"] = "total_free"
    """What is minimised, of the validation snapshots: mean absolute error of the total free energy
    (meV/atom), that of the density (percent), or the loss."""
    prune: bool = True
    """Stop a trial whose validation error is worse than the median of the earlier ones in the same epoch."""
    prune_after: int = Field(default=5, ge=1)
    """Trials that are finished before any is pruned."""
    seeds: int = Field(default=3, ge=1)
    """Trainings of the winner with new seeds: their spread says what its lead is worth."""
    sampler_seed: int = Field(default=0, ge=0)
    """Decides the order of the search (with one worker)."""

    @model_validator(mode="after")
    def _searchable(self) -> SearchConfig:
        for key, candidates in self.space.items():
            section = key.partition(".")[0]
            if key not in SEARCHED_DATA and (section not in SEARCHED or "." not in key):
                known = ", ".join([*(f"{name}.*" for name in SEARCHED), *SEARCHED_DATA])
                raise ValueError(f"{key} cannot be searched; keys that can: {known}")
            if section in ("loss", "scaling") and self.objective == "loss":
                raise ValueError(f"{key} changes the loss itself: set objective to total_free or density")
            continuous = candidates.choices is None and candidates.step is None and not candidates.is_whole
            if section == "descriptor" and continuous:
                raise ValueError(
                    f"{key} needs choices or a step: the features of every value are kept on disk"
                )
        return self


class TuneConfig(TrainConfig):
    """Everything that ``malax tune`` reads: what ``malax train`` reads, and ``search``."""

    search: SearchConfig
    """What is searched, and how."""

    @property
    def tune_folder(self) -> Path:
        """Folder of study, trials, tables, plots and best.yaml."""
        return self.output.with_suffix(".tune")
