"""The loss on what a whole snapshot gives: DOS, electrons, band energy, total free energy.

The network is trained through the physics: its LDOS on the points of one snapshot is summed to the DOS,
which gives the Fermi level and the band energy, and with it the density, whose Hartree and XC energies make
the total free energy (`malax.observables`, `malax.energies`; all differentiable). The target is what the
same chain makes of DFT's own LDOS, so these terms and the LDOS' own error vanish together.

What can n random points tell, instead of all? The *error* of the DOS is V times the mean error of the LDOS,
which n points estimate without bias and, because it is the error and not the LDOS that is sampled, with
little noise. Its square is not unbiased (the variance of the noise comes on top, and would be learned as
one more LDOS error), but the product of the estimates from two halves of the points is. The total free
energy is no sum over points, but its first-order change is: at fixed number of electrons

    dF = int dr [ w_O + (u(r) - <u>) w_N ] . d(error of the LDOS)(r),      u = d(F - E_band + TS) / dn

at DFT's density, <u> being the mean over the density at the Fermi level, dn/dmu: the Fermi level responds
to the error, and shifts charge from and to there. The density's errors enter to second order only: a smooth
error of 0.3 % changes F by 0.1 meV/atom.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from malax.comm import Comm
from malax.dataset import Dataset
from malax.energies import total_free_energy
from malax.errors import InputError
from malax.feature_cache import Rows, random_order
from malax.io.snapshot import Snapshot
from malax.network import LDOSNetwork
from malax.observables import from_dos, number_weights, occupation_weights
from malax.settings import Settings

PhysicsTerm = Literal["dos", "electrons", "band", "total_free"]
UNITS: dict[str, float] = {"dos": 0.01, "electrons": 0.01, "band": 0.01, "total_free": 0.01}
"""Errors per atom that count as 1: 1/eV, electrons, eV, eV."""


class PhysicsConfig(Settings):
    """Errors of whole snapshots, differentiated through the observables, added to the loss in some steps."""

    dos: float = Field(default=0.0, ge=0)
    """Weight of the squared error of the DOS, in (0.01 /eV per atom)^2, the mean over energies."""
    electrons: float = Field(default=0.0, ge=0)
    """Weight of the squared error of the electrons at DFT's Fermi level, in (0.01 per atom)^2."""
    band: float = Field(default=0.0, ge=0)
    """Weight of the squared error of the band energy, in (10 meV/atom)^2."""
    total_free: float = Field(default=0.0, ge=0)
    """Weight of the squared error of the total free energy, in (10 meV/atom)^2."""
    every: int = Field(default=10, ge=1)
    """Steps from one in which these terms count to the next; each takes another snapshot."""
    points: int | None = Field(default=None, ge=2)
    """Random points of the snapshot from which the errors are estimated; null: all of them, exactly."""

    @property
    def weights(self) -> dict[str, float]:
        """The terms that are on."""
        return {term: w for term in UNITS if (w := getattr(self, term)) > 0}


class Sample(NamedTuple):
    """This rank's points of one snapshot: features (n, F), ldos (n, E), their row numbers (n,), which half of
    the sample each is in (n,), and the points of each half, of all ranks."""

    snapshot: int
    features: Tensor
    ldos: Tensor
    rows: Tensor
    half: Tensor
    totals: tuple[int, ...]


@dataclass
class Reference:
    """What the chain makes of DFT's own LDOS: energies in eV, weights (E,), u(r) - <u> (P,) in eV by row."""

    band: float
    total_free: float | None
    number: Tensor
    omega: Tensor
    linear: Tensor | None


