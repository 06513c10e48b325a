"""What this process may still take of its machine: memory of the node, of its control group, of its limits.

Only Linux says all of this; elsewhere what is not known is None, and nothing is refused for it.
"""

from __future__ import annotations

import os
import platform
import resource
from pathlib import Path

from malax.comm import Comm


def peak_resident() -> int:
    """The most bytes of memory that this process had at any time."""
    scale = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def resident(root: Path = Path("/")) -> int:
    """Bytes of memory that this process has now."""
    try:
        return int((root / "proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return peak_resident()


def seconds_since_start(root: Path = Path("/")) -> float:
    """Seconds that this process exists, with the starting of Python and all that it has loaded."""
    try:
        # the name of the program, in brackets, may hold anything
        fields = (root / "proc/self/stat").read_text().rpartition(")")[2].split()
        uptime = float((root / "proc/uptime").read_text().split()[0])
        return uptime - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return sum(os.times()[:2])


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that all processes of this node or control group together may take in addition to what they have.

    The least of the node's MemAvailable and of what is left of each limit of our control groups (version 1
    or 2, those above ours included); what a group holds of files that could be dropped counts as free.
    """
    found = [_entry(root / "proc/meminfo", "MemAvailable:", 1024), *_groups(root)]
    known = [value for value in found if value is not None]
    return min(known) if known else None


def address_space(root: Path = Path("/")) -> int | None:
    """Bytes of addresses that this process may take in addition (ulimit -v); None without a limit."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return None
    used = _entry(root / "proc/self/status", "VmSize:", 1024)
    return None if used is None else max(0, limit - used)


def ranks_per_node(comm: Comm) -> list[list[int]]:
    """The ranks on each node, by the nodes' names; the same on all ranks; collective."""
    names = comm.bcast(comm.gather(platform.node()))
    nodes: dict[str, list[int]] = {}
    for rank, name in enumerate(names):
        nodes.setdefault(name, []).append(rank)
    return list(nodes.values())


def _groups(root: Path) -> list[int | None]:
    """What is left of the limit of each control group that this process is in."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            top, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        here = top / path.lstrip("/")
        # in a container the path may be the host's: the group at the top is then ours
        for folder in [here, *here.parents]:
            found.append(_left(folder, *names))
            if folder == top:
                break
    return found


def _left(folder: Path, limit: str, usage: str, droppable: str) -> int | None:
    try:
        most = int((folder / limit).read_text())  # "max" is no number: no limit
        used = int((folder / usage).read_text())
    except (OSError, ValueError):
        return None
    return max(0, most - used + (_entry(folder / "memory.stat", droppable, 1) or 0))


def _entry(path: Path, name: str, unit: int) -> int | None:
    """The number behind a name in a file of such lines, times ``unit``; None if it is not there."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    values = [line.split()[1] for line in lines if line.split()[:1] == [name]]
    return int(values[0]) * unit if values and values[0].isdigit() else None
