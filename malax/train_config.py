"""What ``malax train`` reads: the settings of all parts in one model."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from malax.dataset import DataConfig
from malax.descriptors import Descriptor
from malax.distributed import Distributed
from malax.loss import LossConfig
from malax.network import NetworkConfig
from malax.optimize import OptimizerConfig, ScheduleConfig
from malax.scaling import ScalingConfig
from malax.settings import FilePath, Settings


class EarlyStopping(Settings):
    """When to stop before the last epoch."""

    patience: int = Field(default=30, ge=1)
    """Epochs without a better validation loss after which training ends."""


class TrainConfig(Settings):
    """Everything that ``malax train`` reads."""

    output: FilePath
    """The model file that is made; logs and checkpoints go into a folder beside it."""
    data: DataConfig
    descriptor: Descriptor = Descriptor()  # type: ignore[call-arg]
    network: NetworkConfig = NetworkConfig()
    scaling: ScalingConfig = ScalingConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    epochs: int = Field(default=100, ge=1)
    """Visits of all training points (or of ``data.points_per_snapshot`` of each snapshot)."""
    select: Literal["total_free", "density", "loss", "last"] = "total_free"
    """Which weights are kept: those with the smallest mean absolute error of the validation snapshots' total
    free energy (or density), with the smallest validation loss, or those of the last epoch. The loss of the
    LDOS is often smallest early, while energies and density still improve."""
    early_stopping: EarlyStopping | None = EarlyStopping()
    """null: train to the last epoch."""
    evaluate_every: int = Field(default=5, ge=1)
    """Epochs between two evaluations of the validation snapshots in meV/atom."""
    seed: int = Field(default=0, ge=0)
    """Decides the initial weights and the order of the points."""
    members: int = Field(default=1, ge=1)
    """Networks that are trained one after the other, with seed, seed + 1, ..., and stand in the model as an
    ensemble: their mean is the prediction, their spread, calibrated on the validation snapshots, its error
    bar."""
    threads: int | None = Field(default=None, ge=1)
    """Threads for descriptors and network; null: what torch chooses."""
    device: str = "cpu"
    """Where the network is trained: cpu, cuda, cuda:1. With cuda every rank takes its own GPU of its node."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: the hidden layers compute in it while training (weights and last layer stay in single
    precision). About twice as fast where the processor has it, and refused where it has not."""
    distributed: Distributed = "mpi"
    """How ranks (``mpiexec -n P malax train ...``) add their gradients: our MPI communicator, torch's
    DistributedDataParallel (gloo on CPUs, NCCL on GPUs), or Horovod. The model is the same up to rounding."""

    @property
    def folder(self) -> Path:
        """Folder of checkpoint, log and TensorBoard files."""
        return self.output.with_suffix(".run")

    @property
    def checkpoint(self) -> Path:
        """What ``--resume`` starts from."""
        return self.folder / "checkpoint.safetensors"

    @property
    def cache(self) -> Path:
        """Folder of the computed features."""
        return self.data.cache or self.output.parent / "cache"
