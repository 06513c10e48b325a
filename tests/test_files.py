"""Temporary files: one per process, and what dead processes left goes."""

from __future__ import annotations

import os
import socket
import subprocess
import time

import pytest

from malax.errors import MachineError
from malax.io.files import atomic_path, temporary_beside


def test_what_dead_processes_left_goes_and_what_others_write_stays(tmp_path):
    host = socket.gethostname().split(".")[0]
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


@pytest.mark.parametrize("name", ["o.h5", "a[1]*?.csv"])
def test_a_failed_write_leaves_what_was_there(tmp_path, name):
    (tmp_path / name).write_text("before")
    with pytest.raises(MachineError, match="the disk is full"), atomic_path(tmp_path / name) as temporary:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")
    assert [p.name for p in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "before"
