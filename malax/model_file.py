"""A model is one file: safetensors with a JSON header. Loading it never runs code.

Tensors are named ``energy_grid``, ``network.<parameter>``, ``pseudopotential.<element>.<array>`` and
``domain.<array>``; the header's one entry, ``malax``, is the JSON of `ModelInfo` and of the plain data of
pseudopotentials and domain. The further members of an ensemble are ``member<i>.<parameter>``, i = 1..k-1;
such a file has format version 2, so that an older malax does not take its first member for the whole. The
calibration of their spread stands in the header, too; an older malax reads past it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydantic
import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field

from malax.calibration import Calibration
from malax.descriptors import Descriptor
from malax.domain import Domain
from malax.errors import FileError
from malax.io.files import atomic_path
from malax.io.upf import Pseudopotential
from malax.network import NetworkConfig

FORMAT_VERSION = 2
"""The newest format that is read. A model of one network is written as version 1."""


class TrainingSnapshot(BaseModel):
    """What a model remembers of one snapshot that it was trained (or selected) on.

    ``volume`` in A^3/atom, ``temperature`` in K, ``energies`` in eV/atom under the names of
    `malax.energies.Energies` (at least ``band``, ``total_free`` and ``ewald``).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    sha256: str
    n_atoms: int = Field(gt=0)
    temperature: float = Field(ge=0)
    volume: float = Field(gt=0)
    energies: dict[str, float] = {}
    role: str = Field("training", pattern="^(training|validation)$")


