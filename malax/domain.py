"""How far are the descriptors of a structure from those that a model was trained on?

The measure is Mahalanobis' distance to the training points: features in units of their spread, along their
principal axes, so that a direction in which the training hardly varied counts as far as soon as a structure
varies there. It is stored in the model with the distance that 99.9 % of the training points keep; a point
beyond that is *outside*.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from malax.comm import Comm
from malax.dataset import Dataset

INSIDE = 0.999
"""Fraction of the training points that are inside by definition."""
MANY = 0.05
"""Fraction of a structure's points outside at which a warning is due: fifty times that of the training."""
_SMALLEST = 1e-8
"""Variances along a principal axis below this fraction of the largest are rounding of single precision."""
_BINS = 4096


@dataclass(frozen=True, eq=False)
class Domain:
    """Where a model's training points lie.

    Attributes
    ----------
    mean : (F,) of the features
    axes : (F, R), principal axes divided by the spread along them: (x - mean) @ axes has unit covariance
    limit : the distance, in units of the root mean square one, that `INSIDE` of the training points keep
    """

    mean: np.ndarray
    axes: np.ndarray
    limit: float

    def distances(self, features: np.ndarray) -> np.ndarray:
        """Distances (P,) of features (P, F), 1 being the root mean square of the training points."""
        # in double: the axes of small spread are large numbers that nearly cancel
        scores = (features.astype(np.float64) - self.mean) @ self.axes
        return np.sqrt(np.einsum("pr,pr->p", scores, scores) / self.axes.shape[1])

    def outside(self, features: np.ndarray) -> int:
        """How many of the points (P, F) lie beyond the limit."""
        return int((self.distances(features) > self.limit).sum())

    def to_arrays(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and plain numbers, for a model file."""
        return {"mean": self.mean, "axes": self.axes}, {"limit": self.limit}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], plain: Mapping[str, Any]) -> Domain:
        """The inverse of `to_arrays`."""
        return cls(arrays["mean"], arrays["axes"], float(plain["limit"]))


def concern(fraction: float) -> str | None:
    """What to say of a structure with this fraction of its points outside; None: nothing."""
    if fraction <= MANY:
        return None
    return (
        f"{100 * fraction:.0f} % of the grid points have surroundings unlike the training data "
        f"({100 * (1 - INSIDE):.1f} % there): errors may be much larger than tested"
    )


def collect(dataset: Dataset, comm: Comm) -> Domain:
    """The domain of all points of a dataset, in two passes that the ranks share; collective."""
    f = dataset.rows[0].n_features
    mine = range(comm.rank, len(dataset.rows), comm.size)
    shift = comm.bcast(dataset.rows[0].read(0, 1)[0, :f].astype(np.float64))  # spares cancellation
    sums = np.zeros((len(dataset.rows), f + 1, f + 1))
    for snapshot in mine:
        for _, batch in dataset.blocks(snapshot):
            x = batch.features.double().numpy() - shift
            x = np.hstack([np.ones((len(x), 1)), x])
            sums[snapshot] += x.T @ x
    total = comm.allreduce(sums).sum(axis=0)
    count = total[0, 0]
    mean = total[0, 1:] / count
    covariance = total[1:, 1:] / count - np.outer(mean, mean)
    domain = Domain(mean + shift, principal_axes(covariance, mean + shift), np.inf)
    return Domain(domain.mean, domain.axes, _limit(domain, dataset, mine, comm))


def principal_axes(covariance: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Axes (F, R) that whiten a covariance (F, F); directions without any spread are left out.

    Features are scaled to unit variance first, so that their units do not matter. One that varies by less
    than 1e-6 of its mean (F,) is constant: what it varies by is rounding.
    """
    spread = np.sqrt(np.clip(np.diag(covariance), 0, None))
    varies = np.flatnonzero(spread > 1e-6 * np.abs(mean))
    scale = spread[varies]
    values, vectors = np.linalg.eigh(covariance[np.ix_(varies, varies)] / np.outer(scale, scale))
    kept = values > _SMALLEST * values.max()
    axes = np.zeros((len(mean), int(kept.sum())))
    axes[varies] = vectors[:, kept] / scale[:, None] / np.sqrt(values[kept])
    return axes


def _limit(domain: Domain, dataset: Dataset, mine: range, comm: Comm) -> float:
    """The quantile `INSIDE` of the training points' distances, from a histogram (exact to 0.3 %)."""
    edges = np.geomspace(0.1, 1e4, _BINS + 1)
    counts = np.zeros(_BINS)
    for snapshot in mine:
        for _, batch in dataset.blocks(snapshot):
            found = domain.distances(batch.features.numpy())
            counts += np.histogram(np.clip(found, edges[0], edges[-1]), edges)[0]
    reached = np.cumsum(comm.allreduce(counts))
    return float(edges[int(np.searchsorted(reached, INSIDE * reached[-1])) + 1])
