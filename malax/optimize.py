"""The optimiser's side of training: AdamW, learning rate, moving average of the weights."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from malax.network import LDOSNetwork
from malax.settings import Settings


class OptimizerConfig(Settings):
    """AdamW (Loshchilov and Hutter 2019) and what surrounds its step."""

    learning_rate: float = Field(default=1e-3, gt=0)
    """Largest learning rate, reached after the warm-up."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """Decoupled weight decay of the weight matrices; biases are left alone."""
    gradient_clip: float | None = Field(default=1.0, gt=0)
    """Longest gradient; longer ones are shortened. null: off."""
    fused: bool = False
    """AdamW in one pass over the weights: some per cent faster; the last bits differ."""
    average: float | None = Field(default=0.999, gt=0, lt=1)
    """Decay per step of the moving average of the weights; that is what is validated and saved. null: off."""


class ScheduleConfig(Settings):
    """How the learning rate changes."""

    kind: Literal["cosine", "plateau"] = "cosine"
    """Fall like a cosine over all epochs, or by ``factor`` when the validation loss stays."""
    warmup_epochs: float = Field(default=1.0, ge=0)
    """Epochs over which the learning rate rises from zero."""
    final: float = Field(default=0.01, ge=0, le=1)
    """Last (cosine) or smallest (plateau) learning rate, as a fraction of the largest."""
    factor: float = Field(default=0.5, gt=0, lt=1)
    """Plateau: what the learning rate is multiplied with."""
    patience: int = Field(default=5, ge=1)
    """Plateau: epochs without a better validation loss after which it falls."""


def learning_rate(
    optimizer: OptimizerConfig, schedule: ScheduleConfig, progress: float, epochs: int, reductions: int
) -> float:
    """The learning rate at ``progress`` (epochs done, with their fraction) out of ``epochs``.

    ``reductions`` is how often a plateau was met.
    """
    warmup = min(1.0, progress / schedule.warmup_epochs) if schedule.warmup_epochs > 0 else 1.0
    if schedule.kind == "plateau":
        factor = max(schedule.factor**reductions, schedule.final)
    else:
        done = min(1.0, progress / epochs)
        factor = schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * done)) / 2
    return optimizer.learning_rate * warmup * factor


def adamw(network: LDOSNetwork, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW that decays matrices only."""
    matrices = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    # None is torch's own choice between its other two implementations
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=config.fused or None)


class Average:
    """Exponential moving average of the parameters of a network.

    In the first steps the decay is (1 + n) / (10 + n), so that the random start is forgotten soon.
    """

    def __init__(self, network: LDOSNetwork, decay: float | None) -> None:
        self.decay = decay
        self.steps = 0
        self.source = list(network.parameters())
        self.network = network if decay is None else _copy(network)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters as they are after a step."""
        self.steps += 1
        if self.decay is None:
            return
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for mean, now in zip(self.network.parameters(), self.source, strict=True):
            mean.lerp_(now, 1 - decay)


def _copy(network: LDOSNetwork) -> LDOSNetwork:
    twin = LDOSNetwork.from_config(network.config, network.n_features, network.n_energies)
    twin.load_state_dict(network.state_dict())
    return twin.to(network.feature_mean.device).requires_grad_(False)


def clip_gradient(network: LDOSNetwork, longest: float | None) -> Tensor:
    """Shorten the gradient to ``longest``; its length before."""
    parameters = list(network.parameters())
    return torch.nn.utils.clip_grad_norm_(parameters, math.inf if longest is None else longest)
