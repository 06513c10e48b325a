"""Models that become members of one ensemble: may they, and what is it then?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from malax.errors import InputError
from malax.model_file import ModelInfo

if TYPE_CHECKING:
    from malax.emulator import Emulator


def combined_info(emulators: Sequence[Emulator]) -> ModelInfo:
    """What the ensemble of these models is for and how it was made; see `Emulator.combine`.

    Raises
    ------
    InputError
        descriptor, energy grid, kernel, elements or pseudopotentials differ.
    """
    first = emulators[0]
    for other in emulators[1:]:
        _check_alike(first, other)
    seen = {(s.sha256, s.role): s for one in emulators for s in one.info.training_snapshots}
    changes = {
        "training_snapshots": tuple(seen.values()),
        "training_temperatures": _union(one.info.training_temperatures for one in emulators),
        "training_volumes": _union(one.info.training_volumes for one in emulators),
        "complete_to": min(one.info.complete_to for one in emulators),
        "test_errors": {},
    }
    return first.info.model_copy(update=changes)


def _check_alike(first: Emulator, other: Emulator) -> None:
    """InputError if two models cannot be members of one ensemble."""
    for name in ("elements", "valence", "descriptor", "kernel", "sigma", "xc"):
        a, b = getattr(first.info, name), getattr(other.info, name)
        if a != b:
            raise InputError(f"models of one ensemble must have the same {name}, got {a} and {b}")
    if not np.array_equal(first.energy_grid, other.energy_grid):
        raise InputError("models of one ensemble must have the same energy grid")
    ours, theirs = ({e: p.sha256 for e, p in m.pseudopotentials.items()} for m in (first, other))
    if ours != theirs:
        raise InputError("models of one ensemble must have the same pseudopotentials")


def _union(parts: Iterable[Sequence[float]]) -> tuple[float, ...]:
    return tuple(sorted({value for part in parts for value in part}))
