"""How tests start ranks: here and nowhere else.

``MALAX_MPIEXEC`` names the launcher with its options, say ``mpirun.openmpi --oversubscribe``; without it the
mpiexec beside this Python is taken, or the one on the PATH.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import malax

TESTS = Path(__file__).resolve().parent


def mpiexec() -> list[str]:
    """The launcher and its options."""
    if named := os.environ.get("MALAX_MPIEXEC"):
        return shlex.split(named)
    beside = Path(sys.executable).with_name("mpiexec")
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        pytest.skip("no mpiexec: pip install 'malax[mpi]', or load the MPI of mpi4py")
    return [found]


def environment() -> dict[str, str]:
    """What a launched Python needs: this malax, these tests, one thread, no trace of another launcher."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "PMI", "OMPI_"))}
    paths = [str(Path(malax.__file__).parents[1]), str(TESTS)]
    return {**kept, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def line(ranks: int, *command: object) -> list[str]:
    """The command line that runs Python over ``ranks``."""
    return [*mpiexec(), "-n", str(ranks), sys.executable, *map(str, command)]


def mpirun(ranks: int, *command: object, cwd: Path, timeout: float = 240) -> subprocess.CompletedProcess:
    """Run Python over ``ranks`` with this malax and these tests."""
    return subprocess.run(
        line(ranks, *command), capture_output=True, text=True, cwd=cwd, env=environment(), timeout=timeout
    )