class ModelInfo(BaseModel):
    """Everything about a model but its numbers: what it is for, how it was made, how good it is.

    Units: energies (``ecutrho``, ``complete_to``, ``sigma``) in eV, ``grid_spacing`` in A,
    temperatures in K, volumes in A^3/atom. ``valence`` is the number of valence electrons that each
    element brings. ``test_errors`` is free-form (JSON); ``config`` is the resolved training
    configuration.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = 1
    malax_version: str
    elements: tuple[str, ...]
    valence: dict[str, float]
    descriptor: Descriptor
    network: NetworkConfig
    kernel: str = Field(pattern="^(gaussian|fermi-dirac)$")
    sigma: float | None = Field(gt=0)
    complete_to: float
    grid_spacing: float = Field(gt=0)
    xc: str
    ecutrho: float | None = None
    training_temperatures: tuple[float, ...]
    training_volumes: tuple[float, ...]
    training_snapshots: tuple[TrainingSnapshot, ...] = ()
    test_errors: dict[str, Any] = {}
    config: dict[str, Any] = {}

    @property
    def broadening_variance(self) -> float:
        """Variance of the kernel in eV^2: sigma^2/2 (Gaussian) or pi^2 sigma^2/3 (Fermi-Dirac).

        0 if the kernel is not known (``sigma`` is None): then nothing is unbroadened.
        """
        if self.sigma is None:
            return 0.0
        return self.sigma**2 * (0.5 if self.kernel == "gaussian" else np.pi**2 / 3)


Member = tuple[NetworkConfig, Mapping[str, torch.Tensor]]
"""What a network looks like, and its parameters and scalers by name."""


class ModelContents(NamedTuple):
    """What stands in a model file."""

    info: ModelInfo
    energy_grid: np.ndarray
    members: Sequence[Member]
    pseudopotentials: dict[str, Pseudopotential]
    domain: Domain | None
    sha256: str
    calibration: Calibration | None = None


def serialize(
    info: ModelInfo,
    energy_grid: np.ndarray,
    members: Sequence[Member],
    pseudopotentials: Mapping[str, Pseudopotential],
    domain: Domain | None = None,
    calibration: Calibration | None = None,
) -> bytes:
    """The bytes of a model file. The same model always gives the same bytes."""
    tensors = {"energy_grid": torch.tensor(np.asarray(energy_grid, dtype=np.float64))}
    for i, (_, state) in enumerate(members):
        for name, value in state.items():
            tensors[f"{_prefix(i)}{name}"] = value.detach().to("cpu").contiguous()
    plain: dict[str, Any] = {}
    for element, pseudopotential in sorted(pseudopotentials.items()):
        arrays, plain[element] = pseudopotential.to_arrays()
        for name, array in arrays.items():
            tensors[f"pseudopotential.{element}.{name}"] = torch.tensor(np.ascontiguousarray(array))
    version = max(info.format_version, 1 if len(members) == 1 else 2)
    info = info.model_copy(update={"format_version": version, "network": members[0][0]})
    header: dict[str, Any] = {"info": info.model_dump(mode="json"), "pseudopotentials": plain}
    if len(members) > 1:
        header["members"] = [config.model_dump(mode="json") for config, _ in members[1:]]
    if calibration is not None:
        header["calibration"] = calibration.to_plain()
    if domain is not None:
        arrays, header["domain"] = domain.to_arrays()
        for name, array in arrays.items():
            tensors[f"domain.{name}"] = torch.tensor(np.ascontiguousarray(array))
    # one entry only: the order of several is not fixed, and the hash of the file would not be either
    return safetensors.torch.save(tensors, metadata={"malax": json.dumps(header, sort_keys=True)})


def write_model(path: str | os.PathLike[str], contents: bytes, overwrite: bool = True) -> None:
    """Write the bytes of `serialize` under ``path``, whole or not at all."""
    with atomic_path(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(contents)


def read_model(path: str | os.PathLike[str]) -> ModelContents:
    """Read and check a model file.

    Raises
    ------
    FileError
        the file is missing, truncated, not a malax model, from a newer malax, or holds NaN.
    """
    content, header, tensors = _read_safetensors(Path(path))
    info = _parse_info(path, header)
    bad = [name for name, value in tensors.items() if not torch.isfinite(value).all()]
    if bad:
        raise FileError(f"{path}: the tensor {bad[0]} holds NaN or infinity; train the model again")
    try:
        grid = tensors["energy_grid"].numpy()
        pseudopotentials = {
            element: Pseudopotential.from_arrays(_under(tensors, f"pseudopotential.{element}."), plain)
            for element, plain in header["pseudopotentials"].items()
        }
        configs = [info.network, *map(NetworkConfig.model_validate, header.get("members", []))]
        members = [(one, _state(tensors, _prefix(i))) for i, one in enumerate(configs)]
        domain = None
        if "domain" in header:
            domain = Domain.from_arrays(_under(tensors, "domain."), header["domain"])
        calibration = Calibration.from_plain(header["calibration"]) if "calibration" in header else None
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(f"{path}: this malax model is incomplete ({error!r}); save it again") from error
    sha256 = hashlib.sha256(content).hexdigest()
    return ModelContents(info, grid, members, pseudopotentials, domain, sha256, calibration)


def _read_safetensors(path: Path) -> tuple[bytes, dict[str, Any], dict[str, torch.Tensor]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FileError(f"{path}: {error.strerror or error}; a .malax model file is needed") from error
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        tensors = safetensors.torch.load(content)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise FileError(f"{path} is not a malax model, or is truncated ({error})") from error
    if "malax" not in metadata:
        raise FileError(f"{path} is a safetensors file but not a malax model (no 'malax' in its header)")
    return content, json.loads(metadata["malax"]), tensors


def _parse_info(path: str | os.PathLike[str], header: dict[str, Any]) -> ModelInfo:
    found = header.get("info", {}).get("format_version")
    if not isinstance(found, int) or found > FORMAT_VERSION:
        raise FileError(
            f"{path} has model format {found}, this malax reads up to {FORMAT_VERSION}; update malax"
        )
    try:
        return ModelInfo.model_validate(header["info"])
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise FileError(f"{path}: the header's {place} is wrong: {first['msg']}") from error


def _prefix(member: int) -> str:
    return "network." if member == 0 else f"member{member}."


def _state(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


def _under(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, np.ndarray]:
    return {name[len(prefix) :]: value.numpy() for name, value in tensors.items() if name.startswith(prefix)}
