"""Energies that need no LDOS: what a model must beat to have learned anything."""

from __future__ import annotations

import numpy as np

from malax.io.snapshot import Snapshot
from malax.model_file import ModelInfo

BASELINE_TERMS = ("band", "total_free")
SAME_TEMPERATURE = 0.5
"""Temperatures that differ by less (K) are one group."""


def baselines(info: ModelInfo, snapshot: Snapshot) -> tuple[dict[str, float], dict[str, float]]:
    """Without any LDOS: band and total_free (eV per cell) from the training energies, as mean and as fit."""
    n_atoms = len(snapshot.atoms)
    ewald = snapshot.energies["ewald"] / n_atoms
    here = np.array([1.0, ewald, snapshot.grid.volume / n_atoms, snapshot.temperature])
    needed = (*BASELINE_TERMS, "ewald")
    training = [s for s in info.training_snapshots if s.role == "training" and set(needed) <= set(s.energies)]
    mean: dict[str, float] = {}
    fit: dict[str, float] = {}
    if not training:
        return mean, fit
    rows = np.array([[1.0, s.energies["ewald"], s.volume, s.temperature] for s in training])
    same = [s for s in training if abs(s.temperature - snapshot.temperature) < SAME_TEMPERATURE]
    for term in BASELINE_TERMS:
        if same:
            mean[term] = n_atoms * float(np.mean([s.energies[term] for s in same]))
        values = np.array([s.energies[term] for s in training])
        fit[term] = n_atoms * _least_squares(rows, values, here)
    return mean, fit


def _least_squares(rows: np.ndarray, values: np.ndarray, here: np.ndarray) -> float:
    """Fit ``values`` (n,) to ``rows`` (n, 4), the first column constant, and evaluate at ``here`` (4,).

    Deviations from the mean in units of their spread: a column that never varies then drops out.
    """
    center, spread = rows[:, 1:].mean(axis=0), rows[:, 1:].std(axis=0)
    varies = spread > 1e-9 * (1 + abs(center))
    x = (rows[:, 1:] - center)[:, varies] / spread[varies]
    slopes = np.linalg.lstsq(x, values - values.mean(), rcond=1e-10)[0]
    return float(values.mean() + ((here[1:] - center)[varies] / spread[varies]) @ slopes)
