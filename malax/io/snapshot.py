"""The snapshot file: one DFT calculation with its local density of states, as HDF5.

Layout (all in eV, Angstrom, Kelvin; every dataset carries its unit in the attribute ``unit``)::

    /                    attributes format, format_version, name, xc, provenance (JSON)
    /structure           cell (3,3) rows, positions (N,3), numbers (N,), pbc (3,)
    /energy_grid         (E,)
    /ldos                (points, E) float32, points in C order of the attribute ``grid`` (nx, ny, nz);
                         chunks of whole energy rows, so that any flat range of points is read alone;
                         attributes kernel ("gaussian" | "fermi-dirac"), sigma, complete_to
    /dos                 (E,) the sum of the LDOS over the cell
    /density             (nx, ny, nz), on its own, possibly finer grid
    /energies/<term>     scalars, the names of ``malax.energies.Energies``
    /temperature, /n_electrons, /fermi_level, /ecutrho      scalars
    /forces (N,3), /stress (6,)                             ASE's signs and Voigt order
    /pseudopotentials/<element>/...                         arrays, and attribute ``meta`` (JSON)
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from ase import Atoms

from malax.errors import FileError, InputError
from malax.grid import Grid
from malax.io import files, hdf5
from malax.io.hdf5 import open_format, put, put_structure, reason, round_mantissa
from malax.io.snapshot_checks import ENERGY_TERMS, check_dos, check_fields
from malax.io.upf import Pseudopotential

FORMAT = "malax snapshot"
FORMAT_VERSION = 1
CHUNK_BYTES = 1 << 20
"""Size of one LDOS chunk before compression: small enough for a tile, large enough to compress well."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One DFT calculation. The LDOS stays in the file; ``read_ldos`` fetches points of it.

    Attributes
    ----------
    name : short name, unique among the snapshots of a training set
    atoms : periodic structure, Angstrom
    energy_grid : (E,) eV, evenly spaced, ascending
    kernel : broadening of the LDOS, "gaussian" exp(-x^2)/(sqrt(pi) sigma) or "fermi-dirac"
        1/(2+e^x+e^-x)/sigma, x = (eps - eps_nk)/sigma
    sigma : its width in eV
    complete_to : energy in eV up to which all bands were computed; above, the LDOS is too small
    temperature : electronic temperature in K
    n_electrons, fermi_level : number of valence electrons; eV
    energies : eV, the keys are ``ENERGY_TERMS`` (``entropy_term`` is -TS)
    forces, stress : (N, 3) eV/A; (6,) eV/A^3 in ASE's sign and Voigt order; None if not computed
    density : (nx, ny, nz) in 1/A^3 on its own grid, or None
    ldos_shape : grid of the LDOS
    pseudopotentials : element -> pseudopotential
    xc : name of the functional, e.g. "PBE"
    ecutrho : cutoff of the density in eV (|G|^2 hbar^2/2m)
    provenance : plain dict: where it came from
    dos : (E,) 1/eV, the LDOS summed over the cell (filled when the file is written)
    path : the file, None before it is written
    """

    name: str
    atoms: Atoms
    energy_grid: np.ndarray
    kernel: str
    sigma: float
    complete_to: float
    temperature: float
    n_electrons: float
    fermi_level: float
    energies: dict[str, float]
    density: np.ndarray | None
    ldos_shape: tuple[int, int, int]
    pseudopotentials: dict[str, Pseudopotential]
    xc: str
    ecutrho: float
    forces: np.ndarray | None = None
    stress: np.ndarray | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    dos: np.ndarray | None = None
    path: Path | None = None

    @property
    def grid(self) -> Grid:
        """Grid of the LDOS."""
        return Grid(self.atoms.cell.array, self.ldos_shape)

    @property
    def density_grid(self) -> Grid:
        """Grid of the density (that of the LDOS if there is no density)."""
        shape = self.ldos_shape if self.density is None else self.density.shape
        return Grid(self.atoms.cell.array, shape)  # type: ignore[arg-type]

    @property
    def broadening_variance(self) -> float:
        """Variance of the kernel in eV^2."""
        if self.kernel == "gaussian":
            return self.sigma**2 / 2
        return math.pi**2 * self.sigma**2 / 3

    @property
    def sha256(self) -> str:
        """SHA-256 of the file. InputError before it is written."""
        return files.sha256(self._file())

    def read_ldos(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """LDOS (stop - start, E) float32 in 1/(eV A^3) of the points start..stop-1, flat C order.

        Only the chunks that hold these points are read. FileError if the file is gone or damaged, or
        if it holds values that are not finite.
        """
        path = self._file()
        try:
            with h5py.File(path, "r") as file:
                ldos = file["ldos"][start:stop]
        except (OSError, KeyError) as error:
            raise FileError(
                f"cannot read the LDOS of {path}: {reason(error)}; make the snapshot again"
            ) from error
        if not np.isfinite(ldos).all():
            raise FileError(f"{path}: the LDOS holds values that are not finite; make the snapshot again")
        return ldos

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Snapshot:
        """Read all but the LDOS of a snapshot file.

        Raises
        ------
        FileError
            no such file, truncated, not HDF5, not a snapshot, a newer format, fields missing, NaN, or a
            grid that does not match.
        """
        path = Path(path)
        try:
            with open_format(path, FORMAT, FORMAT_VERSION) as file:
                snapshot = _read(file, path)
        except (KeyError, OSError, ValueError, TypeError) as error:
            if isinstance(error, FileError):
                raise
            raise FileError(f"{path} is not a whole malax snapshot: {reason(error)}") from error
        return snapshot

    def _file(self) -> Path:
        if self.path is None:
            raise InputError(
                f"snapshot {self.name} has not been written to a file yet: use save_snapshot first"
            )
        return self.path


def save_snapshot(
    path: str | os.PathLike[str],
    snapshot: Snapshot,
    ldos_blocks: Iterable[np.ndarray],
    *,
    keep_bits: int | None = 13,
    overwrite: bool = True,
) -> Snapshot:
    """Write a snapshot; the file appears under its name only when it is whole.

    Parameters
    ----------
    snapshot : all but the LDOS
    ldos_blocks : blocks (points, E) or (nx', ny, nz, E) in 1/(eV A^3), which one after the other are the
        points of ``snapshot.ldos_shape`` in C order. Only one block is held at a time.
    keep_bits : bits of the mantissa of the LDOS that are kept (13: relative rounding 6e-5, half the
        file); None keeps all 23.

    Returns
    -------
    the snapshot as read back from the file.

    Raises
    ------
    InputError
        not finite, too few or too many points, or integrals that are not the number of electrons.
    FileError, MachineError
        see ``malax.io.files.atomic_path``.
    """
    check_fields(snapshot, f"snapshot {snapshot.name}")
    with hdf5.create(path, overwrite) as file:
        _write_fields(file, snapshot)
        dos = _write_ldos(file, snapshot, ldos_blocks, keep_bits)
        check_dos(snapshot, dos)
        put(file, "dos", dos, "1/eV")
    return Snapshot.load(path)


def _write_fields(file: h5py.File, s: Snapshot) -> None:
    file.attrs.update(format=FORMAT, format_version=FORMAT_VERSION, name=s.name, xc=s.xc)
    file.attrs["provenance"] = json.dumps(s.provenance)
    put_structure(file, s.atoms)
    for name, value, unit in (
        ("energy_grid", s.energy_grid, "eV"),
        ("temperature", s.temperature, "K"),
        ("n_electrons", s.n_electrons, "1"),
        ("fermi_level", s.fermi_level, "eV"),
        ("ecutrho", s.ecutrho, "eV"),
        ("forces", s.forces, "eV/A"),
        ("stress", s.stress, "eV/A^3"),
    ):
        if value is not None:
            put(file, name, value, unit)
    for term, energy in s.energies.items():
        put(file, f"energies/{term}", energy, "eV")
    if s.density is not None:
        put(
            file,
            "density",
            np.asarray(s.density, dtype=np.float64),
            "1/A^3",
            compression="gzip",
            shuffle=True,
        )
    for element, pseudopotential in s.pseudopotentials.items():
        group = file.create_group(f"pseudopotentials/{element}")
        arrays, meta = pseudopotential.to_arrays()
        group.attrs["meta"] = json.dumps(meta)
        for name, array in arrays.items():
            group.create_dataset(name, data=array)


def _write_ldos(
    file: h5py.File, s: Snapshot, blocks: Iterable[np.ndarray], keep_bits: int | None
) -> np.ndarray:
    """Write the LDOS block by block; return the DOS (E,), summed in double."""
    n_points, n_energies = s.grid.n_points, len(s.energy_grid)
    rows = max(1, min(n_points, CHUNK_BYTES // (4 * n_energies)))
    data = file.create_dataset(
        "ldos",
        shape=(n_points, n_energies),
        dtype="f4",
        chunks=(rows, n_energies),
        compression="gzip",
        compression_opts=4,
        shuffle=True,
    )
    data.attrs.update(unit="1/(eV A^3)", axes="point (C order), energy", grid=np.array(s.ldos_shape))
    data.attrs.update(kernel=s.kernel, sigma=s.sigma, complete_to=s.complete_to)
    total, start = np.zeros(n_energies), 0
    for block in blocks:
        block = np.asarray(block, dtype=np.float32).reshape(-1, n_energies)
        if not np.isfinite(block).all():
            raise InputError(f"snapshot {s.name}: the LDOS holds values that are not finite")
        if start + len(block) > n_points:
            raise InputError(f"snapshot {s.name}: the LDOS has more than the {n_points} points of its grid")
        kept = block if keep_bits is None else round_mantissa(block, keep_bits)
        data[start : start + len(block)] = kept
        total += kept.sum(axis=0, dtype=np.float64)
        start += len(block)
    if start != n_points:
        raise InputError(
            f"snapshot {s.name}: the LDOS has {start} points, its grid {s.ldos_shape} has {n_points}"
        )
    return total * s.grid.point_volume


def _read(file: h5py.File, path: Path) -> Snapshot:
    ldos = file["ldos"]
    structure = file["structure"]
    atoms = Atoms(
        numbers=structure["numbers"][()],
        positions=structure["positions"][()],
        cell=structure["cell"][()],
        pbc=structure["pbc"][()],
    )
    pseudopotentials = {
        element: Pseudopotential.from_arrays(
            {name: array[()] for name, array in group.items()}, json.loads(group.attrs["meta"])
        )
        for element, group in file.get("pseudopotentials", {}).items()
    }
    snapshot = Snapshot(
        name=str(file.attrs["name"]),
        atoms=atoms,
        energy_grid=file["energy_grid"][()],
        kernel=str(ldos.attrs["kernel"]),
        sigma=float(ldos.attrs["sigma"]),
        complete_to=float(ldos.attrs["complete_to"]),
        temperature=float(file["temperature"][()]),
        n_electrons=float(file["n_electrons"][()]),
        fermi_level=float(file["fermi_level"][()]),
        energies={term: float(file["energies"][term][()]) for term in file["energies"]},
        density=file["density"][()] if "density" in file else None,
        ldos_shape=tuple(int(n) for n in ldos.attrs["grid"]),  # type: ignore[arg-type]
        pseudopotentials=pseudopotentials,
        xc=str(file.attrs["xc"]),
        ecutrho=float(file["ecutrho"][()]),
        forces=file["forces"][()] if "forces" in file else None,
        stress=file["stress"][()] if "stress" in file else None,
        provenance=json.loads(file.attrs["provenance"]),
        dos=file["dos"][()],
        path=path,
    )
    if ldos.shape != (snapshot.grid.n_points, len(snapshot.energy_grid)) or ldos.dtype != np.float32:
        raise FileError(
            f"{path}: the LDOS has shape {ldos.shape}, its grid {snapshot.ldos_shape} and "
            f"{len(snapshot.energy_grid)} energies do not match; make the snapshot again"
        )
    try:
        check_fields(snapshot, str(path))
        check_dos(snapshot, snapshot.dos)  # type: ignore[arg-type]
    except InputError as error:
        raise FileError(str(error)) from error
    return replace(
        snapshot, energies={t: snapshot.energies[t] for t in ENERGY_TERMS if t in snapshot.energies}
    )