class PhysicsLoss:
    """The terms of `PhysicsConfig` for the snapshots of a dataset.

    Parameters
    ----------
    snapshot_weights : (S,) as in `malax.loss.Loss`
    comm : the ranks share the points of a snapshot

    Attributes
    ----------
    skipped : times that there was no Fermi level or no energy, as in the first steps of a training; the terms
        that need it were left out
    """

    def __init__(
        self,
        dataset: Dataset,
        config: PhysicsConfig,
        snapshot_weights: Tensor,
        comm: Comm,
        device: torch.device,
    ) -> None:
        self.dataset, self.config, self.comm, self.device = dataset, config, comm, device
        self.snapshot_weights = snapshot_weights
        self.references: dict[int, Reference] = {}
        self.skipped = 0

    def due(self, step: int) -> bool:
        """Whether the terms count in this step of an epoch (from 0)."""
        return bool(self.config.weights) and step % self.config.every == 0

    def sample(self, seed: int, epoch: int, step: int) -> Sample:
        """The points of a step: of which snapshot, and from where on, depends on the arguments alone."""
        turn = step // self.config.every
        n_snapshots = len(self.dataset.rows)
        chosen = int(random_order(n_snapshots, seed, epoch, turn // n_snapshots)[turn % n_snapshots])
        file = self.dataset.rows[chosen]
        n = file.n_points if self.config.points is None else min(self.config.points, file.n_points)
        start = 0 if n == file.n_points else _random_start(file.n_points, seed, epoch, step)
        mine = np.arange(n * self.comm.rank // self.comm.size, n * (self.comm.rank + 1) // self.comm.size)
        rows = (start + mine) % file.n_points
        table = torch.from_numpy(_read(file, rows)).to(self.device)
        halves = self.config.points is not None and n < file.n_points
        half = (mine >= n // 2) if halves else np.zeros(len(mine), dtype=bool)
        return Sample(
            chosen,
            table[:, : file.n_features],
            table[:, file.n_features :],
            torch.from_numpy(rows),
            torch.from_numpy(half).to(self.device),
            (n // 2, n - n // 2) if halves else (n,),
        )

    def __call__(self, network: LDOSNetwork, sample: Sample, factors: Mapping[str, float]) -> Tensor:
        """This rank's part of the terms, each times its ``factors``; scalar."""
        s = self.dataset.snapshots[sample.snapshot]
        weights = {term: w * factors.get(term, 1.0) for term, w in self.config.weights.items()}
        weights = {term: w for term, w in weights.items() if w > 0}
        ldos = network(sample.features).double()
        error = ldos - sample.ldos.double()
        masks = [sample.half == h for h in range(len(sample.totals))]
        scale = [s.grid.volume / n for n in sample.totals]
        dos = self._summed(
            torch.stack([(error * m[:, None]).sum(0) * v for m, v in zip(masks, scale, strict=True)])
        )
        unit = len(s.atoms)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        if "dos" in weights:
            sound = torch.as_tensor(self.dataset.sound[sample.snapshot], device=self.device)
            total = total + weights["dos"] * _square(dos[:, sound] / (unit * UNITS["dos"]))
        if "electrons" in weights:
            w = number_weights(s.energy_grid, s.fermi_level, s.temperature, unbroaden=False).to(self.device)
            total = total + weights["electrons"] * _square((dos @ w)[:, None] / (unit * UNITS["electrons"]))
        if "band" in weights or "total_free" in weights:
            try:
                found = self._energies(sample, ldos, error, dos, masks, scale, "total_free" in weights)
            except InputError:  # no Fermi level yet, or a density that is none: the same on every rank
                self.skipped += 1
            else:
                for term in weights.keys() & found.keys():
                    total = total + weights[term] * _square(found[term][:, None] / (unit * UNITS[term]))
        total = total * self.snapshot_weights[sample.snapshot]
        # every rank holds the whole value, and the gradient through its own points only
        return (total - total.detach() + total.detach() / self.comm.size).to(torch.float32)

    def _energies(
        self,
        sample: Sample,
        ldos: Tensor,
        error: Tensor,
        dos: Tensor,
        masks: list[Tensor],
        scale: list[float],
        with_total: bool,
    ) -> dict[str, Tensor]:
        """Errors (halves,) in eV of band energy and total free energy; InputError if there are none."""
        s, reference = self.dataset.snapshots[sample.snapshot], self._reference(sample.snapshot)
        own = torch.as_tensor(s.dos, device=self.device)
        results = [
            from_dos(own + change, s.energy_grid, s.temperature, s.n_electrons, s.broadening_variance)
            for change in dos
        ]
        found = {"band": torch.stack([torch.as_tensor(r.band_energy) for r in results]) - reference.band}
        if not with_total:
            return found
        if len(masks) > 1:
            assert reference.linear is not None
            linear = reference.linear[sample.rows].to(error)
            local = error @ reference.omega + linear * (error @ reference.number)
            sums = [(local * m).sum() * v for m, v in zip(masks, scale, strict=True)]
            found["total_free"] = self._summed(torch.stack(sums))
            return found
        (r,) = results
        density = self._density(sample, ldos, torch.as_tensor(r.fermi_level))
        total = total_free_energy(
            s.atoms,
            density,
            r.band_energy,
            r.entropy_term,
            s.pseudopotentials,
            xc=s.xc,
            ecutrho=s.ecutrho,
        )
        assert reference.total_free is not None
        found["total_free"] = (torch.as_tensor(total.total_free) - reference.total_free)[None]
        return found

    def _density(self, sample: Sample, ldos: Tensor, level: Tensor) -> Tensor:
        """The whole density (nx, ny, nz); other ranks' points depend on ours through the Fermi level only."""
        s, order = self.dataset.snapshots[sample.snapshot], self.dataset.rows[sample.snapshot].order
        weights, slope = _weights_and_slope(s, level)
        mine = ldos @ weights
        rows = sample.rows
        values = mine
        if self.comm.size > 1:
            pair = torch.stack([mine.detach(), ldos.detach() @ slope], dim=1).cpu().numpy()
            every = torch.from_numpy(self.comm.allgatherv(pair)).to(self.device)
            counts = len(every) * np.arange(self.comm.size + 1) // self.comm.size
            others = every[:, 0] + every[:, 1] * (level - level.detach())
            first, last = counts[self.comm.rank], counts[self.comm.rank + 1]
            values = torch.cat([others[:first], mine, others[last:]])
            rows = torch.arange(len(every))
        field = torch.zeros(len(order), dtype=torch.float64, device=self.device)
        place = torch.from_numpy(order)[rows].to(self.device)
        return field.index_copy(0, place, values).reshape(s.ldos_shape)

    def _summed(self, mine: Tensor) -> Tensor:
        """The sum over the ranks, differentiable in this rank's part."""
        if self.comm.size == 1:
            return mine
        total = torch.from_numpy(self.comm.allreduce(mine.detach().cpu().numpy())).to(mine)
        return mine + (total - mine.detach())

    def _reference(self, index: int) -> Reference:
        """DFT's side of a snapshot, computed when it is first needed."""
        if index not in self.references:
            with torch.enable_grad():
                self.references[index] = self._make_reference(index)
        return self.references[index]

    def _make_reference(self, index: int) -> Reference:
        s, rows = self.dataset.snapshots[index], self.dataset.rows[index]
        options = (s.temperature, s.broadening_variance)
        own = from_dos(s.dos, s.energy_grid, s.temperature, s.n_electrons, s.broadening_variance)  # type: ignore[arg-type]
        w = occupation_weights(s.energy_grid, own.fermi_level, *options)
        omega = w.band_energy + w.entropy_term - own.fermi_level * w.number
        total, linear = None, None
        if "total_free" in self.config.weights:
            weights, slope = _weights_and_slope(s, torch.tensor(own.fermi_level, dtype=torch.float64))
            values = np.empty((rows.n_points, 2))
            for start, batch in self.dataset.blocks(index):
                both = batch.ldos.double() @ torch.stack([weights, slope], dim=1)
                values[start : start + batch.total] = both.numpy()
            energy, potential = _energy_and_potential(s, rows.order, values[:, 0], own)
            total = energy
            if self.config.points is not None:
                mean = float(potential @ values[:, 1] / values[:, 1].sum())
                linear = torch.from_numpy(potential - mean).to(self.device)
        return Reference(
            float(own.band_energy), total, w.number.to(self.device), omega.to(self.device), linear
        )


def _energy_and_potential(
    s: Any, order: np.ndarray, values: np.ndarray, own: Any
) -> tuple[float, np.ndarray]:
    """Total free energy (eV) of a density given row by row (P,), and its derivative there, (P,) in eV."""
    field = np.empty(len(order))
    field[order] = values
    density = torch.tensor(field.reshape(s.ldos_shape), requires_grad=True)
    zero = (own.band_energy, own.entropy_term)
    found = total_free_energy(s.atoms, density, *zero, s.pseudopotentials, xc=s.xc, ecutrho=s.ecutrho)
    energy = torch.as_tensor(found.total_free)
    (gradient,) = torch.autograd.grad(energy, density)
    return float(energy.detach()), gradient.reshape(-1).numpy()[order] / s.grid.point_volume


def _weights_and_slope(s: Snapshot, level: Tensor) -> tuple[Tensor, Tensor]:
    """Number weights (E,) at a Fermi level, differentiable in it, and their derivative there, a constant."""
    options = (s.temperature, s.broadening_variance)
    here = level.detach().requires_grad_()
    with torch.enable_grad():
        weights = number_weights(s.energy_grid, here, *options)
        # a forward derivative by two backward ones: the derivative of v.w is linear in v
        v = torch.zeros_like(weights, requires_grad=True)
        (change,) = torch.autograd.grad(weights @ v, here, create_graph=True)
        (slope,) = torch.autograd.grad(change, v)
    return number_weights(s.energy_grid, level, *options), slope


def _random_start(n: int, *key: int) -> int:
    return int(np.random.PCG64(np.random.SeedSequence([n, *key])).random_raw()) % n


def _square(errors: Tensor) -> Tensor:
    """Mean over columns of the square of (1, K), or of the product of two independent estimates (2, K)."""
    return (errors[0] * errors[-1]).mean()


def _read(file: Rows, rows: np.ndarray) -> np.ndarray:
    """Rows of a file that go on from its end to its beginning."""
    if len(rows) == 0:
        return np.empty((0, file.width), dtype=np.float32)
    breaks = np.flatnonzero(np.diff(rows) < 0) + 1
    return np.concatenate([file.read(int(r[0]), int(r[-1]) + 1) for r in np.split(rows, breaks)])
