"""UPF pseudopotential files, versions 1 and 2: what the total energy needs of them.

That is the valence charge, the functional, and the core charge of the nonlinear core correction
(NLCC) on its radial mesh. Radial arrays are converted to Angstrom here and nowhere else.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from malax.errors import FileError, InputError
from malax.units import BOHR

RADIAL_CUTOFF = 10.0 * BOHR
"""Quantum ESPRESSO ends its radial integrals here (10 bohr), in A; we must, to get its numbers."""

_KINDS = {"NC": "NC", "SL": "NC", "1/R": "NC", "US": "US", "USPP": "US"}

# QE's names of exchange, correlation and their gradient corrections -> our name. "LDA" is QE's
# synonym of Perdew-Zunger.
_FUNCTIONALS = {
    "PZ": "PZ",
    "LDA": "PZ",
    "SLA PZ": "PZ",
    "SLA PZ NOGX NOGC": "PZ",
    "PW": "PW",
    "SLA PW": "PW",
    "SLA PW NOGX NOGC": "PW",
    "PBE": "PBE",
    "SLA PW PBX PBC": "PBE",
    "SLA PW PBE PBE": "PBE",
    "PBESOL": "PBESOL",
    "SLA PW PSX PSC": "PBESOL",
}


def functional_name(text: str) -> str:
    """One name per functional: ``"PZ"``, ``"PW"``, ``"PBE"``, ``"PBESOL"``; others in QE's long form.

    Understands QE's short names, long names with blanks or ``+`` between the parts
    (``"sla+pw+pbx+pbc"``), and both in a row, as UPF 1 writes them (``"SLA PW PBX PBC PBE"``).
    ``"LDA"`` is Perdew-Zunger, as in QE. An unknown functional is returned as it is, in capitals.
    """
    parts = re.split(r"[\s+]+", text.strip().upper())
    whole = " ".join(parts)
    if whole in _FUNCTIONALS:
        return _FUNCTIONALS[whole]
    # four parts and something more: known only if that names the same functional (it may be nonlocal)
    name = _FUNCTIONALS.get(" ".join(parts[:4]))
    return name if name is not None and _FUNCTIONALS.get(" ".join(parts[4:])) == name else whole


@dataclass(frozen=True, eq=False)
class Pseudopotential:
    """What malax keeps of a pseudopotential.

    Attributes
    ----------
    element : chemical symbol
    z_valence : valence charge in elementary charges
    functional : "PZ", "PW", "PBE", "PBESOL", or the name in the file if it is another
    kind : "NC" (norm-conserving) or "US" (ultrasoft)
    r : (n,) radial mesh in A
    rab : (n,) dr/di of the mesh in A, the weights of an integral over the mesh index
    core_density : (n,) pseudized core charge in 1/A^3, or None without NLCC
    sha256 : of the file's bytes
    name : the file's name
    """

    element: str
    z_valence: float
    functional: str
    kind: str
    r: np.ndarray
    rab: np.ndarray
    core_density: np.ndarray | None
    sha256: str
    name: str

    def to_arrays(self) -> tuple[dict[str, np.ndarray], dict[str, str | float]]:
        """Arrays (none without NLCC: nothing else needs the mesh) and plain values, to be stored in files."""
        meta: dict[str, str | float] = {
            key: getattr(self, key)
            for key in ("element", "z_valence", "functional", "kind", "sha256", "name")
        }
        if self.core_density is None:
            return {}, meta
        return {"r": self.r, "rab": self.rab, "core_density": self.core_density}, meta

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], meta: dict[str, str | float]) -> Pseudopotential:
        """Inverse of :meth:`to_arrays`. FileError when something is missing."""
        try:
            core = arrays.get("core_density")
            return cls(
                element=str(meta["element"]),
                z_valence=float(meta["z_valence"]),
                functional=str(meta["functional"]),
                kind=str(meta["kind"]),
                r=np.asarray(arrays["r"] if core is not None else [], dtype=np.float64),
                rab=np.asarray(arrays["rab"] if core is not None else [], dtype=np.float64),
                core_density=None if core is None else np.asarray(core, dtype=np.float64),
                sha256=str(meta["sha256"]),
                name=str(meta["name"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FileError(f"the stored pseudopotential is incomplete: {error}") from error


def read_upf(path: str | os.PathLike[str]) -> Pseudopotential:
    """Read a norm-conserving or ultrasoft UPF file, version 1 or 2.

    Raises
    ------
    FileError
        the file is missing, not UPF, truncated or malformed, or PAW (whose one-centre terms are not in
        a density on a grid).
    """
    file = Path(path)
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise FileError(f"cannot read the pseudopotential {file}: {error.strerror}") from error
    text = raw.decode("utf-8", errors="replace")
    parser = _Upf2 if re.search(r"<UPF\s+version\s*=\s*[\"']2\.", text) else _Upf1
    # PP_INFO is free text (comments, the generator's input) that may look like anything
    text = text.partition("</PP_INFO>")[2] or text
    if "<PP_HEADER" not in text:
        raise FileError(f"{file} is not a UPF pseudopotential of version 1 or 2: it has no <PP_HEADER>")
    try:
        return _assemble(parser(text), file.name, hashlib.sha256(raw).hexdigest())
    except _Malformed as error:
        raise FileError(f"{file}: {error}") from error


def resolve(
    pseudopotentials: Mapping[str, str | os.PathLike[str] | Pseudopotential], symbols: list[str]
) -> dict[str, Pseudopotential]:
    """The pseudopotential of each element in ``symbols``; paths are read.

    Raises
    ------
    InputError
        an element has none, or one made for another element.
    """
    found = {}
    for symbol in sorted(set(symbols)):
        if symbol not in pseudopotentials:
            known = ", ".join(sorted(pseudopotentials)) or "none"
            raise InputError(f"no pseudopotential for {symbol}; there are: {known}")
        value = pseudopotentials[symbol]
        found[symbol] = value if isinstance(value, Pseudopotential) else read_upf(value)
        if found[symbol].element != symbol:
            raise InputError(
                f"the pseudopotential given for {symbol}, {found[symbol].name}, is of {found[symbol].element}"
            )
    return found


class _Malformed(Exception):
    """What is wrong with the text; read_upf adds the file's name."""


