"""Writing without losing: a file appears under its final name only when it is whole."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from malax.errors import FileError, MachineError


@contextmanager
def atomic_path(path: str | os.PathLike[str], overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it onto ``path`` when the block ends well.

    On any exception (a full disk, an interrupt) the temporary file is removed and what stood under
    ``path`` before is untouched.

    Raises
    ------
    FileError
        the folder does not exist, or the file exists and ``overwrite`` is false.
    MachineError
        the disk is full or the folder cannot be written.
    """
    final = Path(path)
    check_output(final, overwrite)
    temporary = final.with_name(f".{final.name}.{os.getpid()}.part")
    try:
        yield temporary
        os.replace(temporary, final)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        reason = "the disk is full" if error.errno == errno.ENOSPC else (error.strerror or str(error))
        raise MachineError(f"cannot write {final}: {reason}") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_output(path: str | os.PathLike[str], overwrite: bool) -> None:
    """Refuse early what could not be written late: missing folder, or an existing file."""
    final = Path(path)
    if not final.parent.is_dir():
        raise FileError(f"cannot write {final}: the folder {final.parent} does not exist")
    if final.exists() and not overwrite:
        raise FileError(f"{final} exists; give --overwrite or another name")


def sha256(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
