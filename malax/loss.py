"""What the training minimises.

The mean over points and energies of the squared error of the scaled LDOS; optionally that of integrals of it
per point, in units of their standard deviation over the training points:

    density           n(r)     = sum_i w_N,i d_i(r)        at the DFT Fermi level
    grand potential   omega(r) = sum_i w_O,i d_i(r)        w_O = w_E + w_S - mu w_N
    integrated LDOS   N_k(r)   = Delta sum_(i<=k) d_i(r)   the mean over all k

The integral of omega's error is to first order the error of E_band - TS: with the number of electrons fixed,
the shift of mu drops out. Energies above the sound part of a snapshot's LDOS count in no term.
Errors of whole snapshots are in `malax.physics_loss`.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from malax.dataset import Batch, Dataset
from malax.errors import InputError
from malax.io.snapshot import Snapshot
from malax.network import LDOSNetwork
from malax.observables import occupation_weights
from malax.physics_loss import PhysicsConfig
from malax.settings import Settings


class EnergyWeight(Settings):
    """A weight for the energies from ``start`` to ``stop``, in eV from a snapshot's Fermi level."""

    start: float = -1e9
    """First energy, relative to the Fermi level (eV)."""
    stop: float = 1e9
    """Last energy, relative to the Fermi level (eV)."""
    weight: float = Field(ge=0)
    """What the squared error there is multiplied with."""


Term = Literal["density", "grand_potential", "integrated", "dos", "electrons", "band", "total_free"]


class Ramp(Settings):
    """The epochs over which the weight of a term grows from zero."""

    start: float = Field(default=0.0, ge=0)
    """Epochs before the term counts."""
    full: float = Field(ge=0)
    """Epochs after which it has its whole weight; between them it grows evenly."""

    @model_validator(mode="after")
    def _upward(self) -> Ramp:
        if self.full < self.start:
            raise ValueError(f"full ({self.full}) must not be below start ({self.start})")
        return self

    def factor(self, progress: float) -> float:
        """Fraction of the weight after ``progress`` epochs."""
        if progress >= self.full:
            return 1.0
        if progress <= self.start:
            return 0.0
        return (progress - self.start) / (self.full - self.start)


class LossConfig(Settings):
    """The terms of the loss."""

    density: float = Field(default=0.0, ge=0)
    """Weight of the squared error of the density per point (0: off; the LDOS itself has weight 1)."""
    grand_potential: float = Field(default=0.0, ge=0)
    """Weight of the squared error of the grand potential per point (0: off)."""
    integrated: float = Field(default=0.0, ge=0)
    """Weight of the squared error of the LDOS integrated up to each energy (0: off)."""
    energy_weights: tuple[EnergyWeight, ...] = ()
    """Weights of ranges of energies relative to the Fermi level; 1 outside of them, the last one wins."""
    snapshot_weights: dict[str, float] = {}
    """Weights by snapshot name or pattern such as 't*'; 1 for all others, the last one wins."""
    physics: PhysicsConfig = PhysicsConfig()
    ramps: dict[Term, Ramp] = {}
    """Terms (density, grand_potential, integrated, dos, electrons, band, total_free) that set in later."""

    def factor(self, term: str, progress: float | None) -> float:
        """What the weight of a term is multiplied with after ``progress`` epochs; None: its end."""
        ramp = self.ramps.get(term)  # type: ignore[call-overload]
        return 1.0 if ramp is None or progress is None else ramp.factor(progress)


def functionals(snapshots: Sequence[Snapshot]) -> np.ndarray:
    """(S, 2, E) weights that turn an LDOS into density (1/A^3) and grand potential (eV/A^3) per snapshot."""
    table = []
    for s in snapshots:
        w = occupation_weights(s.energy_grid, s.fermi_level, s.temperature, s.broadening_variance)
        omega = w.band_energy + w.entropy_term - s.fermi_level * w.number
        table.append(np.stack([w.number.numpy(), omega.numpy()]))
    return np.stack(table)


