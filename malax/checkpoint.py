"""Checkpoints: everything that an interrupted training needs to go on as if nothing had happened.

A safetensors file: tensors by name, and one JSON entry with the plain numbers (exact: Python writes
floats so that they read back the same). Nothing random is stored, because all that is random in training
follows from seed, epoch and step.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from malax.errors import FileError
from malax.io.files import atomic_path

FORMAT = "malax checkpoint 1"


def save(path: Path, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, Any]) -> None:
    """Write a checkpoint; under ``path`` stands the whole new one, or the old one.

    Raises
    ------
    MachineError
        the disk is full or the folder cannot be written.
    """
    copies = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(copies, temporary, metadata={"malax": json.dumps({"format": FORMAT, **numbers})})


def load(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and numbers of a checkpoint.

    Raises
    ------
    FileError
        the file is missing, truncated, or not a checkpoint of this version.
    """
    if not path.is_file():
        raise FileError(f"there is no checkpoint {path} to resume from; start without --resume")
    try:
        with safe_open(path, framework="pt") as file:
            numbers = json.loads((file.metadata() or {})["malax"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise FileError(f"{path} is not a whole checkpoint of malax: {error}") from error
    if numbers.pop("format", None) != FORMAT:
        raise FileError(f"{path} was written by another version of malax; start without --resume")
    return tensors, numbers


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The state of an optimiser as tensors named ``optimizer.<parameter number>.<name>``."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{index}.{name}": torch.as_tensor(value)
        for index, entries in state.items()
        for name, value in entries.items()
    }


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give an optimiser of the same parameters the state that `pack_optimizer` made."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            index, _, entry = rest.partition(".")
            state.setdefault(int(index), {})[entry] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
