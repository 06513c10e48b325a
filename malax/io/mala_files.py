"""Files of MALA (materials-learning-algorithms): arrays of snapshots, scalers, and what is known of a run.

Nothing in them is executed: pickles are read by an unpickler that knows tensors and one class without code.

    X.in.npy, X.in.h5      descriptors (nx, ny, nz, F), float; often x, y, z of the point in front
    X.out.npy, X.out.h5    LDOS (nx, ny, nz, E) in 1/(eV A^3)
    X.info.json, X.out     the calculation: MALA's own summary, or the output of pw.x
    X.iscaler.pkl, .json   a DataScaler: means, standard deviations, or ranges

An .h5 is an openPMD series: /data/<iteration>/meshes/<name>/<component>, an (nx, ny, nz) array per component.
"""

from __future__ import annotations

import io
import json
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import h5py
import numpy as np
import torch

from malax.descriptors.snap import LARGEST, SMALLEST, n_features
from malax.errors import FileError, InputError
from malax.units import BOHR, RYDBERG

LDOS_UNITS = {
    "1/(eV*A^3)": 1.0,
    "1/(eV*Bohr^3)": 1.0 / BOHR**3,
    "1/(Ry*Bohr^3)": 1.0 / (RYDBERG * BOHR**3),
}
"""Factors to 1/(eV A^3)."""


class Scaler(NamedTuple):
    """scaled = (raw - shift) / scale; each a scalar or one number per feature."""

    shift: torch.Tensor
    scale: torch.Tensor


def read_descriptors(path: str | os.PathLike[str]) -> np.ndarray:
    """Descriptors (nx, ny, nz, F) of a snapshot, without the points' coordinates if those stand in front.

    FileError if the file is missing, damaged, or not of four dimensions.
    """
    array = _read_array(Path(path), "Bispectrum")
    first = array[..., :3].astype(np.float64)
    known = {n_features(twojmax) for twojmax in range(SMALLEST, LARGEST + 1)}
    if array.shape[-1] - 3 in known and _is_linear(first):
        return np.ascontiguousarray(array[..., 3:])
    return array


def _is_linear(columns: np.ndarray) -> bool:
    """Whether three columns are the Cartesian positions of the grid's points."""
    steps = []
    for axis in range(3):
        if columns.shape[axis] == 1:
            continue
        change = np.diff(columns, axis=axis)
        mean = change.reshape(-1, 3).mean(axis=0)
        if np.abs(change - mean).max() > 1e-4 * max(np.abs(mean).max(), 1e-12):
            return False
        steps.append(mean)
    return len(steps) > 0


def read_ldos(path: str | os.PathLike[str], unit: str = "1/(eV*A^3)") -> np.ndarray:
    """LDOS (nx, ny, nz, E) float32 in 1/(eV A^3).

    Parameters
    ----------
    unit : of an .npy file, with MALA's name; an openPMD file says its own

    Raises
    ------
    FileError
        the file is missing, damaged, or not of four dimensions.
    InputError
        an unknown unit.
    """
    if unit not in LDOS_UNITS:
        raise InputError(f"LDOS unit {unit!r}: known are {', '.join(LDOS_UNITS)}")
    array = _read_array(Path(path), "LDOS")
    factor = 1.0 if Path(path).suffix == ".h5" else LDOS_UNITS[unit]
    return np.asarray(array, dtype=np.float32) * np.float32(factor)


def _read_array(path: Path, name: str) -> np.ndarray:
    try:
        array = _read_openpmd(path, name) if path.suffix == ".h5" else np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise FileError(f"{path} is missing or no array of a MALA snapshot: {error}") from error
    if array.ndim != 4 or array.dtype.kind != "f":
        raise FileError(
            f"{path} holds {array.dtype} of shape {array.shape}; floats (nx, ny, nz, n) are needed"
        )
    if not np.isfinite(array).all():
        raise FileError(f"{path} holds values that are not finite")
    return array


def _read_openpmd(path: Path, name: str) -> np.ndarray:
    with h5py.File(path, "r") as file:
        if "openPMD" not in file.attrs:
            raise ValueError("it is HDF5 but not an openPMD series")
        iterations = file["data"]
        meshes = iterations[min(iterations, key=int)]["meshes"]
        if name not in meshes:
            raise ValueError(f"it has {', '.join(meshes)}, not {name}")
        mesh = meshes[name]
        components = [mesh[str(i)] for i in range(len(mesh))]
        # unitSI is that of MALA's own units, in which the numbers stand
        return np.stack([component[()] for component in components], axis=-1)


def read_scaler(content: bytes, name: str) -> Scaler:
    """A scaler from the bytes of ``X.iscaler.pkl`` or ``.json``. FileError if it is not one."""
    try:
        data = json.loads(content) if name.endswith(".json") else _restricted(content).__dict__
        return _scaler(data)
    except _Refused as error:
        raise FileError(f"{name} is not read: {error}") from error
    except (ValueError, KeyError, AttributeError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise FileError(f"{name} is not a scaler of MALA: {error!r}") from error


def _scaler(data: dict[str, Any]) -> Scaler:
    minmax = bool(data.get("scale_minmax", data.get("scale_normal", False)))
    standard = bool(data["scale_standard"])
    if not (minmax or standard):
        return Scaler(torch.zeros(()), torch.ones(()))
    if data.get("cantransform") is False:
        raise ValueError("it was never fitted")
    wise = bool(data["feature_wise"])

    def numbers(many: str, one: str) -> torch.Tensor:
        value = torch.as_tensor(data[many if wise else one], dtype=torch.float32)
        return value.reshape(-1) if wise else value.reshape(())

    if standard:
        shift, scale = numbers("means", "total_mean"), numbers("stds", "total_std")
    else:
        shift = numbers("mins", "total_min")
        scale = numbers("maxs", "total_max") - shift
    if not (torch.isfinite(shift).all() and torch.isfinite(scale).all()) or shift.shape != scale.shape:
        raise ValueError("its numbers are not finite or do not fit each other")
    # a feature that never varied: MALA makes 0 / 0 a zero
    return Scaler(shift, torch.where(scale == 0, torch.ones_like(scale), scale))


class _Refused(Exception):
    """A pickle that wants more than tensors."""


class _Record:
    """Stands for MALA's DataScaler: attributes, no code."""


def _tensor_storage(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("mala.datahandling.data_scaler", "DataScaler"): _Record,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    # the bytes in it are another pickle, which torch reads without running code
    ("torch.storage", "_load_from_bytes"): _tensor_storage,
    ("collections", "OrderedDict"): OrderedDict,
}
"""All that a scaler's pickle may name, and what it gets."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise _Refused(f"it is a pickle that asks for {module}.{name}, which a scaler has no use for")
        return _ALLOWED[module, name]


def _restricted(content: bytes) -> Any:
    value = _Unpickler(io.BytesIO(content)).load()
    if not isinstance(value, _Record):
        raise ValueError(f"it holds a {type(value).__name__}")
    return value


def read_state_dict(file: BinaryIO, name: str) -> dict[str, torch.Tensor]:
    """The weights in ``X.network.pth``; torch's own restricted reader. FileError if there is more in it."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever comes up
        reason = " ".join(str(error).split())[:160]
        raise FileError(f"{name} is not read: not just tensors, or damaged ({reason})") from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise FileError(f"{name} holds no weights of a network")
    return dict(state)
