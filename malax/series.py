"""A table of many predictions that grows as they finish, so that a killed series goes on where it stopped.

A row stands for one structure at one temperature and carries a key: a hash of all that decides its numbers.
A row is appended in one write when its result is whole; what a kill has cut off is dropped when the series
goes on.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms

from malax.differences import minus
from malax.errors import FileError, InputError
from malax.io.files import atomic_path
from malax.result import Result

TERMS = ("total_free", "internal", "band", "hartree", "xc", "vxc_rho", "ewald", "entropy_term")
COLUMNS = (
    "structure",
    "formula",
    "n_atoms",
    "temperature_K",
    "grid",
    "fermi_level_eV",
    "n_electrons",
    *(f"{term}_eV" for term in TERMS),
    "members",
    "fermi_level_std_eV",
    *(f"{term}_std_eV" for term in TERMS),
    "total_free_members",
    "minus_first_eV_per_atom",
    "minus_first_std_eV_per_atom",
    "outside",
    "seconds",
    "file",
    "warnings",
    "key",
)
SUFFIXES = (".csv", ".xyz", ".extxyz")


def key_of(atoms: Atoms, temperature: float | None, *rest: Any) -> str:
    """A hash of a structure, a temperature, and whatever else decides the numbers."""
    digest = hashlib.sha256(repr((temperature, rest)).encode())
    for array in (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:24]


def row_of(
    label: str, result: Result, file: Path | None, key: str, first: dict[str, str] | None = None
) -> dict[str, str]:
    """What the table says of a result: text under `COLUMNS`, numbers with all their digits.

    Standard deviations and the number of members are those of an ensemble, else empty. ``minus_first`` is the
    free energy per atom minus that of the row ``first``.
    """
    difference = None if first is None else minus(result.as_json(), as_json(first))
    terms, spread = result.terms(), result.spread
    stds: dict[str, float] = {} if spread is None else spread.std
    values: dict[str, Any] = {
        "structure": label,
        "formula": result.atoms.get_chemical_formula(),
        "n_atoms": len(result.atoms),
        "temperature_K": result.temperature,
        "grid": "x".join(map(str, result.grid.shape)),
        "fermi_level_eV": result.fermi_level,
        "n_electrons": result.n_electrons,
        **{f"{term}_eV": terms[term] for term in TERMS},
        "members": None if spread is None else spread.n_members,
        "fermi_level_std_eV": None if spread is None else spread.fermi_level_std,
        **{f"{term}_std_eV": stds.get(term) for term in TERMS},
        "total_free_members": None if spread is None else _texts(spread.energies.get("total_free", [])),
        "minus_first_eV_per_atom": None if difference is None else difference[0],
        "minus_first_std_eV_per_atom": None if difference is None else difference[1],
        "outside": result.outside,
        "seconds": round(result.timings.get("total", 0.0), 3),
        "file": file or "",
        "warnings": " | ".join(result.warnings),
        "key": key,
    }
    return {
        name: "" if value is None else repr(float(value)) if isinstance(value, float) else str(value)
        for name, value in values.items()
    }


def _texts(values: Iterable[float]) -> str:
    return " ".join(repr(float(value)) for value in values)


def as_json(row: dict[str, str]) -> dict[str, Any]:
    """A row as ``malax predict --json`` prints a result that an earlier run has finished."""

    def number(name: str) -> float | None:
        return float(row[name]) if row[name] else None

    spread = {
        "members": int(row["members"] or 0),
        "energies_std": {t: number(f"{t}_std_eV") for t in TERMS if row[f"{t}_std_eV"]},
        "fermi_level_std": number("fermi_level_std_eV"),
        "energies": {"total_free": [float(value) for value in row["total_free_members"].split()]},
    }
    return {
        "structure": row["structure"],
        "formula": row["formula"],
        "n_atoms": int(row["n_atoms"]),
        "energies": {term: number(f"{term}_eV") for term in TERMS},
        "fermi_level": number("fermi_level_eV"),
        "n_electrons": number("n_electrons"),
        "temperature": number("temperature_K"),
        "grid": [int(n) for n in row["grid"].split("x")],
        "spread": spread if row["members"] else None,
        "outside": number("outside"),
        "warnings": row["warnings"].split(" | ") if row["warnings"] else [],
        "files": [row["file"]] if row["file"] else [],
        "finished_before": True,
    }


class Table:
    """One or several files with a row per result: CSV, or extended XYZ (the structure with its energies).

    On one rank only.

    Raises
    ------
    InputError
        another suffix than .csv, .xyz, .extxyz.
    FileError
        a file is there that is no such table or holds rows of another series, and ``overwrite`` is false; or
        its folder is missing.
    """

    def __init__(self, paths: Sequence[Path], keys: Iterable[str], overwrite: bool = False) -> None:
        self.paths = list(paths)
        self._keys = set(keys)
        for path in self.paths:
            if path.suffix not in SUFFIXES:
                raise InputError(f"--table {path}: a name ending in {', '.join(SUFFIXES)} is needed")
            if not path.parent.is_dir():
                raise FileError(f"cannot write {path}: the folder {path.parent} does not exist")
        found = [{} if overwrite else self._read(path) for path in self.paths]
        # a result is finished when it stands in all files
        done = set.intersection(*(set(rows) for rows in found)) if found else set()
        self.finished: dict[str, dict[str, str]] = {}
        for path, rows in zip(self.paths, found, strict=True):
            kept = {key: rows[key] for key in rows if key in done}
            with atomic_path(path) as temporary:
                start = "" if _is_xyz(path) else _line(dict(zip(COLUMNS, COLUMNS, strict=True)))
                temporary.write_text(start + "".join(text for text, _ in kept.values()))
            self.finished.update({key: row for key, (_, row) in kept.items()})

    def _read(self, path: Path) -> dict[str, tuple[str, dict[str, str]]]:
        """Whole rows of a table by key: their text and their values."""
        if not path.exists():
            return {}
        rows = dict(_xyz_rows(path) if _is_xyz(path) else _csv_rows(path))
        strangers = set(rows) - self._keys
        if strangers:
            raise FileError(
                f"{path} exists and has {len(strangers)} rows that are not of this series (other model, "
                "structures or options); give --overwrite or another name"
            )
        return rows

    def add(self, row: dict[str, str], atoms: Atoms) -> None:
        """Append a row to every file."""
        for path in self.paths:
            text = _frame(row, atoms) if _is_xyz(path) else _line(row)
            with open(path, "a") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        self.finished[row["key"]] = row


def _is_xyz(path: Path) -> bool:
    return path.suffix != ".csv"


def _line(row: dict[str, str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([row[name] for name in COLUMNS])
    return text.getvalue()


def _csv_rows(path: Path) -> Iterable[tuple[str, tuple[str, dict[str, str]]]]:
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]  # a kill may have cut the last line
    lines = list(csv.reader(io.StringIO(whole)))
    if text and (not lines or tuple(lines[0]) != COLUMNS):
        raise FileError(f"{path} exists and is no table of malax; give --overwrite or another name")
    for values in lines[1:]:
        row = dict(zip(COLUMNS, values, strict=True))
        yield row["key"], (_line(row), row)


def _frame(row: dict[str, str], atoms: Atoms) -> str:
    """The structure in extended XYZ, the row as its info; energies in eV under the names of the columns."""
    image = Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    image.info = {"malax": json.dumps(row)}
    for name in COLUMNS:
        if name.endswith(("_eV", "_K")) and row[name]:
            image.info[name] = float(row[name])
    if row["total_free_eV"]:
        image.info["free_energy"] = float(row["total_free_eV"])
    text = io.StringIO()
    ase.io.write(text, image, format="extxyz", parallel=False)
    return text.getvalue()


def _xyz_rows(path: Path) -> Iterable[tuple[str, tuple[str, dict[str, str]]]]:
    lines = path.read_text().splitlines(keepends=True)
    start = 0
    while start < len(lines):
        try:
            frame = lines[start : start + 2 + int(lines[start])]
        except ValueError as error:
            raise FileError(f"{path} exists and is no table of malax; give --overwrite") from error
        start += len(frame)
        if len(frame) < 3 or not frame[-1].endswith("\n") or len(frame) != 2 + int(frame[0]):
            return  # a kill has cut the last structure
        image = ase.io.read(io.StringIO("".join(frame)), index=0, format="extxyz", parallel=False)
        assert isinstance(image, Atoms)  # one index gives one image
        row = json.loads(image.info.get("malax", "{}"))
        if set(row) != set(COLUMNS):
            raise FileError(f"{path} exists and is no table of malax; give --overwrite or another name")
        yield row["key"], ("".join(frame), row)
