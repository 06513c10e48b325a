"""MALA's models as malax emulators, and MALA's snapshots as malax snapshots.

    emulator = load_model("Be_model.zip", pseudopotentials={"Be": "Be.pbe-n-rrkjus_psl.1.0.0.UPF"})
    snapshot = read_snapshot("Be_snapshot0", "be0.h5", energies=(-5, 20, 0.1), sigma=0.2, ...)

A model of MALA is a zip of ``X.params.json``, ``X.network.pth``, ``X.iscaler.pkl`` (or .json),
``X.oscaler.*`` and ``X.info.json``. It does not say with which kernel its LDOS was made: unless sigma is
given, predictions are not corrected for it (nor for the interpolation), which is what MALA does.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from malax.descriptors import Descriptor
from malax.emulator import Emulator
from malax.errors import FileError, InputError
from malax.grid import Grid
from malax.interfaces.mala_network import MalaNetwork, MalaNetworkConfig
from malax.io.mala_files import read_descriptors, read_ldos, read_scaler, read_state_dict
from malax.io.mala_info import MalaInfo, info_from_json, read_info, volume_per_atom
from malax.io.snapshot import Snapshot, save_snapshot
from malax.io.upf import Pseudopotential, resolve
from malax.model_file import ModelInfo
from malax.network import LDOSNetwork
from malax.version import VERSION

__all__ = ["MalaInfo", "load_model", "read_descriptors", "read_info", "read_ldos", "read_snapshot"]

Pseudopotentials = Mapping[str, str | os.PathLike[str] | Pseudopotential]


def load_model(
    path: str | os.PathLike[str],
    pseudopotentials: Pseudopotentials | None = None,
    *,
    sigma: float | None = None,
    kernel: str = "gaussian",
    info: str | os.PathLike[str] | None = None,
) -> Emulator:
    """A model of MALA as an emulator. No code in the file is run.

    Parameters
    ----------
    path : the zip, or the ``X.params.json`` of files that lie side by side
    pseudopotentials : element -> UPF file or parsed UPF; without them predictions have no XC and total energy
    sigma, kernel : width (eV) and kernel of the training LDOS; with them predictions are unbroadened
    info : ``X.info.json`` or the output of pw.x of a training calculation, if the model has no info.json

    Raises
    ------
    FileError
        missing or damaged files, or pickles that hold more than tensors.
    InputError
        a model of a kind that malax cannot evaluate (named), or of which too little is known.
    """
    files, digest = _files(Path(path))
    where = str(path)
    try:
        params = json.loads(files["params.json"])
        network, targets, descriptors = (params[key] for key in ("network", "targets", "descriptors"))
    except (ValueError, KeyError, TypeError) as error:
        raise FileError(f"{where}: params.json is not that of a MALA model: {error!r}") from error
    known = _known(files, info, where)
    elements = sorted(set(known.atoms.get_chemical_symbols()))
    found = {} if pseudopotentials is None else resolve(pseudopotentials, elements)
    energies = _energy_grid(targets, where)
    config = MalaNetworkConfig.from_params(network, targets, where)
    layers = MalaNetwork(
        config,
        read_state_dict(io.BytesIO(files["network.pth"]), f"{where}: network.pth"),
        _scaler(files, "iscaler", where),
        _scaler(files, "oscaler", where),
        where,
    )
    model = ModelInfo(
        malax_version=VERSION,
        elements=tuple(elements),
        valence=_valence(known, elements, found),
        descriptor=_descriptor(descriptors, elements, where),
        network=config,
        kernel=kernel,
        sigma=sigma,
        # nobody knows where the bands ended
        complete_to=float(energies[-1]),
        grid_spacing=float(np.median(Grid(known.atoms.cell.array, known.grid).spacing)),
        xc=next(iter(found.values())).functional if found else "unknown",
        ecutrho=known.ecutrho,
        training_temperatures=(known.temperature,),
        training_volumes=(volume_per_atom(known),),
        config={"from": "MALA", "file": Path(path).name},
    )
    emulator = Emulator(cast(LDOSNetwork, layers), model, energies, found)
    emulator.__dict__["hash"] = digest
    return emulator


def _files(path: Path) -> tuple[dict[str, bytes], str]:
    """Contents by what follows the model's name in theirs, and the SHA-256 of all."""
    needed = ("params.json", "network.pth")
    files: dict[str, bytes] = {}
    try:
        if path.name.endswith(".params.json"):
            stem = path.name.removesuffix("params.json")
            for one in sorted(path.parent.glob(f"{stem}*")):
                files[one.name.removeprefix(stem)] = one.read_bytes()
            digest = hashlib.sha256(b"".join(files[name] for name in sorted(files))).hexdigest()
        else:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    # X.network.pth: what X is, dots included, does not matter
                    files[".".join(Path(name).name.split(".")[-2:])] = archive.read(name)
    except (OSError, zipfile.BadZipFile) as error:
        raise FileError(f"{path} is missing or not a model of MALA (a zip): {error}") from error
    missing = [name for name in needed if name not in files]
    if missing:
        raise FileError(f"{path} holds no {missing[0]}: it is not a model of MALA")
    return files, digest


def _scaler(files: Mapping[str, bytes], name: str, where: str) -> Any:
    # the newer of the two forms where both are there
    for ending in ("json", "pkl"):
        if f"{name}.{ending}" in files:
            return read_scaler(files[f"{name}.{ending}"], f"{where}: {name}.{ending}")
    raise FileError(f"{where} holds no {name}.json or {name}.pkl: it is not a whole model of MALA")


