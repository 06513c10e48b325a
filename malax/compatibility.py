"""Which snapshots may be learned together."""

from __future__ import annotations

from collections.abc import Sequence

from malax.errors import InputError
from malax.io.snapshot import Snapshot


def check_compatible(snapshots: Sequence[Snapshot]) -> None:
    """Refuse snapshots that one network cannot learn together.

    Raises
    ------
    InputError
        two snapshots differ in what they must share (both are named), or are the same file.
    """
    first = snapshots[0]
    for other in snapshots[1:]:
        for what, of_first, of_other in (
            ("energy grid", _axis(first), _axis(other)),
            ("kernel", first.kernel, other.kernel),
            ("sigma", f"{first.sigma:.6g} eV", f"{other.sigma:.6g} eV"),
            ("elements", _elements(first), _elements(other)),
            ("pseudopotentials", _pseudopotentials(first), _pseudopotentials(other)),
            ("functional", first.xc, other.xc),
        ):
            if of_first != of_other:
                raise InputError(
                    f"snapshots {first.name} and {other.name} differ in their {what} "
                    f"({of_first}; {of_other}): train on snapshots that share it"
                )
    for snapshot in snapshots:
        if snapshot.complete_to < snapshot.energy_grid[0]:
            raise InputError(f"the LDOS of snapshot {snapshot.name} is complete at none of its energies")


def check_distinct(snapshots: Sequence[Snapshot]) -> None:
    """Refuse two snapshots of one name, or one snapshot under two (a test must not be trained on).

    Raises
    ------
    InputError
        naming both.
    """
    seen: dict[str, Snapshot] = {}
    for snapshot in snapshots:
        for key, what in ((snapshot.name, "name"), (snapshot.sha256, "content")):
            if key in seen:
                raise InputError(
                    f"{seen[key].path} and {snapshot.path} have the same {what}: use one of them"
                )
            seen[key] = snapshot


def _axis(s: Snapshot) -> str:
    return f"{len(s.energy_grid)} energies from {s.energy_grid[0]:.6g} to {s.energy_grid[-1]:.6g} eV"


def _elements(s: Snapshot) -> str:
    return " ".join(sorted(set(s.atoms.get_chemical_symbols())))


def _pseudopotentials(s: Snapshot) -> str:
    used = sorted(set(s.atoms.get_chemical_symbols()))
    return ", ".join(f"{e} {s.pseudopotentials[e].sha256[:12]}" for e in used)
