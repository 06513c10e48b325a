"""The model and the snapshot that come with the package."""

from __future__ import annotations

from pathlib import Path

from malax.errors import FileError

_DATA = Path(__file__).resolve().parent / "data"


def model() -> Path:
    """The shipped model of aluminium."""
    return _existing("al.malax")


def snapshot() -> Path:
    """The shipped snapshot of aluminium, which the model has not seen."""
    return _existing("al_demo.h5")


def _existing(name: str) -> Path:
    path = _DATA / name
    if not path.is_file():
        raise FileError(f"{path} is missing from this installation of malax; install it again")
    return path
