"""Snapshots from the project's shared folders of Al data (``info.json``, ``ldos.h5``, ``density.h5``, XML).

These folders were harvested once with pp.x and hold no cubes. Their README says what each is: the d and h
groups (4 atoms, 24^3 points), s (coarse k) and t (32 atoms), whose LDOS is on every second point of 48^3
while its density is on all of them. ``configs/al_generate.yaml`` describes how they were made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from malax.errors import FileError, InputError
from malax.io import files
from malax.io.espresso import read_xml
from malax.io.pw_run import PwRun
from malax.io.snapshot import Snapshot, save_snapshot
from malax.io.upf import functional_name, read_upf


def is_shared(directory: str | os.PathLike[str]) -> bool:
    """Whether a folder looks like one of the shared snapshots."""
    folder = Path(directory)
    return (folder / "info.json").is_file() and (folder / "ldos.h5").is_file()


def from_shared(
    directory: str | os.PathLike[str],
    out: str | os.PathLike[str],
    overwrite: bool = True,
    stride: int = 1,
) -> Snapshot:
    """Make the snapshot file ``out`` from one shared folder, e.g. ``shared/data/al/d00``.

    The pseudopotential named by the XML lies in the folder or in its parent. Of the LDOS every ``stride``-th
    of the points that the folder has is kept in each direction; the density is always whole.

    Raises
    ------
    FileError
        a file is missing, truncated, or does not fit the others.
    InputError
        see ``save_snapshot``.
    """
    folder = Path(directory)
    info = _info(folder)
    run = read_xml(folder / "data-file-schema.xml.gz")
    energies, stored, stored_stride = _ldos_head(folder / "ldos.h5")
    if tuple(n * stored_stride for n in stored) != run.fft_shape:
        raise FileError(
            f"{folder}/ldos.h5: {stored} points of stride {stored_stride} do not match the grid "
            f"{run.fft_shape}"
        )
    if stride < 1 or any(n % stride for n in stored):
        raise InputError(f"a stride of {stride} does not divide the LDOS grid {stored}: choose a divisor")
    nx, ny, nz = (n // stride for n in stored)
    sigma = float(info["ldos"]["degauss_ldos_eV"])
    snapshot = Snapshot(
        name=str(info["name"]),
        atoms=run.atoms,
        energy_grid=energies,
        kernel="gaussian",
        sigma=sigma,
        complete_to=run.highest_complete_energy - 2 * sigma,
        # the XML's degauss has 10 digits only
        temperature=float(info["temperature_K"]),
        n_electrons=run.n_electrons,
        fermi_level=_fermi_level(run),
        energies=run.energies,
        density=_density(folder / "density.h5", run.fft_shape),
        ldos_shape=(nx, ny, nz),
        pseudopotentials={e: read_upf(_upf(folder, file)) for e, file in run.species_files.items()},
        xc=functional_name(run.functional),
        ecutrho=run.ecutrho,
        forces=run.forces,
        stress=run.stress,
        provenance=_provenance(folder, info, run, stored_stride * stride),
    )
    # the data is rounded already
    blocks = _blocks(folder / "ldos.h5", stride)
    return save_snapshot(out, snapshot, blocks, keep_bits=None, overwrite=overwrite)


def _info(folder: Path) -> dict:
    path = folder / "info.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise FileError(
            f"{path} is missing or not JSON: {folder} is no folder of the shared Al data"
        ) from error


def _ldos_head(path: Path) -> tuple[np.ndarray, tuple[int, int, int], int]:
    """Energies, grid and stride."""
    try:
        with h5py.File(path, "r") as file:
            ldos = file["ldos"]
            return file["energies"][()], ldos.shape[:3], int(ldos.attrs.get("stride", 1))
    except (OSError, KeyError) as error:
        raise FileError(f"{path} is missing or damaged: {error}") from error


def _blocks(path: Path, stride: int) -> Iterator[np.ndarray]:
    """Slabs of the LDOS on every ``stride``-th point, about one row of its chunks at a time."""
    with h5py.File(path, "r") as file:
        ldos = file["ldos"]
        step = -(-(ldos.chunks[0] if ldos.chunks else 8) // stride) * stride
        for start in range(0, ldos.shape[0], step):
            yield ldos[start : start + step][::stride, ::stride, ::stride]


def _density(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    try:
        with h5py.File(path, "r") as file:
            density = file["density"][()]
    except (OSError, KeyError) as error:
        raise FileError(f"{path} is missing or damaged: {error}") from error
    if density.shape != shape:
        raise FileError(f"{path}: the density has {density.shape} points, the run's grid {shape}")
    return density


def _fermi_level(run: PwRun) -> float:
    if run.fermi_level is None:
        raise FileError(f"{run.path}: no Fermi level")
    return run.fermi_level


def _upf(folder: Path, name: str) -> Path:
    for place in (folder / name, folder.parent / name):
        if place.is_file():
            return place
    raise FileError(f"no {name} in {folder} or {folder.parent}: the pseudopotential of the run is needed")


def _provenance(folder: Path, info: dict, run: PwRun, stride: int) -> dict:
    return {
        "made_by": "malax.generate.from_shared",
        "code": f"Quantum ESPRESSO {run.version}",
        "ldos_from": "pp.x cubes",
        "ldos_stride": stride,
        "kpoints": list(run.kpoint_mesh or ()),
        "n_bands": int(info["nbnd"]),
        "ecutwfc": run.ecutwfc,
        "cost": info.get("cost", {}),
        "source_sha256": {
            name: files.sha256(folder / name)
            for name in ("info.json", "ldos.h5", "density.h5", "data-file-schema.xml.gz")
        },
    }
