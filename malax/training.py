"""The one training loop.

    for every epoch:
        for every batch:  loss, gradient, (sum over the ranks,) AdamW, moving average
        validation loss, now and then errors in meV/atom, checkpoint

All that is random follows from the seed, the epoch and the step, so a resumed training continues bit by bit
as if it had not been interrupted. Under a communicator every rank takes its rows of each batch, and the
gradients are summed: the batches, and the model up to rounding, do not depend on the number of ranks.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from malax import checkpoint
from malax.comm import Comm
from malax.dataset import Batch, Dataset
from malax.distributed import gradients, rank_device
from malax.errors import MalaxError
from malax.loss import Loss
from malax.network import LDOSNetwork
from malax.optimize import Average, adamw, clip_gradient, learning_rate
from malax.physics_loss import UNITS, PhysicsLoss, Sample
from malax.precision import check_bfloat16
from malax.train_config import TrainConfig
from malax.train_log import Log
from malax.validation import Errors, NotFinite, energy_errors, mean_loss, named

Watch = Callable[[Mapping[str, Any]], None]
"""Called after every epoch with its row of log.csv."""


class TrainingInterrupted(MalaxError):
    """A signal ended the training; a checkpoint was written."""


class Objective(nn.Module):
    """The network and the loss as one module: what is called, and differentiated, in one step."""

    def __init__(self, network: LDOSNetwork, loss: Loss, physics: PhysicsLoss) -> None:
        super().__init__()
        self.network, self.loss, self.physics = network, loss, physics

    def forward(self, batch: Batch, sample: Sample | None) -> Tensor:
        """This rank's part of the loss; scalar."""
        loss = self.loss(self.network, batch)
        if sample is None:
            return loss
        factors = {term: self.loss.config.factor(term, self.loss.progress) for term in UNITS}
        return loss + self.physics(self.network, sample, factors)


