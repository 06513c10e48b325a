"""Checkpoints: everything that an interrupted training needs to go on as if nothing had happened.

A safetensors file: tensors by name, and one JSON entry with the plain numbers (exact: Python writes
floats so that they read back the same). Nothing random is stored, because all that is random in training
follows from seed, epoch and step. A check sum tells a file with flipped bits from a whole one, and the
checkpoint before the last is kept beside it, for when the last cannot be read.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from malax.errors import FileError
from malax.io.files import atomic_path

FORMAT = "malax checkpoint 1"


def previous(path: Path) -> Path:
    """Where the checkpoint before the last one stands."""
    return path.with_suffix(".previous" + path.suffix)


def exists(path: Path) -> bool:
    """Whether there is anything to go on from: a kill may have come when only the one before had its name."""
    return path.is_file() or previous(path).is_file()


def save(path: Path, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, Any]) -> None:
    """Write a checkpoint; the one that was there becomes the previous one.

    At any moment one of the two names holds a whole file, if one ever did.

    Raises
    ------
    MachineError
        the disk is full or the folder cannot be written.
    """
    copies = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in tensors.items()}
    header = {"format": FORMAT, "crc32": _crc32(copies), **numbers}
    with atomic_path(path) as temporary:
        save_file(copies, temporary, metadata={"malax": json.dumps(header)})
        if path.is_file():
            os.replace(path, previous(path))


State = tuple[dict[str, torch.Tensor], dict[str, Any]]
"""Tensors and numbers of a checkpoint."""


def load_last(path: Path) -> tuple[State, str | None]:
    """The checkpoint, or the previous one if it cannot be read; and then a line that says so.

    Raises
    ------
    FileError
        neither of the two can be read: what is wrong with the last one.
    """
    try:
        return load(path), None
    except FileError as error:
        before = previous(path)
        if not before.is_file():
            raise
        try:
            state = load(before)
        except FileError:
            raise error from None
        return state, f"{error}; going on from the one before it, {before.name}"


def load(path: Path) -> State:
    """Tensors and numbers of a checkpoint.

    Raises
    ------
    FileError
        the file is missing, truncated, damaged, or not a checkpoint of this version.
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
    if numbers.pop("crc32", _crc32(tensors)) != _crc32(tensors):
        raise FileError(f"{path} is damaged: its numbers are not those that were written")
    return tensors, numbers


def _crc32(tensors: Mapping[str, torch.Tensor]) -> int:
    """Check sum of the names and bytes of all tensors."""
    found = 0
    for name, tensor in sorted(tensors.items()):
        found = zlib.crc32(name.encode(), found)
        found = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, found)
    return found


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
