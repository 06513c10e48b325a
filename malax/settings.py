"""What every configuration model is built from: strict, frozen models; paths; lists of files.

A model stands beside what it configures (`malax.network.NetworkConfig`, ...); `malax.config` reads
YAML into them. Relative paths count from the folder of the configuration file, which `malax.config`
passes as validation context; without one they count from the working folder.
"""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationInfo


class Settings(BaseModel):
    """Base of all configuration models: an unknown key is an error, and values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def _folder(info: ValidationInfo) -> Path:
    return Path((info.context or {}).get("folder", "."))


def _resolved(path: Path, info: ValidationInfo) -> Path:
    return (_folder(info) / path.expanduser()).resolve()


def _expanded(value: Any, info: ValidationInfo) -> Any:
    """Patterns to files: each pattern sorted, in the order of the patterns, every file once."""
    patterns = [value] if isinstance(value, str) else value
    if not isinstance(patterns, list | tuple) or not all(isinstance(p, str | Path) for p in patterns):
        raise ValueError("a list of files or patterns such as data/a*.h5 is needed")
    files: dict[Path, None] = {}
    for pattern in map(str, patterns):
        excluded = pattern.startswith("!")
        found = _matches(pattern.removeprefix("!"), _folder(info))
        if not found:
            raise ValueError(f"no file matches {pattern!r} in {_folder(info).absolute()}")
        if not excluded:
            files.update(dict.fromkeys(found))
            continue
        if not any(path in files for path in found):
            raise ValueError(f"{pattern!r} excludes none of the files named before it")
        for path in found:
            files.pop(path, None)
    return tuple(str(path) for path in files)  # as JSON has them


def _matches(pattern: str, folder: Path) -> list[Path]:
    full = folder.absolute() / Path(pattern).expanduser()
    if full.is_file():  # a name that happens to contain [ or *
        return [full.resolve()]
    return sorted(Path(p).resolve() for p in glob.glob(str(full), recursive=True) if Path(p).is_file())


FilePath = Annotated[Path, AfterValidator(_resolved)]
"""A path of the configuration, made absolute."""

FileList = Annotated[tuple[Path, ...], BeforeValidator(_expanded)]
"""Files by name or pattern (``*``, ``?``, ``[0-7]``, ``**``); ``!pattern`` takes some away again."""
