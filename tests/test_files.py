"""Temporary files: one per process, and what dead processes left goes."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

import pytest

from malax.errors import MachineError
from malax.io.files import atomic_path, place, remove_abandoned, temporary_beside


def test_what_dead_processes_left_goes_and_what_others_write_stays(tmp_path):
    host = place()
    ended = subprocess.Popen(["true"])
    ended.wait()
    names = {
        "dead": f".o.h5.{host}.{ended.pid}.part",
        "alive": f".o.h5.{host}.{os.getppid()}.part",
        "elsewhere": f".o.h5.elsewhere-{host}.{ended.pid}.part",
        "old": f".o.h5.old-{host}.{ended.pid}.part",
        "other output": f".other.h5.{host}.{ended.pid}.part",
        "other name": ".o.h5.notes.part",
    }
    for name in names.values():
        (tmp_path / name).touch()
    two_hours_ago = time.time() - 7200
    os.utime(tmp_path / names["old"], (two_hours_ago, two_hours_ago))
    mine = temporary_beside(tmp_path / "o.h5")
    assert mine.name == f".o.h5.{host}.{os.getpid()}.part"
    assert {p.name for p in tmp_path.iterdir()} == {names[k] for k in names if k not in ("dead", "old")}
    remove_abandoned(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {names[k] for k in ("alive", "elsewhere", "other name")}


def test_containers_and_hosts_of_one_name_are_told_apart(tmp_path, monkeypatch):
    """No process of ours has the number, but it is not ours to ask: the file stays, and its name differs."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    monkeypatch.setattr(socket, "gethostname", lambda: "n1.a")
    monkeypatch.setattr(os, "readlink", lambda path: "pid:[42]")
    mine, left = temporary_beside(tmp_path / "o.h5").name, f".o.h5.n1-a-42.{ended.pid}.part"
    assert mine == f".o.h5.n1-a-42.{os.getpid()}.part"
    for i, (host, namespace) in enumerate((("n1.a", "pid:[43]"), ("n1.b", "pid:[42]"), ("n1", ""))):
        monkeypatch.setattr(socket, "gethostname", lambda host=host: host)
        monkeypatch.setattr(os, "readlink", lambda path, namespace=namespace: readlink(namespace))
        folder = tmp_path / str(i)  # each is searched once
        folder.mkdir()
        (folder / left).touch()
        assert temporary_beside(folder / "o.h5").name != mine
        assert (folder / left).exists()


def readlink(found: str) -> str:
    if not found:
        raise PermissionError
    return found


def test_a_series_searches_its_folder_once(tmp_path, monkeypatch):
    """Listing it for each of n outputs would take n^2 entries; all that was left goes all the same."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    for name in "ab":
        (tmp_path / f".{name}.h5.{place()}.{ended.pid}.part").touch()
    listed = []
    whole = Path.glob
    monkeypatch.setattr(Path, "glob", lambda *arguments: listed.append(arguments) or whole(*arguments))
    monkeypatch.chdir(tmp_path)
    for name in ("a.h5", "b.h5", "c.h5"):
        temporary_beside(Path(name))
        temporary_beside(tmp_path / name)
    assert len(listed) == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["o.h5", "a[1]*?.csv"])
def test_a_failed_write_leaves_what_was_there(tmp_path, name):
    (tmp_path / name).write_text("before")
    with pytest.raises(MachineError, match="the disk is full"), atomic_path(tmp_path / name) as temporary:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")
    assert [p.name for p in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "before"
