"""Job arrays for a scheduler: one task per structure, each of which runs ``malax generate ... --only NAME``.

So what a job does is what the command does: it takes no structure that has its snapshot or that another job
has, resumes what was interrupted, and keeps status.csv. The array may be submitted again.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from malax.errors import InputError
from malax.io.files import atomic_path
from malax.settings import Settings

Scheduler = Literal["slurm", "pbs"]

_ARRAY = {"slurm": "#SBATCH --array=1-{n}{limit}", "pbs": "#PBS -J 1-{n}{limit}"}
_INDEX = {"slurm": "SLURM_ARRAY_TASK_ID", "pbs": "PBS_ARRAY_INDEX"}
_SUBMIT = {"slurm": "sbatch", "pbs": "qsub"}


class JobSettings(Settings):
    """What a job script holds besides malax's own lines."""

    header: tuple[str, ...] = ()
    """Lines of directives, e.g. ``#SBATCH --ntasks=128``, ``#PBS -l walltime=02:00:00``."""
    setup: tuple[str, ...] = ()
    """Shell lines before malax starts, e.g. ``module load quantum-espresso``."""
    at_once: int | None = None
    """Most jobs of the array that run at a time; null is the scheduler's choice."""


def write_array(
    recipe: Path, names: Sequence[str], folder: Path, scheduler: Scheduler, settings: JobSettings
) -> tuple[Path, str]:
    """Write ``<scheduler>.sh`` and ``names.txt`` into a folder; the script and how to submit it.

    Parameters
    ----------
    recipe : the configuration file
    names : structures that are not done yet

    InputError if nothing is left to do; FileError, MachineError: see `malax.io.files.atomic_path`.
    """
    if not names:
        raise InputError(f"{recipe}: every structure has its snapshot; there is nothing to submit")
    listing, script = folder / "names.txt", folder / f"{scheduler}.sh"
    with atomic_path(listing) as temporary:
        temporary.write_text("\n".join(names) + "\n")
    limit = "" if settings.at_once is None else f"%{settings.at_once}"
    lines = [
        "#!/usr/bin/env bash",
        _ARRAY[scheduler].format(n=len(names), limit=limit),
        *settings.header,
        "set -euo pipefail",
        *settings.setup,
        f'name=$(sed -n "${{{_INDEX[scheduler]}}}p" {shlex.quote(str(listing.resolve()))})',
        # malax itself is one process; the tasks of the job are for pw.x (srun -n ..., mpiexec -n ...)
        f"env -u SLURM_NTASKS {shlex.quote(sys.executable)} -m malax.cli generate "
        f'{shlex.quote(str(recipe.resolve()))} --only "$name"',
    ]
    with atomic_path(script) as temporary:
        temporary.write_text("\n".join(lines) + "\n")
    return script, f"{_SUBMIT[scheduler]} {script}"
