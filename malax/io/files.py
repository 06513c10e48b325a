"""Writing without losing: a file appears under its final name only when it is whole."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from malax.errors import FileError, MachineError

_ABANDONED = 3600.0
"""Seconds without a change after which a temporary file of another host or container is nobody's."""

_TEMPORARY = re.compile(r"\.(.+)\.([^.]+)\.(\d+)\.part", re.DOTALL)
"""Name of a temporary file: the output, the place, the process."""

_found: dict[Path, dict[str, list[Path]]] = {}
"""What `_temporary_files` found in folders in which this process has written."""


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
    temporary = temporary_beside(final)
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


def temporary_beside(final: Path) -> Path:
    """The name under which this process writes what becomes ``final``; what dead processes left goes.

    The name carries `place` and process, so that two runs that write the same output, whatever that is good
    for, never mix. A folder is searched for what was left when this process first writes there: not for each
    output of a long series.
    """
    folder = final.parent.absolute()
    if folder not in _found:
        _found[folder] = _temporary_files(folder)
    _remove_abandoned(_found[folder].pop(final.name, []))
    return final.with_name(f".{final.name}.{place()}.{os.getpid()}.part")


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files in a folder that nobody writes any more.

    That is what a process of this `place` left that lives no more, and what one of another place has not
    touched for `_ABANDONED` seconds. What cannot be removed stays.
    """
    for files in _temporary_files(folder).values():
        _remove_abandoned(files)


def _temporary_files(folder: Path) -> dict[str, list[Path]]:
    """Those that are there, by the outputs they were to become."""
    found: dict[str, list[Path]] = {}
    for path in folder.glob(".*.part"):
        if (name := _TEMPORARY.fullmatch(path.name)) is not None:
            found.setdefault(name[1], []).append(path)
    return found


def _remove_abandoned(files: list[Path]) -> None:
    here = place()
    for path in files:
        found = _TEMPORARY.fullmatch(path.name)
        if found is not None and _is_abandoned(path, found[2] == here, int(found[3])):
            with suppress(OSError):  # another run may be removing it, too
                path.unlink()


def place() -> str:
    """The host and the set of processes, among which a process is known by its number, as one word.

    Containers may have the host's name and yet processes of their own: Linux numbers such sets.
    """
    host = socket.gethostname().replace(".", "-")
    try:
        return f"{host}-{re.sub(r'[^0-9]', '', os.readlink('/proc/self/ns/pid'))}"
    except OSError:  # not on Linux, or hidden
        return host


def _is_abandoned(path: Path, is_ours: bool, process: int) -> bool:
    try:
        if not is_ours:
            return time.time() - path.stat().st_mtime > _ABANDONED
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:  # alive but another user's, or the file has gone
        return False
    return False


def prepare_folder(folder: Path, names: Iterable[str], overwrite: bool) -> None:
    """Make a folder for files of these names; refuse now what could not be written after the work.

    Raises
    ------
    FileError
        the folder cannot be made, or one of the files stands there and is not to be replaced.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"cannot make the folder {folder}: {error.strerror}") from error
    for name in names:
        check_output(folder / name, overwrite)


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
