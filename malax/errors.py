"""Typed errors. A message is one line: what is wrong, where, and what would be right."""


class MalaxError(Exception):
    """Base class of every error that malax raises on purpose."""

    exit_code = 1


class InputError(MalaxError, ValueError):
    """The user asked for something that cannot be right (exit code 2 of the command line)."""

    exit_code = 2


class FileError(InputError):
    """A file is missing, truncated, of another kind, or would be overwritten unasked."""


class MissingPeerError(InputError):
    """Something that was asked for (LAMMPS, CUDA, Horovod, MPI, an ISA level) cannot be had here."""


class MachineError(MalaxError, RuntimeError):
    """The machine failed: disk full, out of memory, a peer died (exit code 1)."""


class Stopped(MalaxError):
    """A run was asked to end early and has saved what it had; the same command goes on (exit code 75)."""

    exit_code = 75
