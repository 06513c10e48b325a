"""What a prediction holds, and its file (HDF5).

Layout of the file (every dataset carries its unit in the attribute ``unit``)::

    /                    attributes format, format_version, grid, provenance, timings, notes, warnings (JSON)
    /structure           cell (3,3) rows, positions (N,3), numbers (N,), pbc (3,)
    /energies/<term>     scalars, the names of `malax.energies.Energies`; a term that cannot be had is absent
    /temperature, /fermi_level, /n_electrons
    /energy_grid, /dos   (E,)
    /density             (nx, ny, nz)
    /ldos                (nx, ny, nz, E) float32, if asked for
    /spread              of an ensemble of k members: energies/<term> (k,), fermi_levels (k,), dos_std (E,),
                         density_std (nx, ny, nz); attribute calibration (JSON) if they are calibrated
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ase.io
import h5py
import numpy as np
from ase import Atoms

from malax.calibration import Calibration
from malax.comm import Comm, SerialComm, as_comm
from malax.energies import Energies
from malax.ensemble import Spread, mean_over_grid
from malax.errors import FileError, InputError, MachineError
from malax.grid import Grid, split
from malax.io import hdf5
from malax.io.cube_parts import write_cube_parts
from malax.io.files import atomic_path
from malax.io.parallel import Pieces, allocate, field_pieces, write_together
from malax.io.qe_text import pw_energies, write_dos
from malax.io.snapshot import FORMAT as SNAPSHOT_FORMAT
from malax.io.snapshot import Snapshot
from malax.io.xsf import write_xsf
from malax.units import BOHR

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMAT = "malax result"
FORMAT_VERSION = 1


@dataclass(eq=False)
class Result:
    """A prediction.

    Attributes
    ----------
    atoms, grid : the structure and the real-space grid
    energies : eV, per term; None where a term cannot be had
    fermi_level : eV; n_electrons : of the predicted density; temperature : electronic, in K
    energy_grid, dos : (E,) eV and 1/eV
    density : (nx, ny, nz) 1/A^3. Under a communicator this rank's part, flat: the points
        ``part[0]..part[1]-1`` in C order, until `gather`.
    ldos : (nx, ny, nz, E) float32 1/(eV A^3), or None; under a communicator (points, E)
    timings : seconds per stage, the largest over the ranks
    provenance : where it came from: version, hash of the model, options, libraries
    notes, warnings : what was assumed, and what should be looked at
    part : flat range of the points held here
    spread : of an ensemble, what its members say; else None
    outside : fraction of the grid points whose surroundings are unlike the training; None if not known
    """

    atoms: Atoms
    grid: Grid
    energies: Energies
    fermi_level: float
    n_electrons: float
    temperature: float
    energy_grid: np.ndarray
    dos: np.ndarray
    density: np.ndarray
    ldos: np.ndarray | None
    timings: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    part: tuple[int, int] = (0, 0)
    comm: Comm = field(default_factory=SerialComm, repr=False)
    spread: Spread | None = None
    outside: float | None = None

    def __post_init__(self) -> None:
        if self.comm.size == 1:
            self.part = (0, self.grid.n_points)
            self.density = self.density.reshape(self.grid.shape)
            if self.ldos is not None:
                self.ldos = self.ldos.reshape(*self.grid.shape, -1)
            if self.spread is not None:
                self.spread.density_std = self.spread.density_std.reshape(self.grid.shape)

    @property
    def is_whole(self) -> bool:
        """Whether density and LDOS here are those of the whole grid."""
        return self.comm.size == 1

    def gather(self) -> Result | None:
        """The whole result on rank 0, None on the other ranks; collective. Serial: itself."""
        if self.is_whole:
            return self
        density = _join(self.comm, self.density)
        ldos = None if self.ldos is None else _join(self.comm, self.ldos)
        spread = self.spread
        if spread is not None:
            whole = _join(self.comm, spread.density_std)
            spread = None if whole is None else dataclasses.replace(spread, density_std=whole)
        if density is None:
            return None
        return dataclasses.replace(self, density=density, ldos=ldos, comm=SerialComm(), spread=spread)

    def save(self, path: str | os.PathLike[str], overwrite: bool = True) -> Path:
        """Write everything into one HDF5 file, whole or not at all; collective.

        Rank 0 writes what is small and makes room for the fields; every rank then writes its part of them
        into the file itself (see `malax.io.parallel`).

        Raises
        ------
        FileError, MachineError
            see `malax.io.parallel.write_together`; on all ranks.
        """
        folder, needed = Path(path).parent, self._bytes()
        fields = self._fields()

        def prepare(temporary: Path) -> list[np.ndarray]:
            _check_space(folder, needed)
            with hdf5.new(temporary) as file:
                self._write_small(file)
                return [
                    allocate(file, name, (*self.grid.shape, *values.shape[1:]), values.dtype.str, unit)
                    for name, values, unit in fields
                ]

        def pieces(places: list[np.ndarray]) -> Pieces:
            for (_, values, _), where in zip(fields, places, strict=True):
                yield from field_pieces(values, self.part[0], self.grid.n_points, where)

        return write_together(self.comm, path, overwrite, prepare, pieces)

    def _fields(self) -> list[tuple[str, np.ndarray, str]]:
        """Name, this rank's values (n, ...) and unit of what is as large as the grid."""
        fields: list[tuple[str, np.ndarray, str]] = [("density", self.density.reshape(-1), "1/A^3")]
        if self.ldos is not None:
            fields.append(("ldos", self.ldos.reshape(-1, len(self.energy_grid)), "1/(eV A^3)"))
        if self.spread is not None:
            fields.append(("spread/density_std", self.spread.density_std.reshape(-1), "1/A^3"))
        return fields

    def _bytes(self) -> int:
        """Upper bound of the size of the file: density, LDOS, and what HDF5 keeps besides."""
        per_point = (8 if self.spread is None else 16) + (0 if self.ldos is None else 4 * len(self.dos))
        return int(1.02 * per_point * self.grid.n_points) + 64 * len(self.atoms) + (1 << 18)

    def _write_small(self, file: h5py.File) -> None:
        file.attrs.update(format=FORMAT, format_version=FORMAT_VERSION, grid=np.array(self.grid.shape))
        for name in ("provenance", "timings", "notes", "warnings"):
            file.attrs[name] = json.dumps(getattr(self, name))
        hdf5.put_structure(file, self.atoms)
        for name, value, unit in (
            ("temperature", self.temperature, "K"),
            ("fermi_level", self.fermi_level, "eV"),
            ("n_electrons", self.n_electrons, "1"),
            ("energy_grid", self.energy_grid, "eV"),
            ("dos", self.dos, "1/eV"),
        ):
            hdf5.put(file, name, value, unit)
        for term, energy in self.energies.as_dict().items():
            if energy is not None:
                hdf5.put(file, f"energies/{term}", energy, "eV")
        if self.outside is not None:
            file.attrs["outside"] = self.outside
        if self.spread is not None:
            for term, values in self.spread.energies.items():
                hdf5.put(file, f"spread/energies/{term}", values, "eV")
            hdf5.put(file, "spread/fermi_levels", self.spread.fermi_levels, "eV")
            hdf5.put(file, "spread/dos_std", self.spread.dos_std, "1/eV")
            if self.spread.calibration is not None:
                file["spread"].attrs["calibration"] = json.dumps(self.spread.calibration.to_plain())

    @classmethod
    def load(cls, path: str | os.PathLike[str], comm: Any = None) -> Result:
        """Read a result file.

        With ``comm`` (ours or mpi4py's) all its ranks call this, and each reads its part only: the flat range
        ``malax.grid.split(n_points, comm.size, comm.rank)``.

        Raises
        ------
        FileError
            missing, truncated, another kind of file, or holding NaN.
        """
        path = Path(path)
        try:
            with hdf5.open_format(path, FORMAT, FORMAT_VERSION) as file:
                result = cls._read(file, as_comm(comm))
        except (KeyError, OSError, ValueError, TypeError) as error:
            if isinstance(error, FileError):
                raise
            raise FileError(f"{path} is not a whole malax result: {error}") from error
        if not (np.isfinite(result.density).all() and np.isfinite(result.dos).all()):
            raise FileError(f"{path}: density or DOS hold NaN or infinity; predict again")
        return result

    @classmethod
    def _read(cls, file: h5py.File, comm: Comm) -> Result:
        structure = file["structure"]
        atoms = Atoms(
            numbers=structure["numbers"][()],
            positions=structure["positions"][()],
            cell=structure["cell"][()],
            pbc=structure["pbc"][()],
        )
        grid = Grid(atoms.cell.array, tuple(file.attrs["grid"]))  # type: ignore[arg-type]
        part = split(grid.n_points, comm.size, comm.rank)
        terms = {name: float(value[()]) for name, value in file["energies"].items()}
        return cls(
            atoms=atoms,
            grid=grid,
            energies=Energies(**{f.name: terms.get(f.name) for f in dataclasses.fields(Energies)}),
            fermi_level=float(file["fermi_level"][()]),
            n_electrons=float(file["n_electrons"][()]),
            temperature=float(file["temperature"][()]),
            energy_grid=file["energy_grid"][()],
            dos=file["dos"][()],
            density=hdf5.flat_range(file["density"], *part),
            ldos=hdf5.flat_range(file["ldos"], *part) if "ldos" in file else None,
            outside=float(file.attrs["outside"]) if "outside" in file.attrs else None,
            spread=_read_spread(file["spread"], part, comm) if "spread" in file else None,
            part=part,
            comm=comm,
            **{name: json.loads(file.attrs[name]) for name in ("provenance", "timings", "notes", "warnings")},
        )

    def terms(self) -> dict[str, float | None]:
        """The energies in eV by name, ``internal`` with them; None where a term cannot be had."""
        internal = self.energies.internal
        return {**self.energies.as_dict(), "internal": None if internal is None else float(internal)}

    def as_json(self) -> dict[str, Any]:
        """What ``malax predict --json`` prints: plain numbers, energies in eV under the Python names."""
        return {
            "formula": self.atoms.get_chemical_formula(),
            "n_atoms": len(self.atoms),
            "energies": self.terms(),
            "energies_as_pw": pw_energies(self.energies.as_dict()),
            "fermi_level": self.fermi_level,
            "n_electrons": self.n_electrons,
            "temperature": self.temperature,
            "grid": list(self.grid.shape),
            "spacing": list(self.grid.spacing),
            "spread": None if self.spread is None else self.spread.as_json(),
            "outside": self.outside,
            "timings": self.timings,
            "provenance": self.provenance,
            "notes": self.notes,
            "warnings": self.warnings,
        }

    def write_cube(self, path: str | os.PathLike[str], overwrite: bool = True) -> Path:
        """Write the density as a Gaussian cube file; collective, every rank writes its part."""
        # 1/bohr^3, which is what programs that read cube files take a density to be in
        scaled, comment = self.density.reshape(-1) * BOHR**3, "electron density in 1/bohr^3"
        shape, start = self.grid.shape, self.part[0]
        return write_cube_parts(self.comm, path, self.atoms, shape, scaled, start, comment, overwrite)

    def write_xsf(self, path: str | os.PathLike[str], overwrite: bool = True) -> Path:
        """Write structure and density (1/A^3) as an XSF file (serial: `gather` first)."""
        self._must_be_whole("write_xsf")
        write_xsf(path, self.atoms, self.density, "density", overwrite)
        return Path(path)

    def write_dos(self, path: str | os.PathLike[str], overwrite: bool = True) -> Path:
        """Write the density of states in the format of dos.x (broadened as the model's LDOS is)."""
        write_dos(path, self.energy_grid, self.dos, self.fermi_level, overwrite)
        return Path(path)

    def write_extxyz(self, path: str | os.PathLike[str], overwrite: bool = True) -> Path:
        """Write the structure as extended XYZ: ``energy`` = ``free_energy`` = F and the terms, in eV."""
        atoms = Atoms(self.atoms.symbols, self.atoms.positions, cell=self.atoms.cell, pbc=self.atoms.pbc)
        terms = {name: value for name, value in self.terms().items() if value is not None}
        if "total_free" in terms:
            atoms.info["energy"] = atoms.info["free_energy"] = terms["total_free"]
        atoms.info |= {f"malax_{name}": value for name, value in terms.items()}
        atoms.info |= {"malax_fermi_level": self.fermi_level, "malax_temperature": self.temperature}
        with atomic_path(path, overwrite) as temporary:
            # parallel=False: under mpi4py ASE would make this a collective call
            ase.io.write(temporary, atoms, format="extxyz", parallel=False)
        return Path(path)

    def plot_dos(self, ax: Axes | None = None) -> Axes:
        """Plot the density of states and the Fermi level; returns the matplotlib axes."""
        from malax import plots

        return plots.dos(self, ax=ax)

    def plot_slice(self, axis: str = "z", position: float = 0.5, ax: Axes | None = None) -> Axes:
        """Plot the density in a lattice plane (``axis`` x, y or z: the lattice vector that is cut, at the
        fraction ``position`` of it); returns the matplotlib axes."""
        from malax import plots

        self._must_be_whole("plot_slice")
        return plots.density_slice(self, axis, position, ax=ax)

    def _must_be_whole(self, what: str) -> None:
        if not self.is_whole:
            raise InputError(
                f"{what} needs the whole density: call res.gather() on all ranks, then use rank 0's"
            )


