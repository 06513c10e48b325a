"""Differences of free energies between structures, with error bars.

What the members of an ensemble get wrong alike for two structures drops out of their difference, so its
standard deviation is that of the members' own differences (`malax.ensemble.Spread.minus`), not the root of
the sum of two squares. Here from what is printed and kept in tables, so that a series can be taken up again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from malax.ensemble import deviation


def minus(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[float, float | None] | None:
    """F per atom of ``a`` minus that of ``b`` and its standard deviation (None of single networks), in eV.

    Both as `malax.result.Result.as_json` gives them; None if one has no free energy.
    """
    free = [one["energies"].get("total_free") for one in (a, b)]
    if None in free:
        return None
    value = free[0] / a["n_atoms"] - free[1] / b["n_atoms"]
    members = [_members(one) for one in (a, b)]
    if members[0] is None or members[1] is None or len(members[0]) != len(members[1]):
        return value, None
    known = a["spread"].get("calibration") or {"differences": {}}
    factor = known["differences"].get("total_free", 1.0)
    return value, factor * deviation(members[0] / a["n_atoms"] - members[1] / b["n_atoms"])


def _members(one: Mapping[str, Any]) -> np.ndarray | None:
    spread = one.get("spread") or {}
    values = spread.get("energies", {}).get("total_free")
    return None if values is None else np.array(values)


def against_first(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each result minus the first one of its temperature, eV/atom; empty for single networks."""
    table = []
    firsts: dict[float, Mapping[str, Any]] = {}
    for one in results:
        first = firsts.setdefault(one["temperature"], one)
        found = None if first is one else minus(one, first)
        if found is not None and found[1] is not None:
            table.append(
                {
                    "structure": one["structure"],
                    "minus": first["structure"],
                    "temperature": one["temperature"],
                    "total_free_per_atom": found[0],
                    "total_free_std_per_atom": found[1],
                }
            )
    return table