def _known(files: Mapping[str, bytes], info: str | os.PathLike[str] | None, where: str) -> MalaInfo:
    if info is not None:
        return read_info(info)
    if "info.json" in files:
        return info_from_json(files["info.json"], f"{where}: info.json")
    raise InputError(
        f"{where} holds no info.json, so its elements, temperature and grid are not known: give info=, the "
        "info.json or pw.x output of a training snapshot"
    )


def _energy_grid(targets: Mapping[str, Any], where: str) -> np.ndarray:
    if targets.get("target_type", "LDOS") != "LDOS":
        raise InputError(f"{where}: it predicts {targets['target_type']}; malax needs the LDOS")
    try:
        first, step = float(targets["ldos_gridoffset_ev"]), float(targets["ldos_gridspacing_ev"])
        return first + step * np.arange(int(targets["ldos_gridsize"]))
    except TypeError as error:
        raise InputError(f"{where}: its energy grid is in several pieces, which malax has not") from error
    except (KeyError, ValueError) as error:
        raise FileError(f"{where}: params.json does not say its energy grid: {error!r}") from error


def _descriptor(given: Mapping[str, Any], elements: list[str], where: str) -> Descriptor:
    kind = given.get("descriptor_type", "SNAP")
    if kind not in ("Bispectrum", "SNAP"):
        raise InputError(f"{where}: its descriptors are {kind!r}; malax has the bispectrum only")
    weights = given.get("bispectrum_element_weights")
    if weights is not None:
        if len(weights) != len(elements):
            raise InputError(f"{where}: {len(weights)} element weights for {', '.join(elements)}")
        # MALA gives them in alphabetical order, the largest being 1
        weights = {e: float(w) / max(weights) for e, w in zip(elements, weights, strict=True)}
    return Descriptor(
        twojmax=int(given.get("bispectrum_twojmax", given.get("twojmax", 10))),
        cutoff=float(given.get("bispectrum_cutoff", given.get("rcutfac", 4.67637))),
        rfac0=0.99363,
        rmin0=0.0,
        # before there was a choice, neighbours did not fade out
        switchflag=bool(given.get("bispectrum_switchflag", 0)),
        weights=weights,
    )


def _valence(known: MalaInfo, elements: list[str], found: Mapping[str, Pseudopotential]) -> dict[str, float]:
    if found:
        valence = {element: found[element].z_valence for element in elements}
        total = sum(valence[symbol] for symbol in known.atoms.get_chemical_symbols())
        if abs(total - known.n_electrons) > 1e-3:
            raise InputError(
                f"with these pseudopotentials the training structure has {total:g} electrons, the model was "
                f"trained with {known.n_electrons:g}: give those of the training"
            )
        return valence
    if len(elements) > 1:
        raise InputError(
            f"how many electrons {', '.join(elements)} bring is not in MALA's files: give pseudopotentials"
        )
    return {elements[0]: known.n_electrons / len(known.atoms)}


def read_snapshot(
    stem: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    energies: tuple[float, float],
    sigma: float,
    pseudopotentials: Pseudopotentials,
    kernel: str = "gaussian",
    complete_to: float | None = None,
    ldos: str | os.PathLike[str] | None = None,
    info: str | os.PathLike[str] | None = None,
    unit: str = "1/(eV*A^3)",
    overwrite: bool = True,
) -> Snapshot:
    """Make a malax snapshot file from MALA's LDOS and summary of a calculation.

    Parameters
    ----------
    stem : ``dir/Be_snapshot0`` of ``Be_snapshot0.out.npy`` (or .out.h5) and ``Be_snapshot0.info.json``
        (or .out)
    energies : lowest energy and spacing in eV (``ldos_gridoffset_ev``, ``ldos_gridspacing_ev``)
    sigma, kernel : of the LDOS, which MALA does not keep
    complete_to : eV, up to where all bands were computed; None is the end of the energies less 2 sigma
    ldos, info : files of other names

    Raises
    ------
    FileError, InputError
        missing or damaged files, or parts that do not fit each other.
    """
    ldos_file = _first(ldos, stem, (".out.npy", ".out.h5"))
    known = read_info(_first(info, stem, (".info.json", ".out")))
    values = read_ldos(ldos_file, unit)
    if values.shape[:3] != known.grid:
        raise FileError(f"{ldos_file}: LDOS on {values.shape[:3]} points, the calculation has {known.grid}")
    axis = energies[0] + energies[1] * np.arange(values.shape[-1])
    found = resolve(pseudopotentials, known.atoms.get_chemical_symbols())
    snapshot = Snapshot(
        name=Path(stem).name,
        atoms=known.atoms,
        energy_grid=axis,
        kernel=kernel,
        sigma=sigma,
        complete_to=float(axis[-1]) - 2 * sigma if complete_to is None else complete_to,
        temperature=known.temperature,
        n_electrons=known.n_electrons,
        fermi_level=known.fermi_level,
        energies=known.energies,
        density=None,
        ldos_shape=known.grid,
        pseudopotentials=found,
        xc=next(iter(found.values())).functional,
        ecutrho=_sphere(known),
        provenance={"made_by": "malax.interfaces.mala", "source": str(ldos_file)},
    )
    return save_snapshot(out, snapshot, [values], overwrite=overwrite)


def _sphere(known: MalaInfo) -> float:
    if known.ecutrho is None:
        raise InputError("the summary of the calculation does not say its ecutrho: give the output of pw.x")
    return known.ecutrho


def _first(
    given: str | os.PathLike[str] | None, stem: str | os.PathLike[str], endings: tuple[str, ...]
) -> Path:
    if given is not None:
        return Path(given)
    for ending in endings:
        path = Path(f"{stem}{ending}")
        if path.is_file():
            return path
    raise FileError(f"there is no {stem}{' or '.join(endings)}")
