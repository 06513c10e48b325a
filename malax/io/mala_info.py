"""What MALA knows of a calculation: its ``info.json``, or the output of pw.x from which it is made."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms

from malax.errors import FileError
from malax.units import BOLTZMANN, RYDBERG


@dataclass(frozen=True, eq=False)
class MalaInfo:
    """One calculation, in eV, Angstrom and Kelvin.

    Attributes
    ----------
    grid : points of the FFT grid, which is that of LDOS and descriptors
    energies : some of malax's terms; only those that the file gives
    """

    atoms: Atoms
    grid: tuple[int, int, int]
    temperature: float
    n_electrons: float
    fermi_level: float
    ecutrho: float | None
    energies: dict[str, float] = field(default_factory=dict)


def read_info(path: str | os.PathLike[str]) -> MalaInfo:
    """Read ``X.info.json`` or the output of pw.x. FileError if it is neither, or something is missing."""
    path = Path(path)
    if path.suffix == ".json":
        try:
            return info_from_json(path.read_bytes(), str(path))
        except OSError as error:
            raise FileError(f"{path}: {error.strerror}") from error
    return _from_output(path)


def info_from_json(content: bytes, name: str) -> MalaInfo:
    """MALA's summary from the bytes of ``X.info.json``."""
    try:
        data: dict[str, Any] = json.loads(content)
        found = data["atoms"]
        atoms = Atoms(numbers=found["numbers"], positions=found["positions"], cell=found["cell"], pbc=True)
        electrons = data.get("number_of_electrons_exact")
        if electrons is None:
            electrons = float(data["electrons_per_atom"]) * len(atoms)
        terms = {
            "total_free": data.get("total_energy_dft_calculation"),
            "band": data.get("band_energy_dft_calculation"),
            "entropy_term": data.get("entropy_contribution_dft_calculation"),
        }
        cutoff = data.get("ecutrho")
        nx, ny, nz = (int(n) for n in data["grid_dimensions"])
        return MalaInfo(
            atoms=atoms,
            grid=(nx, ny, nz),
            temperature=float(data["temperature"]),
            n_electrons=float(electrons),
            fermi_level=float(data["fermi_energy_dft"]),
            ecutrho=None if cutoff is None else float(cutoff) * RYDBERG,
            energies={term: float(value) for term, value in terms.items() if value is not None},
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileError(f"{name} is not an info.json of MALA, or lacks something: {error!r}") from error


_NUMBER = r"\s*=\s*([-+.\dEe]+)"
_TERMS = {
    "total_free": r"^!\s+total energy",
    "entropy_term": r"^\s+smearing contrib\. \(-TS\)",
    "hartree": r"^\s+hartree contribution",
    "xc": r"^\s+xc contribution",
    "ewald": r"^\s+ewald contribution",
}


def _from_output(path: Path) -> MalaInfo:
    try:
        text = path.read_text(errors="replace")
        atoms: Any = ase.io.read(path, format="espresso-out", parallel=False)
    except Exception as error:  # readers of ASE raise anything
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise FileError(f"{path} is missing or not the output of pw.x: {reason}") from error

    def number(pattern: str, unit: str) -> float:
        found = re.findall(pattern, text, re.MULTILINE)
        if not found:
            raise FileError(f"{path} does not say {unit}: is it the whole output of an scf of pw.x?")
        return float(found[-1])

    width = number(r"Fermi-Dirac smearing, width \(Ry\)=\s*([.\d]+)", "its Fermi-Dirac smearing")
    grid = re.search(r"Dense\s+grid:.*FFT dimensions:\s*\(\s*(\d+),\s*(\d+),\s*(\d+)\)", text)
    if grid is None:
        raise FileError(f"{path} does not say its FFT dimensions")
    terms = {}
    for term, pattern in _TERMS.items():
        found = re.findall(pattern + _NUMBER + r" Ry", text, re.MULTILINE)
        if found:
            terms[term] = float(found[-1]) * RYDBERG
    nx, ny, nz = (int(n) for n in grid.groups())
    return MalaInfo(
        atoms=Atoms(atoms.symbols, positions=atoms.positions, cell=atoms.cell, pbc=True),
        grid=(nx, ny, nz),
        temperature=width * RYDBERG / BOLTZMANN,
        n_electrons=number(r"number of electrons" + _NUMBER, "the number of electrons"),
        fermi_level=number(r"the Fermi energy is\s+([-.\d]+) ev", "the Fermi energy"),
        ecutrho=number(r"charge density cutoff" + _NUMBER, "the cutoff of the density") * RYDBERG,
        energies=terms,
    )


def volume_per_atom(info: MalaInfo) -> float:
    """A^3."""
    return float(abs(np.linalg.det(info.atoms.cell.array))) / len(info.atoms)
