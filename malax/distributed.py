"""Gradients over ranks: three ways to the same sum.

Every rank has its rows of each batch and a loss that is its part of a sum, so the gradient of the whole batch
is the *sum* over the ranks, whatever their number.

    mpi      our communicator: one flat array, one MPI allreduce behind the backward pass. Needs nothing but
             mpi4py, no port and no second network, and gives the same bits on all ranks; the default.
    ddp      torch's DistributedDataParallel: sums while the backward pass goes on, over gloo on CPUs and NCCL
             on GPUs, where gradients never leave the devices
    horovod  Horovod's DistributedOptimizer over MPI, the same overlap
"""

from __future__ import annotations

import os
import platform
import socket
import warnings
from datetime import timedelta
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from malax.comm import Comm
from malax.errors import InputError, MachineError, MissingPeerError

Distributed = Literal["mpi", "ddp", "horovod"]
INSTALL_HOROVOD = "python -m malax.commands.install_horovod"


class Gradients(Protocol):
    """Gradient and step of a training over all ranks. ``optimizer`` is the one that steps."""

    optimizer: torch.optim.Optimizer

    def compute(self, *arguments: Any) -> Tensor:
        """Leave the gradient of the whole batch in the parameters; this rank's part of the loss."""

    def step(self) -> None:
        """The optimiser's step; the same on every rank."""

    def close(self) -> None:
        """Give back what was opened."""


class OverMPI:
    """The gradients of all ranks added by our communicator; with one rank nothing is done.

    Parameters
    ----------
    loss : module whose call gives this rank's part of the loss
    optimizer : of the parameters of ``loss``
    comm : the ranks
    """

    def __init__(self, loss: nn.Module, optimizer: torch.optim.Optimizer, comm: Comm) -> None:
        self.loss, self.optimizer, self.comm = loss, optimizer, comm

    def compute(self, *arguments: Any) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.loss(*arguments)
        loss.backward()
        if self.comm.size > 1:
            gradients = [p.grad for p in self.loss.parameters() if p.grad is not None]
            mine = torch.cat([g.reshape(-1) for g in gradients])
            total = torch.from_numpy(self.comm.allreduce(mine.cpu().numpy())).to(mine.device)
            for gradient, summed in zip(gradients, total.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(summed.view_as(gradient))
        return loss.detach()

    def step(self) -> None:
        self.optimizer.step()

    def close(self) -> None:
        return None


class OverDDP:
    """torch's DistributedDataParallel, its processes found by our communicator."""

    def __init__(
        self, loss: nn.Module, optimizer: torch.optim.Optimizer, comm: Comm, device: torch.device
    ) -> None:
        self.optimizer, self.size = optimizer, comm.size
        self.started = _start_torch(comm, device)
        ids = [device.index or 0] if device.type == "cuda" else None
        with warnings.catch_warnings():
            # the scalers are constants, the same on every rank; torch 2.13 renames this option of 2.6
            warnings.simplefilter("ignore", FutureWarning)
            self.loss = nn.parallel.DistributedDataParallel(loss, device_ids=ids, broadcast_buffers=False)

    def compute(self, *arguments: Any) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.loss(*arguments)
        (loss * self.size).backward()  # DDP takes the mean over the ranks, we want the sum
        return loss.detach()

    def step(self) -> None:
        self.optimizer.step()

    def close(self) -> None:
        if self.started:
            torch.distributed.destroy_process_group()


class OverHorovod:
    """Horovod's DistributedOptimizer."""

    def __init__(self, loss: nn.Module, optimizer: torch.optim.Optimizer, comm: Comm) -> None:
        hvd = start_horovod(comm)
        self.loss = loss
        named = list(loss.named_parameters())
        self.optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=named, op=hvd.Sum)

    def compute(self, *arguments: Any) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.loss(*arguments)
        loss.backward()
        self.optimizer.synchronize()  # type: ignore[attr-defined]
        return loss.detach()

    def step(self) -> None:
        with self.optimizer.skip_synchronize():  # type: ignore[attr-defined]
            self.optimizer.step()

    def close(self) -> None:
        return None  # Horovod ends with the process: it cannot be started twice


def gradients(
    kind: Distributed,
    loss: nn.Module,
    optimizer: torch.optim.Optimizer,
    comm: Comm,
    device: torch.device,
) -> Gradients:
    """The way that the configuration asks for; collective.

    Raises
    ------
    MissingPeerError
        Horovod, or NCCL, is asked for and not there.
    InputError
        Horovod sees another number of ranks than our communicator.
    """
    if kind == "horovod":
        return OverHorovod(loss, optimizer, comm)
    if kind == "ddp" and comm.size > 1:
        return OverDDP(loss, optimizer, comm, device)
    return OverMPI(loss, optimizer, comm)


def start_horovod(comm: Comm) -> Any:
    """The module ``horovod.torch``, started on our ranks."""
    try:
        import horovod.torch as hvd
    except (ImportError, OSError) as error:
        raise MissingPeerError(
            f"distributed: horovod needs Horovod, which cannot be loaded ({error}); build it with "
            f"'{INSTALL_HOROVOD}' (2 minutes), or choose distributed: mpi or ddp"
        ) from error
    if not hvd.is_initialized():
        hvd.init(comm=comm.mpi)
    if (hvd.rank(), hvd.size()) != (comm.rank, comm.size):
        raise InputError(
            f"Horovod is rank {hvd.rank()} of {hvd.size()} where malax is rank {comm.rank} of {comm.size}: "
            f"it was built against another MPI than mpi4py; build it again with '{INSTALL_HOROVOD}'"
        )
    return hvd


def rank_device(name: str, comm: Comm) -> torch.device:
    """The device of this rank: plain ``cuda`` is dealt out to the ranks of a node; collective."""
    device = torch.device(name)
    if device.type != "cuda" or device.index is not None or comm.size == 1:
        return device
    nodes = comm.bcast(comm.gather(platform.node()))
    local = nodes[: comm.rank].count(nodes[comm.rank])
    return torch.device("cuda", local % max(1, torch.cuda.device_count()))


def _start_torch(comm: Comm, device: torch.device) -> bool:
    """A process group of our ranks, if the caller's program has none yet; whether it was started here."""
    dist = torch.distributed
    if not dist.is_available():
        raise MissingPeerError("distributed: ddp needs a torch built with torch.distributed; choose mpi")
    if dist.is_initialized():
        if (dist.get_rank(), dist.get_world_size()) != (comm.rank, comm.size):
            raise InputError("torch.distributed was started with other ranks than the communicator's")
        return False
    backend = "nccl" if device.type == "cuda" else "gloo"
    if backend == "nccl" and not dist.is_nccl_available():
        raise MissingPeerError("distributed: ddp on GPUs needs a torch built with NCCL; choose mpi")
    nodes = comm.bcast(comm.gather(platform.node()))
    one_node = len(set(nodes)) == 1
    if one_node and backend == "gloo":
        # the name of a container often resolves to nothing that answers
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    host = "127.0.0.1" if one_node else socket.gethostname()
    try:
        patience = timedelta(seconds=120)
        store = dist.TCPStore(host, 0, comm.size, True, patience, False) if comm.rank == 0 else None
        host, port = comm.bcast((host, store.port if store is not None else 0))
        if store is None:
            store = dist.TCPStore(host, port, comm.size, False, patience)
        dist.init_process_group(backend, store=store, rank=comm.rank, world_size=comm.size)
    except (RuntimeError, ValueError) as error:
        raise MachineError(
            f"torch.distributed cannot connect the ranks ({str(error).splitlines()[0]}); "
            "choose distributed: mpi"
        ) from error
    return True