def load(path: str | os.PathLike[str], comm: Any = None) -> Result | Snapshot:
    """A result or a snapshot back from its file; with ``comm`` each rank's part of a result.

    Raises
    ------
    FileError
        the file is missing, truncated, or neither of the two.
    """
    try:
        with h5py.File(path, "r") as file:
            found = file.attrs.get("format")
    except OSError:
        found = None  # Result.load says precisely what is wrong
    return Snapshot.load(path) if found == SNAPSHOT_FORMAT else Result.load(path, comm)


def _read_spread(group: h5py.Group, part: tuple[int, int], comm: Comm) -> Spread:
    density_std = hdf5.flat_range(group["density_std"], *part)
    known = group.attrs.get("calibration")
    return Spread(
        energies={term: values[()] for term, values in group["energies"].items()},
        fermi_levels=group["fermi_levels"][()],
        dos_std=group["dos_std"][()],
        density_std=density_std,
        density_std_mean=mean_over_grid(density_std, math.prod(group["density_std"].shape), comm),
        calibration=None if known is None else Calibration.from_plain(json.loads(known)),
    )


def _check_space(folder: Path, needed: int) -> None:
    """Refuse what the disk cannot hold now: HDF5 does not recover from a disk that fills up under it."""
    if folder.is_dir() and (free := shutil.disk_usage(folder).free) < needed:
        raise MachineError(
            f"cannot write into {folder}: the disk is full, {needed / 1e6:.1f} MB are needed and "
            f"{free / 1e6:.1f} MB are free"
        )


def _join(comm: Comm, mine: np.ndarray) -> np.ndarray | None:
    parts = [np.array(part) for part in comm.parts(mine)]
    return np.concatenate(parts) if comm.rank == 0 else None
