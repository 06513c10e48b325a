"""Mean and spread of features and LDOS over all training points, in one streaming pass.

Sums are double. Every snapshot is summed on its own and the sums are merged in the order of the snapshots
(Chan, Golub, LeVeque 1983), so the result does not depend on the number of ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from malax.comm import Comm
from malax.dataset import Dataset, Progress
from malax.errors import InputError
from malax.network import LDOSNetwork
from malax.settings import Settings


class ScalingConfig(Settings):
    """In what unit the loss sees the LDOS."""

    ldos: Literal["energy", "global"] = "energy"
    """Divide each energy by its own standard deviation, or all by their common one."""
    floor: float = Field(default=0.1, gt=0, le=1)
    """Smallest scale of an energy, as a fraction of the common one (where the LDOS is nearly zero)."""


@dataclass
class Moments:
    """Count, mean and sum of squared deviations of columns: each (C,) float64."""

    count: np.ndarray
    mean: np.ndarray
    squares: np.ndarray

    @classmethod
    def zero(cls, columns: int) -> Moments:
        return cls(*(np.zeros(columns) for _ in range(3)))

    @classmethod
    def of(cls, values: np.ndarray) -> Moments:
        """Of the rows of (n, C)."""
        values = values.astype(np.float64)
        mean = values.mean(axis=0)
        return cls(np.full(values.shape[1], float(len(values))), mean, ((values - mean) ** 2).sum(axis=0))

    def merged(self, other: Moments, use: np.ndarray | slice = slice(None)) -> Moments:
        """Of the rows of both together, in the columns ``use``; the others stay."""
        total = self.count + other.count
        shift = other.mean - self.mean
        share = np.divide(other.count, total, out=np.zeros_like(total), where=total > 0)
        mean, squares, count = self.mean.copy(), self.squares.copy(), self.count.copy()
        mean[use] = (self.mean + shift * share)[use]
        squares[use] = (self.squares + other.squares + shift**2 * self.count * share)[use]
        count[use] = total[use]
        return Moments(count, mean, squares)

    @property
    def deviation(self) -> np.ndarray:
        """Standard deviation (C,); zero where nothing was counted."""
        return np.sqrt(
            np.divide(self.squares, self.count, out=np.zeros_like(self.mean), where=self.count > 0)
        )


@dataclass
class Statistics:
    """Moments over all training points.

    features : (F,)
    ldos, integrated : (E,) at the sound energies of each snapshot only; the LDOS, and its sum up to each
        energy times the spacing
    functionals : (K,), those of the loss: density and grand potential
    """

    features: Moments
    ldos: Moments
    integrated: Moments
    functionals: Moments

    @property
    def spread(self) -> np.ndarray:
        """(K + 1,) standard deviations of the functionals, and the common one of the integrated LDOS."""
        common = np.sqrt(np.mean(self.integrated.deviation[self.integrated.count > 0] ** 2))
        return np.append(self.functionals.deviation, common)


def collect(
    dataset: Dataset, functionals: np.ndarray, comm: Comm, progress: Progress | None = None
) -> Statistics:
    """One pass over all rows of a dataset, the ranks sharing the snapshots.

    Parameters
    ----------
    functionals : (S, K, E) weights per snapshot that turn an LDOS into K numbers (K may be 0)
    """
    f, e = dataset.rows[0].n_features, dataset.rows[0].n_energies
    ends = np.cumsum([f, e, e, functionals.shape[1]])
    step = dataset.energy_grid[1] - dataset.energy_grid[0]
    mine = range(comm.rank, len(dataset.rows), comm.size)
    table = np.zeros((len(dataset.rows), 3, ends[-1]))
    for done, snapshot in enumerate(mine):
        if progress:
            progress("scalers", done, len(mine))
        total = Moments.zero(ends[-1])
        for _, batch in dataset.blocks(snapshot):
            ldos = batch.ldos.double().numpy()
            integrated = step * np.cumsum(ldos, axis=1)
            columns = [batch.features.numpy(), ldos, integrated, ldos @ functionals[snapshot].T]
            total = total.merged(Moments.of(np.hstack(columns)))
        table[snapshot] = total.count, total.mean, total.squares
    if progress:
        progress("scalers", len(mine), len(mine))
    merged = Moments.zero(ends[-1])
    for part, sound in zip(comm.allreduce(table), dataset.sound, strict=True):
        use = np.ones(ends[-1], dtype=bool)
        use[f : ends[2]] = np.tile(sound, 2)
        merged = merged.merged(Moments(*part), use)
    parts = [slice(start, stop) for start, stop in zip([0, *ends[:-1]], ends, strict=True)]
    return Statistics(*(Moments(merged.count[p], merged.mean[p], merged.squares[p]) for p in parts))


def ldos_scale(statistics: Statistics, config: ScalingConfig) -> np.ndarray:
    """Scale (E,) of the LDOS in 1/(eV A^3), positive also where nothing was learned."""
    spread = statistics.ldos.deviation
    learned = statistics.ldos.count > 0
    common = float(np.sqrt(np.mean(spread[learned] ** 2)))
    if not common > 0:
        raise InputError(
            "the LDOS of the training snapshots is the same at every point: nothing can be learned"
        )
    if config.ldos == "global":
        return np.full_like(spread, common)
    return np.maximum(spread, config.floor * common)


def scale_network(network: LDOSNetwork, statistics: Statistics, config: ScalingConfig) -> None:
    """Set the scalers of a network; silence the energies at which no training snapshot is complete.

    There the LDOS that the network gives is zero, as it is in DFT above the highest computed band.
    """
    mean, spread = statistics.features.mean, statistics.features.deviation
    # a feature that never changes carries rounding noise only: it must not be blown up
    spread = np.where(spread > 1e-6 * np.abs(mean), spread, np.maximum(np.abs(mean), 1.0))
    network.set_scalers(
        torch.from_numpy(mean),
        torch.from_numpy(spread),
        torch.from_numpy(ldos_scale(statistics, config)),
        torch.from_numpy(statistics.ldos.mean),
    )
    unknown = torch.from_numpy(statistics.ldos.count == 0)
    with torch.no_grad():
        last = network.linear_layers[-1]
        last.weight[unknown] = 0.0
        last.bias[unknown] = -20.0 if network.non_negative else 0.0  # softplus(-20) is 0 in single precision
