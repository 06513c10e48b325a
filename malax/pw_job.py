"""One structure's folder, in which pw.x and pp.x run; what was interrupted there can be taken up again."""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from malax.errors import FileError, InputError, MachineError, MissingPeerError
from malax.io.files import atomic_path, sha256
from malax.io.harvest import XML_NAME

_MPI_VARIABLES = ("PMI_", "PMIX_", "OMPI_", "HYDI_", "HYDRA_", "MPIR_", "MPI_LOCAL", "PALS_")
"""A program started by a rank of a parallel job must not take itself for one of its ranks."""

Watch = Callable[[int, float], None]
HASHES = "upf.sha256"
"""What the pseudopotentials of a run were, in the form of sha256sum."""
LOOK = 1.0
"""Seconds between looks at the output of pw.x."""
_ACCURACY = re.compile(r"estimated scf accuracy\s+<\s+(\S+)\s+Ry")


def find_program(command: str, where: str) -> None:
    """MissingPeerError unless the program that a command starts is there; InputError if it is none."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise InputError(f"{where}: {command!r} is not a command line: {error}") from error
    if not words or shutil.which(words[0]) is None:
        name = words[0] if words else command
        raise MissingPeerError(
            f"{where}: {name!r} was not found; install Quantum ESPRESSO (apt-get install quantum-espresso) "
            "or give its path"
        )


class Job:
    """The folder of one structure, locked while in use: ``with Job(folder) as job``.

    ``job`` is None if another process has it. The lock ends with the process, however that ends.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock: int | None = None

    def __enter__(self) -> Job | None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
        except OSError as error:
            raise MachineError(f"cannot write into {self.folder}: {error.strerror}") from error
        for _ in range(4):
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return self
            except BlockingIOError:
                time.sleep(0.02)  # somebody may just be looking (malax.status.is_locked)
        self._release()
        return None

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def xml(self) -> Path | None:
        """The XML of the run in this folder, if there is one."""
        return next(iter(sorted(self.folder.glob(f"tmp/*.save/{XML_NAME}"))), None)

    @property
    def iterations(self) -> int | None:
        """Iterations of the self-consistent cycle that pw.x says it took."""
        try:
            text = (self.folder / "pw.out").read_text(errors="replace")
        except OSError:
            return None
        found = re.findall(r"convergence has been achieved in\s+(\d+) iterations", text)
        return int(found[-1]) if found else None

    def pw(
        self, command: str, text: str, watch: Watch | None = None, needs_wavefunctions: bool = True
    ) -> None:
        """Run pw.x on this input, unless it has finished here on the same and its wavefunctions are there.

        The same: the input's text, and the pseudopotentials in the folder by their SHA-256.
        FileError with QE's own words if it fails. ``watch`` is called with the iteration and the estimated
        accuracy (Ry) whenever pw.x has done one.
        """
        input_file, hashes = self.folder / "pw.in", self.hashes(text)
        self._restore_xml()
        if self._finished(input_file, text, needs_wavefunctions):
            return
        # what an interrupted run left behind must not pass for results
        shutil.rmtree(self.folder / "tmp", ignore_errors=True)
        (self.folder / "pw.out").unlink(missing_ok=True)
        for path in [*self.folder.glob("*_ldos.cube"), *self.folder.glob("ldos.part*")]:
            path.unlink()
        for path, content in ((self.folder / HASHES, hashes), (input_file, text)):
            with atomic_path(path) as temporary:
                temporary.write_text(content)
        self._call(command, "pw.in", "pw.out", watch)

    def hashes(self, text: str) -> str:
        """SHA-256 and name of each pseudopotential in the folder that an input names, a line each."""
        words = set(text.split())
        paths = sorted(path for path in self.folder.iterdir() if path.name in words and path.is_file())
        return "".join(f"{sha256(path)}  {path.name}\n" for path in paths)

    def _finished(self, input_file: Path, text: str, needs_wavefunctions: bool) -> bool:
        output = self.folder / "pw.out"
        if self.xml is None or not input_file.is_file() or not output.is_file():
            return False
        kept = self.folder / HASHES  # runs of before malax kept it have none, and count
        if kept.is_file() and kept.read_text() != self.hashes(text):
            return False
        wavefunctions = not needs_wavefunctions or any(self.xml.parent.glob("wfc*.*"))
        return (
            wavefunctions
            and input_file.read_text() == text
            and "JOB DONE" in output.read_text(errors="replace")
        )

    def pp(self, command: str, text: str, change_xml: bool = True) -> None:
        """Run pp.x on this input. FileError with QE's own words if it fails.

        pp.x up to 7.1 takes the kernel of the LDOS from the smearing in the XML: ``change_xml`` gives it one
        that says gaussian, and puts the original back.
        """
        (self.folder / "pp_ldos.in").write_text(text)
        xml = self.xml
        if xml is None:
            raise FileError(f"{self.folder} has no {XML_NAME}: did pw.x finish?")
        if not change_xml:
            self._call(command, "pp_ldos.in", "pp_ldos.out")
            return
        changed = re.sub(
            r"(<smearing[^>]*>)\s*(?:fd|fermi-dirac|f-d)\s*(</smearing>)", r"\1gaussian\2", xml.read_text()
        )
        shutil.copyfile(xml, _saved(xml))
        try:
            with atomic_path(xml) as temporary:
                temporary.write_text(changed)
            self._call(command, "pp_ldos.in", "pp_ldos.out")
        finally:
            self._restore_xml()

    def _restore_xml(self) -> None:
        """Put back the XML of pw.x that was saved before pp.x ran."""
        if self.xml is not None and _saved(self.xml).is_file():
            os.replace(_saved(self.xml), self.xml)

    def clean(self, keep_wavefunctions: bool) -> None:
        """Remove what the snapshot holds already and what is large: the LDOS, wavefunctions."""
        for path in self.folder.glob("ldos.part*"):
            path.unlink()
        if not keep_wavefunctions:
            for path in [*self.folder.glob("tmp/*.wfc*"), *self.folder.glob("tmp/*.save/wfc*")]:
                path.unlink()

    def _call(self, command: str, input_name: str, output_name: str, watch: Watch | None = None) -> None:
        """Run a program in the folder; FileError with its own error line unless it says JOB DONE."""
        words = [word.replace("{input}", input_name) for word in shlex.split(command)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith(_MPI_VARIABLES)}
        environment.setdefault("OMP_NUM_THREADS", "1")
        output = self.folder / output_name
        try:
            with open(output, "w") as file:
                process = subprocess.Popen(
                    words, cwd=self.folder, env=environment, stdin=subprocess.DEVNULL,
                    stdout=file, stderr=subprocess.STDOUT,
                )  # fmt: skip
                try:
                    code = _wait(process, output, watch)
                finally:
                    # an interrupt ends what it interrupted: the next try finds no half-written files growing
                    if process.poll() is None:
                        process.terminate()
                        process.wait()
        except OSError as error:
            raise MachineError(f"cannot run {words[0]} in {self.folder}: {error.strerror}") from error
        text = output.read_text(errors="replace")
        if code != 0 or "JOB DONE" not in text:
            raise FileError(f"{words[0]} failed in {self.folder}: {error_line(text, code)}")


def _wait(process: subprocess.Popen[bytes], output: Path, watch: Watch | None) -> int:
    """The exit status; ``watch`` hears of each iteration meanwhile."""
    if watch is None:
        return process.wait()
    told = 0
    while True:
        try:
            code = process.wait(timeout=LOOK)
        except subprocess.TimeoutExpired:
            code = None
        found = _ACCURACY.findall(output.read_text(errors="replace"))
        if len(found) > told:
            told = len(found)
            watch(told, float(found[-1].upper().replace("D", "E")))
        if code is not None:
            return code


def error_line(text: str, code: int) -> str:
    """QE's own words about why it stopped, on one line."""
    boxed = re.search(r"%{10,}\s*\n(.*?)\n\s*%{10,}", text, re.DOTALL)
    if boxed:
        return " ".join(boxed.group(1).split())
    for line in text.splitlines():
        if "convergence NOT achieved" in line:
            return line.strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (
        f"exit status {code}, the output ends with: {lines[-1]!r}"
        if lines
        else f"exit status {code}, no output"
    )


def _saved(xml: Path) -> Path:
    return xml.with_name(xml.name + ".pw")