class _Upf2:
    """Header fields and sections of a UPF 2 file.

    Not read by an XML parser, because many UPF 2 files are not quite XML.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        if "</UPF>" not in text:
            raise _Malformed("the file is truncated: </UPF> is missing")
        match = re.search(r"<PP_HEADER((?:\"[^\"]*\"|'[^']*'|[^>\"'])*)>", text)
        if match is None:
            raise _Malformed("the file is truncated: <PP_HEADER is not closed")
        pairs = re.findall(r"(\w+)\s*=\s*(?:\"([^\"]*)\"|'([^']*)')", match.group(1))
        self.attributes = {key: (double or single).strip() for key, double, single in pairs}

    def field(self, name: str) -> str:
        if name not in self.attributes:
            raise _Malformed(f"PP_HEADER has no {name}")
        return self.attributes[name]

    def section(self, name: str) -> str:
        return _section(self.text, name)


class _Upf1:
    """The same of a UPF 1 file, whose header has one value per line in a fixed order."""

    _LINES = ("version", "element", "pseudo_type", "core_correction", "functional", "z_valence")

    def __init__(self, text: str) -> None:
        self.text = text
        lines = [line for line in _section(text, "PP_HEADER").splitlines() if line.strip()]
        if len(lines) < 10:
            raise _Malformed(f"PP_HEADER has {len(lines)} lines; UPF 1 has at least 10")
        # the last section of every UPF 1 file: without it something is missing
        _section(text, "PP_RHOATOM")
        self.attributes = {key: line.split()[0] for key, line in zip(self._LINES, lines, strict=False)}
        self.attributes["functional"] = re.split(r"\s+Exchange", lines[4])[0]
        self.attributes["mesh_size"] = lines[9].split()[0]

    def field(self, name: str) -> str:
        return self.attributes[name]

    def section(self, name: str) -> str:
        return _section(self.text, name)


def _section(text: str, name: str) -> str:
    match = re.search(rf"<{name}(?:\s[^>]*)?>(.*?)</{name}\s*>", text, re.DOTALL)
    if match is None:
        raise _Malformed(f"the file is truncated or malformed: no complete <{name}> section")
    return match.group(1)


def _assemble(upf: _Upf1 | _Upf2, name: str, sha256: str) -> Pseudopotential:
    kind_in_file = upf.field("pseudo_type").upper()
    if kind_in_file == "PAW" or _flag(upf.attributes.get("is_paw", "F")):
        raise _Malformed(
            "PAW is not supported (its one-centre terms are not in a density on a grid); "
            "use a norm-conserving or ultrasoft pseudopotential"
        )
    if kind_in_file not in _KINDS:
        raise _Malformed(f"unknown pseudo_type {kind_in_file!r}; known are NC and US")
    kind = "US" if _flag(upf.attributes.get("is_ultrasoft", "F")) else _KINDS[kind_in_file]
    size = int(_number(upf.field("mesh_size"), "mesh_size"))
    r = _numbers(upf, "PP_R", size)
    rab = _numbers(upf, "PP_RAB", size)
    if size < 3 or r[0] < 0 or (np.diff(r) <= 0).any():
        raise _Malformed("the radial mesh in PP_R does not increase")
    core = _numbers(upf, "PP_NLCC", size) if _flag(upf.field("core_correction")) else None
    z_valence = _number(upf.field("z_valence"), "z_valence")
    if not z_valence > 0:
        raise _Malformed(f"z_valence is {z_valence}; it must be positive")
    return Pseudopotential(
        element=upf.field("element").capitalize(),
        z_valence=z_valence,
        functional=functional_name(upf.field("functional")),
        kind=kind,
        r=r * BOHR,
        rab=rab * BOHR,
        core_density=None if core is None else core / BOHR**3,
        sha256=sha256,
        name=name,
    )


def _flag(text: str) -> bool:
    """A Fortran or XML logical: T, .true., true, F, ..."""
    return text.strip(". ").lower().startswith("t")


def _number(text: str, what: str) -> float:
    # Fortran writes 1.0D-05, and 1.0-105 when the exponent has three digits
    cleaned = re.sub(r"(?<=[0-9.])([+-]\d+)$", r"E\1", text.strip().replace("D", "E").replace("d", "e"))
    try:
        value = float(cleaned)
    except ValueError:
        raise _Malformed(f"{what} holds {text[:20]!r}, which is not a number") from None
    if not np.isfinite(value):
        raise _Malformed(f"{what} holds {text[:20]!r}, which is not finite")
    return value


def _numbers(upf: _Upf1 | _Upf2, section: str, size: int) -> np.ndarray:
    words = upf.section(section).split()
    if len(words) != size:
        raise _Malformed(f"{section} holds {len(words)} numbers; the mesh has {size} points")
    return np.array([_number(word, section) for word in words])