class Training:
    """The state of a training, and its loop.

    Parameters
    ----------
    config : all settings
    network : with scalers and initial weights
    training, validation : the data
    spread : (3,) of the integrals in the loss over the training points, see `malax.loss.Loss`
    identity : what must be the same for a checkpoint to be continued (plain JSON)
    """

    def __init__(
        self,
        config: TrainConfig,
        network: LDOSNetwork,
        training: Dataset,
        validation: Dataset,
        spread: np.ndarray,
        identity: dict[str, Any],
        comm: Comm,
        log: Log,
    ) -> None:
        self.config, self.comm, self.log, self.identity = config, comm, log, identity
        self.device = rank_device(config.device, comm)
        self.network = network.to(self.device)
        if config.precision == "bfloat16":
            check_bfloat16(self.device)
            self.network.mixed = True
        self.training, self.validation, self.spread = training, validation, spread
        self.average = Average(self.network, config.optimizer.average)
        self.loss = Loss(training, config.loss, network.ldos_scale, spread, self.device)
        optimizer = adamw(self.network, config.optimizer)
        weights = self.loss.snapshot_weights
        self.physics = PhysicsLoss(training, config.loss.physics, weights, comm, self.device)
        objective = Objective(self.network, self.loss, self.physics)
        self.gradients = gradients(config.distributed, objective, optimizer, comm, self.device)
        self.optimizer = self.gradients.optimizer
        self.validation_loss = Loss(validation, config.loss, network.ldos_scale, spread, self.device)
        self.best = _clone(self.average.network)
        self.epoch = self.step = self.reductions = 0
        self.best_epoch = self.plateau_epoch = 0
        self.best_score = self.lowest_loss = math.inf
        self.loss_sum = self.seconds = 0.0
        self.signal: int | None = None
        self.sampled: str | None = None
        self.watch: Watch | None = None

    @property
    def finished(self) -> bool:
        """Whether the last epoch is done, or no weights have been chosen for too long."""
        stopping = self.config.early_stopping
        waited = self.epoch - self.best_epoch
        return self.epoch >= self.config.epochs or (stopping is not None and waited >= stopping.patience)

    def run(self) -> LDOSNetwork:
        """Train to the end; the network with the best weights.

        Raises
        ------
        TrainingInterrupted
            SIGINT or SIGTERM came; the state is in the checkpoint.
        MalaxError
            the loss is not finite any more; the checkpoint of the last whole epoch is kept.
        """
        try:
            with self._signals():
                while not self.finished:
                    self._train_epoch()
                    self._end_epoch()
        finally:
            self.gradients.close()
        if self.best_epoch:
            self.network.load_state_dict(self.best)
        else:  # no epoch had finite errors of the kind asked for
            self.network.load_state_dict(self.average.network.state_dict())
        return self.network

    def _train_epoch(self) -> None:
        started = time.perf_counter()
        self.network.train()
        steps = self.training.n_batches(self.config.data)
        batches = self.training.batches(self.config.data, self.config.seed, self.epoch, self.comm, self.step)
        for batch in batches:
            self._set_learning_rate(self.epoch + (self.step + 1) / steps)
            self.loss.progress = self.epoch + self.step / steps
            loss, stop = self._gradient(batch)
            self.loss_sum += loss
            norm = clip_gradient(self.network, self.config.optimizer.gradient_clip)
            if not (math.isfinite(loss) and math.isfinite(norm.item())):
                raise MalaxError(self._not_finite(batch))
            self.gradients.step()
            self.average.update()
            self.step += 1
            self.log.progress(f"epoch {self.epoch + 1}", self.step, steps)
            if stop:
                self.seconds += time.perf_counter() - started
                self._interrupted()
        self.seconds += time.perf_counter() - started

    def _gradient(self, batch: Batch) -> tuple[float, bool]:
        """Gradient and value of the loss on a batch, over all ranks; whether any rank got a signal."""
        physics = self.physics
        due = physics.due(self.step)
        sample = physics.sample(self.config.seed, self.epoch, self.step) if due else None
        self.sampled = None if sample is None else self.training.snapshots[sample.snapshot].name
        loss = self.gradients.compute(batch.to(self.device), sample).item()
        if self.comm.size == 1:
            return loss, self.signal is not None
        total = self.comm.allreduce(np.array([loss, float(self.signal is not None)]))
        return float(total[0]), bool(total[1] > 0)

    def _set_learning_rate(self, progress: float) -> None:
        config = self.config
        rate = learning_rate(config.optimizer, config.schedule, progress, config.epochs, self.reductions)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _end_epoch(self) -> None:
        """Validate, remember the best weights, log, write the checkpoint."""
        started = time.perf_counter()
        network = self.average.network.eval()
        take = self.validation.take(self.config.data)
        try:
            loss = mean_loss(network, self.validation, self.validation_loss, self.comm, take)
        except NotFinite as error:
            raise MalaxError(f"{error} after epoch {self.epoch + 1} ({self._kept()})") from error
        self.epoch += 1
        self._note_plateau(loss)
        row = {
            "epoch": self.epoch,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "train_loss": self.loss_sum / max(1, self.step),
            "validation_loss": loss,
        }
        errors: dict[str, Errors] = {}
        if self.epoch % self.config.evaluate_every == 0 or self.finished:
            found = energy_errors(network, self.validation, self.comm, self.device)
            errors = {s.name: e for s, e in zip(self.validation.snapshots, found, strict=True)}
            row.update(summary(found))
        score = self._score(row)
        row["best"] = int(score < self.best_score)
        if row["best"]:
            self.best_score, self.best_epoch = score, self.epoch
            self.best = _clone(network)
        row["seconds"] = round(self.seconds + time.perf_counter() - started, 3)
        self.log.epoch(row, errors)
        if self.physics.skipped:
            self.log.say(f"no energies yet in {self.physics.skipped} steps: loss.physics left them out")
            self.physics.skipped = 0
        self.step, self.loss_sum, self.seconds = 0, 0.0, 0.0
        self.save()
        if self.watch is not None:
            self.watch(row)

    def _note_plateau(self, loss: float) -> None:
        """Lower the rate of the plateau schedule when the validation loss has stayed for too long."""
        if loss < self.lowest_loss:
            self.lowest_loss, self.plateau_epoch = loss, self.epoch
        elif self.epoch - self.plateau_epoch >= self.config.schedule.patience:
            self.reductions, self.plateau_epoch = self.reductions + 1, self.epoch

    def _score(self, row: dict[str, Any]) -> float:
        """By what the weights are chosen, the smaller the better; infinite where this epoch does not know."""
        if self.config.select == "last":
            return -self.epoch
        columns = {"loss": "validation_loss", "total_free": "total_free_mae", "density": "density_mape"}
        score = float(row.get(columns[self.config.select], math.inf))
        return score if math.isfinite(score) else math.inf

    def save(self) -> None:
        """Write the checkpoint (rank 0)."""
        if self.comm.rank != 0:
            return
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.network.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        tensors |= checkpoint.pack_optimizer(self.optimizer)
        names = ("epoch", "step", "reductions", "best_epoch", "plateau_epoch", "loss_sum", "seconds")
        numbers: dict[str, Any] = {name: getattr(self, name) for name in names}
        for name in ("best_score", "lowest_loss"):
            value = getattr(self, name)
            numbers[name] = None if math.isinf(value) else value
        numbers["average_steps"] = self.average.steps
        numbers["spread"] = [float(x) for x in self.spread]
        numbers["identity"] = self.identity
        checkpoint.save(self.config.checkpoint, tensors, numbers)

    def restore(self, tensors: dict[str, torch.Tensor], numbers: dict[str, Any]) -> None:
        """Take the state of a checkpoint."""

        def part(prefix: str) -> dict[str, torch.Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.network.load_state_dict(part("network."))
        self.average.network.load_state_dict(part("average."))
        self.best = {k: v.to(self.device) for k, v in part("best.").items()}
        checkpoint.unpack_optimizer(self.optimizer, tensors)
        for name in ("epoch", "step", "reductions", "best_epoch", "plateau_epoch", "loss_sum", "seconds"):
            setattr(self, name, numbers[name])
        for name in ("best_score", "lowest_loss"):
            setattr(self, name, math.inf if numbers[name] is None else numbers[name])
        self.average.steps = numbers["average_steps"]

    @torch.no_grad()
    def _not_finite(self, batch: Batch) -> str:
        """Whose rows of the batch are bad, or whose loss is; collective."""
        table = np.zeros((2, len(self.training.snapshots)))
        rows = torch.cat([batch.features, batch.ldos], dim=1)
        losses = self.loss.by_point(self.network, batch.to(self.device)).cpu()
        for counts, values in zip(table, (rows, losses[:, None]), strict=True):
            np.add.at(counts, batch.snapshot[~values.isfinite().all(dim=1)].numpy(), 1)
        data, loss = self.comm.allreduce(table) > 0
        where = f"in epoch {self.epoch + 1}, step {self.step + 1} ({self._kept()})"
        if data.any():
            bad = np.flatnonzero(data)[0]
            return (
                f"the data of {named(self.training.snapshots, data)} are not finite {where}: remove "
                f"{self.training.rows[bad].path}, which is then computed anew"
            )
        whose = f" (that of {named(self.training.snapshots, loss)})" if loss.any() else ""
        if self.sampled and not whose:
            whose = f" (loss.physics of snapshot {self.sampled})"
        return (
            f"the loss{whose} is not finite {where}: try a smaller optimizer.learning_rate "
            f"(now {self.config.optimizer.learning_rate:g}) or a gradient_clip"
        )

    def _kept(self) -> str:
        return f"the checkpoint of epoch {self.epoch} is kept" if self.epoch else "there is no checkpoint yet"

    def _interrupted(self) -> None:
        self.save()
        name = signal.Signals(self.signal).name if self.signal is not None else "a signal on another rank"
        raise TrainingInterrupted(
            f"interrupted by {name} in epoch {self.epoch + 1}, step {self.step}; {self.config.checkpoint} is "
            "written: run the same command with --resume to go on"
        )

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Let the current step end before SIGINT or SIGTERM is obeyed; a second signal is obeyed at once."""

        def note(number: int, frame: FrameType | None) -> None:
            self.signal = number
            signal.signal(number, old[number])

        old: dict[int, Any] = {}
        number: int
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                old[number] = signal.signal(number, note)
        except ValueError:  # not the main thread: whoever runs this there handles signals itself
            pass
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


def summary(errors: list[Errors]) -> dict[str, float]:
    """Signed means and mean absolute values over snapshots, for the log."""
    table = {name: np.array([getattr(e, name) for e in errors]) for name in Errors._fields}
    found: dict[str, float] = {}
    for name in ("band", "total_free"):
        found[f"{name}_mean"] = float(table[name].mean())
        found[f"{name}_mae"] = float(np.abs(table[name]).mean())
    found["density_mape"] = float(table["density_mape"].mean())
    return found


def _clone(network: LDOSNetwork) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}
