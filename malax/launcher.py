"""What the program that started the processes says of them, in environment variables; no MPI is needed."""

from __future__ import annotations

import os
from collections.abc import Mapping

from malax.errors import InputError

TASK_COUNTS = (
    "PMI_SIZE",
    "OMPI_COMM_WORLD_SIZE",
    "MV2_COMM_WORLD_SIZE",
    "MPI_LOCALNRANKS",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_NTASKS",
)
"""Environment variables in which launchers and schedulers say how many tasks they started."""

TASK_MARKS = ("PMIX_RANK", "PALS_RANKID")
"""Variables of launchers that give a rank but no count."""


def launched_tasks(environment: Mapping[str, str] | None = None) -> tuple[int, str | None]:
    """How many tasks a launcher or scheduler says it started, and the variable that says so."""
    environment = os.environ if environment is None else environment
    counts = [(int(environment[name]), name) for name in TASK_COUNTS if environment.get(name, "").isdigit()]
    return max(counts, default=(1, None), key=lambda pair: pair[0])


def was_launched() -> bool:
    """Whether a launcher started this process, perhaps alone."""
    return launched_tasks()[0] > 1 or any(name in os.environ for name in TASK_MARKS)


def check_library(library: str) -> None:
    """Refuse an MPI library that Open MPI's mpirun cannot start; asked before MPI is initialised.

    ``library`` is what MPI_Get_library_version says. Some (MPICH 3) come up as communicators of one there,
    others (MPICH 5) end the process with an internal error.

    Raises
    ------
    InputError
        Open MPI's launcher started this process, and the library is another.
    """
    tasks = os.environ.get("OMPI_COMM_WORLD_SIZE")
    if tasks is not None and "Open MPI" not in library:
        raise InputError(
            f"OMPI_COMM_WORLD_SIZE={tasks} (Open MPI's mpirun) but mpi4py uses {library}, which that program "
            "cannot start: its tasks would not find each other. Start with the mpiexec (or srun --mpi) of "
            "the MPI that mpi4py uses, or build mpi4py against Open MPI"
        )


def check_size(size: int) -> None:
    """Refuse a communicator of one where several tasks were started.

    Raises
    ------
    InputError
        each of the tasks would compute everything.
    """
    tasks, variable = launched_tasks()
    if size == 1 and tasks > 1:
        raise InputError(
            f"{variable}={tasks} but the MPI communicator has size 1: {tasks} copies of one job. Start with "
            "the mpiexec (or srun --mpi) of the MPI that mpi4py uses; for one task on purpose unset "
            f"{variable}"
        )
