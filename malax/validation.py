"""Errors in meV/atom of a network under training, from the cached rows of a snapshot.

`malax.evaluate` predicts a snapshot from its atoms; this takes the features that training has at hand, so
that it is cheap enough for every few epochs. Two passes over the rows, of which one block is held at a time:
the first gives the DOS and with it the Fermi level, the second the density there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from malax.comm import Comm
from malax.dataset import Dataset
from malax.energies import total_free_energy
from malax.errors import InputError, MalaxError
from malax.fields import percentage_error, resample
from malax.io.snapshot import Snapshot
from malax.loss import Loss
from malax.network import LDOSNetwork
from malax.observables import from_dos, number_weights


class NotFinite(MalaxError):
    """A loss is NaN or infinite; the message names the snapshots."""


class Errors(NamedTuple):
    """Predicted minus DFT: energies in meV/atom, the Fermi level in meV; density MAPE in percent.

    NaN where DFT's value is not known or the prediction gives none.
    """

    band: float
    total_free: float
    entropy_term: float
    fermi_level: float
    density_mape: float


@torch.inference_mode()
def mean_loss(network: LDOSNetwork, dataset: Dataset, loss: Loss, comm: Comm, take: list[int]) -> float:
    """The loss over ``take`` points of each snapshot of a dataset, always the same ones; collective.

    The ranks share the snapshots, whose sums are added in one order: the same value on any number of ranks.

    Raises
    ------
    NotFinite
        the loss of some of the snapshots is not finite.
    """
    sums = np.zeros((len(dataset.rows), 2))
    for snapshot in range(comm.rank, len(dataset.rows), comm.size):
        for _, batch in dataset.blocks(snapshot, take[snapshot]):
            batch = batch.to(loss.device)
            sums[snapshot] += loss(network, batch).item() * batch.total, batch.total
    sums = comm.allreduce(sums)
    bad = ~np.isfinite(sums[:, 0])
    if bad.any():
        raise NotFinite(f"the validation loss of {named(dataset.snapshots, bad)} is not finite")
    total, count = sums.sum(axis=0)
    return float(total / count)


def named(snapshots: Sequence[Snapshot], which: np.ndarray) -> str:
    """The snapshots where ``which`` (S,) is true, as text for a message."""
    if which.all() and len(snapshots) > 1:
        return "all snapshots"
    names = [s.name for s, bad in zip(snapshots, which, strict=True) if bad]
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"snapshot{'s' if len(names) > 1 else ''} {shown}"


def energy_errors(network: LDOSNetwork, dataset: Dataset, comm: Comm, device: torch.device) -> list[Errors]:
    """The errors for every snapshot of a dataset, on every rank; collective."""
    table = np.zeros((len(dataset.rows), len(Errors._fields)))
    for i in range(comm.rank, len(dataset.rows), comm.size):
        table[i] = snapshot_errors(network, dataset, i, device)
    return [Errors(*map(float, row)) for row in comm.allreduce(table)]


@torch.inference_mode()
def snapshot_errors(network: LDOSNetwork, dataset: Dataset, index: int, device: torch.device) -> Errors:
    """Predict one snapshot's LDOS block by block and compare what follows from it with DFT."""
    s, rows = dataset.snapshots[index], dataset.rows[index]
    sums = torch.zeros(rows.n_energies, dtype=torch.float64, device=device)
    for _, batch in dataset.blocks(index):
        sums += network(batch.features.to(device)).sum(dim=0, dtype=torch.float64)
    dos = sums.cpu().numpy() * s.grid.point_volume
    variance = s.broadening_variance
    try:
        found = from_dos(dos, s.energy_grid, s.temperature, s.n_electrons, variance)
    except InputError:  # a network that has learned nothing yet may hold too few electrons
        return Errors(*[float("nan")] * len(Errors._fields))
    weights = number_weights(s.energy_grid, found.fermi_level, s.temperature, variance).to(device)
    density = np.empty(rows.n_points)
    for start, batch in dataset.blocks(index):
        values = network(batch.features.to(device)).double() @ weights
        density[rows.order[start : start + batch.total]] = values.cpu().numpy()
    fine = resample(density.reshape(s.ldos_shape), s.density_grid.shape)
    band, entropy, level = map(float, (found.band_energy, found.entropy_term, found.fermi_level))
    total = total_free_energy(s.atoms, fine, band, entropy, s.pseudopotentials, xc=s.xc, ecutrho=s.ecutrho)
    return Errors(
        band=_per_atom(s, "band", band),
        total_free=_per_atom(s, "total_free", total.total_free),
        entropy_term=_per_atom(s, "entropy_term", entropy),
        fermi_level=1e3 * (level - s.fermi_level),
        density_mape=float("nan") if s.density is None else percentage_error(fine, s.density),
    )


def _per_atom(snapshot: Snapshot, term: str, value: Any) -> float:
    return 1e3 * (float(value) - snapshot.energies.get(term, float("nan"))) / len(snapshot.atoms)
