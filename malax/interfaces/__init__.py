"""Doors to other programs. Leaves: nothing of malax imports them."""

from __future__ import annotations

import importlib
from types import ModuleType

_SUBMODULES = ("ase", "mala", "quantum_espresso")


def __getattr__(name: str) -> ModuleType:
    # malax.interfaces.ase without an import of its own
    if name in _SUBMODULES:
        return importlib.import_module(f"malax.interfaces.{name}")
    raise AttributeError(f"module 'malax.interfaces' has no attribute {name!r}")