class Loss:
    """The loss on the batches of one dataset.

    Parameters
    ----------
    dataset : whose snapshots' masks, Fermi levels and weights count
    config : the terms
    ldos_scale : (E,) scale of the LDOS, as in the network
    spread : (3,) standard deviations of density, grand potential and integrated LDOS, see
        `malax.scaling.Statistics.spread`
    """

    def __init__(
        self,
        dataset: Dataset,
        config: LossConfig,
        ldos_scale: Tensor,
        spread: np.ndarray,
        device: torch.device,
    ) -> None:
        def tensor(array: np.ndarray) -> Tensor:
            return torch.as_tensor(array, dtype=torch.float32, device=device)

        self.device, self.config = device, config
        self.progress: float | None = None
        self.ldos_scale = ldos_scale.to(device)
        scale = ldos_scale.cpu().double().numpy()
        weights = np.array([config.density, config.grand_potential, config.integrated])
        factors = np.sqrt(weights) / np.where(spread > 0, spread, 1.0)
        self.snapshot_weights = tensor(_snapshot_weights(dataset.snapshots, config.snapshot_weights))
        self.energy_weights = tensor(dataset.sound * _energy_weights(dataset, config))
        self.sound = tensor(dataset.sound)
        table = functionals(dataset.snapshots) * factors[:2, None] * dataset.sound[:, None] * scale
        self.functionals = tensor(table[:, weights[:2] > 0]) if (weights[:2] > 0).any() else None
        self.names = [name for name in ("density", "grand_potential") if getattr(config, name) > 0]
        step = dataset.energy_grid[1] - dataset.energy_grid[0]
        self.steps = tensor(step * scale * factors[2]) if config.integrated > 0 else None

    def __call__(self, network: LDOSNetwork, batch: Batch) -> Tensor:
        """This batch's rows' part of the mean over ``batch.total`` rows; scalar.

        With ``progress`` (epochs) set, the terms have the weights of that moment, else those of the end.
        """
        return self.by_point(network, batch).sum() / batch.total

    def by_point(self, network: LDOSNetwork, batch: Batch) -> Tensor:
        """(B,) loss of each row of the batch."""
        error = network.scaled(batch.features) - batch.ldos / self.ldos_scale
        loss = (error.square() * self.energy_weights[batch.snapshot]).mean(dim=1)
        if self.functionals is not None:
            values = torch.einsum("pe,pke->pk", error, self.functionals[batch.snapshot])
            loss = loss + (values.square() * self._factors(values)).sum(dim=1)
        if self.steps is not None:
            sound = self.sound[batch.snapshot]
            integrated = torch.cumsum(error * sound * self.steps, dim=1)
            factor = self.config.factor("integrated", self.progress)
            loss = loss + factor * (integrated.square() * sound).mean(dim=1)
        return loss * self.snapshot_weights[batch.snapshot]

    def _factors(self, like: Tensor) -> Tensor:
        """(K,) factors of density and grand potential, those that are on."""
        return torch.tensor([self.config.factor(n, self.progress) for n in self.names]).to(like)


def _energy_weights(dataset: Dataset, config: LossConfig) -> np.ndarray:
    """(S, E)"""
    table = np.ones((len(dataset.snapshots), len(dataset.energy_grid)))
    for weights, s in zip(table, dataset.snapshots, strict=True):
        relative = s.energy_grid - s.fermi_level
        for rule in config.energy_weights:
            weights[(relative >= rule.start) & (relative <= rule.stop)] = rule.weight
    return table


def _snapshot_weights(snapshots: Sequence[Snapshot], rules: dict[str, float]) -> np.ndarray:
    """(S,)"""
    weights = np.ones(len(snapshots))
    for pattern, weight in rules.items():
        if not (np.isfinite(weight) and weight >= 0):
            raise InputError(f"loss.snapshot_weights: the weight of {pattern!r} must be >= 0, got {weight}")
        weights[[fnmatchcase(s.name, pattern) for s in snapshots]] = weight
    return weights
