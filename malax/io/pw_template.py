"""Inputs of pw.x that exist already, read as the template of a recipe.

A namelist of Fortran is ``&name  key = value, key(2) = value ! comment  /``; the cards after the namelists
begin with a word of their own. Only what a recipe can use is taken: namelists, species, k-points.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from malax.errors import FileError
from malax.io.pw_input import Value
from malax.units import BOLTZMANN, RYDBERG

_CARDS = ("ATOMIC_SPECIES", "ATOMIC_POSITIONS", "K_POINTS", "CELL_PARAMETERS", "CONSTRAINTS", "OCCUPATIONS",
          "ATOMIC_FORCES", "ATOMIC_VELOCITIES", "ADDITIONAL_K_POINTS", "SOLVENTS", "HUBBARD")  # fmt: skip
_PAIR = re.compile(r"([A-Za-z]\w*(?:\s*\(\s*[\d\s,]+\))?)\s*=\s*('(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|[^\s,]+)")


@dataclass(frozen=True)
class Template:
    """What an input of pw.x says.

    Attributes
    ----------
    namelists : name -> key -> value, names and keys in small letters
    pseudo_files : element or label -> file name
    pseudo_dir : where they are, as the input says it
    kpoints : mesh; (1, 1, 1) for Gamma; None if the input lists points or shifts the mesh
    cards : the cards that stand in the file
    """

    namelists: dict[str, dict[str, Value]]
    pseudo_files: dict[str, str]
    pseudo_dir: Path
    kpoints: tuple[int, int, int] | None
    cards: tuple[str, ...]

    @property
    def temperature(self) -> float | None:
        """K, of Fermi-Dirac smearing; None with another or without a width."""
        system = self.namelists.get("system", {})
        smearing = str(system.get("smearing", "")).lower()
        width = system.get("degauss")
        if smearing not in ("fermi-dirac", "f-d", "fd") or not isinstance(width, int | float):
            return None
        return round(float(width) * RYDBERG / BOLTZMANN, 3)


def read_template(path: str | os.PathLike[str]) -> Template:
    """Read an input of pw.x. FileError if it is missing or is none, naming the line."""
    path = Path(path)
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"cannot read the pw.x input {path}: {error}") from error
    namelists: dict[str, dict[str, Value]] = {}
    cards: dict[str, list[str]] = {}
    inside: str | None = None
    card: str | None = None
    for number, raw in enumerate(lines, 1):
        line = _without_comment(raw)
        first = line.split()[0] if line.split() else ""
        if inside is None and first.startswith("&"):
            inside, card = first[1:].lower(), None
            namelists[inside] = {}
            line = line.split(None, 1)[1] if len(line.split(None, 1)) > 1 else ""
        if inside is not None:
            body, ends = _until_slash(line)
            rest = _PAIR.sub("", body).replace(",", " ").split()
            if rest:
                raise FileError(f"{path}, line {number}: {rest[0]!r} is not key = value")
            for key, value in _PAIR.findall(body):
                namelists[inside][re.sub(r"\s", "", key).lower()] = _value(value)
            inside = None if ends else inside
        elif first.upper() in _CARDS:
            card = first.upper()
            cards[card] = [line]
        elif card is not None and line.strip():
            cards[card].append(line)
    if inside is not None or "system" not in namelists:
        raise FileError(f"{path} is not an input of pw.x: namelist &{inside or 'system'} is missing or open")
    control = namelists.get("control", {})
    species = [row.split() for row in cards.get("ATOMIC_SPECIES", [])[1:]]
    return Template(
        namelists=namelists,
        pseudo_files={row[0]: row[2] for row in species if len(row) >= 3},
        pseudo_dir=Path(str(control.get("pseudo_dir", "."))),
        kpoints=_kpoints(cards.get("K_POINTS", [])),
        cards=tuple(cards),
    )


def _without_comment(line: str) -> str:
    """A line up to ! (or # at its beginning), not in quotes."""
    if line.lstrip().startswith("#"):
        return ""
    quote = ""
    for i, c in enumerate(line):
        if c in "'\"" and quote in ("", c):
            quote = "" if quote else c
        elif c == "!" and not quote:
            return line[:i]
    return line


def _until_slash(line: str) -> tuple[str, bool]:
    """A namelist's line up to the / that ends it, if one stands outside of quotes and numbers."""
    quote = ""
    for i, c in enumerate(line):
        if c in "'\"" and quote in ("", c):
            quote = "" if quote else c
        elif c == "/" and not quote:
            return line[:i], True
    return line, False


def _value(text: str) -> Value:
    if text[0] in "'\"":
        return text[1:-1].replace(text[0] * 2, text[0])
    small = text.lower()
    if small in (".true.", ".t.", "t", "true"):
        return True
    if small in (".false.", ".f.", "f", "false"):
        return False
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(small.replace("d", "e"))
    except ValueError:
        return text


def _kpoints(card: list[str]) -> tuple[int, int, int] | None:
    if not card:
        return None
    kind = (card[0].split()[1:] or ["tpiba"])[0].strip("{}()").lower()
    if kind == "gamma":
        return (1, 1, 1)
    if kind != "automatic" or len(card) < 2:
        return None
    numbers = [int(word) for word in card[1].split()]
    nx, ny, nz = numbers[:3]
    return None if any(numbers[3:6]) else (nx, ny, nz)
