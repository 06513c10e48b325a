"""The LDOS by pp.x, a few energies at a time; cubes are converted while the next are computed, then deleted.

pp.x first writes a file per energy and then a cube per energy, together some 30 bytes per point and energy as
text. Run for `BATCH` energies at a time it leaves those of two batches on disk at most, besides 4 bytes per
point and energy of what is converted. What is converted counts when the run is resumed.
"""

from __future__ import annotations

import hashlib
import os
import re
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from malax.errors import FileError, MachineError
from malax.grid import Grid
from malax.io.cube_series import CubeSeries, ldos_values, title
from malax.io.pw_input import pp_input
from malax.long_run import read_json, write_json
from malax.pw_job import Job

BATCH = 16
"""Energies per run of pp.x. Each run reads the wavefunctions again, which is little beside their use."""
SPOOL, PROGRESS = "ldos.part", "ldos.part.json"


@dataclass
class LdosRun:
    """The LDOS of a finished pw.x run in a job's folder.

    Attributes
    ----------
    grid : the FFT grid of the run, which every cube must have
    energies : (E,) evenly spaced, eV
    sigma : of the Gaussian kernel, eV
    version : of QE: from 7.2 on pp.x is told to use a Gaussian, before that the XML is changed for it
    stride : keep every stride-th point in each direction
    keep : keep the cubes, as ``tmp.pp001_ldos.cube`` and so on
    threads : that convert cubes; None is one per core
    """

    job: Job
    command: str
    grid: Grid
    energies: np.ndarray
    sigma: float
    version: str
    stride: int = 1
    keep: bool = False
    threads: int | None = None

    def series(self) -> CubeSeries:
        """Run pp.x for all energies that have not been done before, and convert their cubes.

        Raises
        ------
        FileError
            pp.x fails, or leaves cubes that are truncated, missing, or of another grid.
        MachineError
            the disk cannot take the intermediate file.
        """
        n_batches = -(-len(self.energies) // BATCH)
        batches = np.array_split(np.arange(len(self.energies)), n_batches)
        done, sums = self._progress(n_batches)
        with self._open_spool() as spool, ThreadPoolExecutor(self.threads or os.cpu_count() or 1) as pool:
            waiting: tuple[int, list[Future[None]]] | None = None
            for number, members in enumerate(batches):
                if done[number]:
                    continue
                paths = self._run(number, members)
                if waiting is not None:  # converted meanwhile
                    self._finish(waiting, done, sums)
                jobs = [pool.submit(self._convert, i, paths[i], spool.fileno(), sums) for i in members]
                waiting = (number, jobs)
            if waiting is not None:
                self._finish(waiting, done, sums)
        series_file = open(self.job.folder / SPOOL, "rb")  # noqa: SIM115 - the series closes it
        return CubeSeries(self.energies, sums, self._shape, series_file)

    @property
    def _shape(self) -> tuple[int, int, int]:
        nx, ny, nz = (-(-n // self.stride) for n in self.grid.shape)
        return nx, ny, nz

    def _key(self) -> str:
        text = (self.job.folder / "pw.in").read_text()
        # the progress counts batches: of another size they are other energies
        said = [BATCH, self.energies.tolist(), self.sigma, self.stride, text, self.job.hashes(text)]
        return hashlib.sha256(repr(said).encode()).hexdigest()

    def _progress(self, n_batches: int) -> tuple[list[bool], np.ndarray]:
        """Which batches are in the intermediate file already, and the sums of their cubes."""
        found = read_json(self.job.folder / PROGRESS) or {}
        if found.get("key") == self._key() and (self.job.folder / SPOOL).is_file() and not self.keep:
            return list(found["done"]), np.array(found["sums"])
        (self.job.folder / SPOOL).unlink(missing_ok=True)
        return [False] * n_batches, np.zeros(len(self.energies))

    def _open_spool(self):  # noqa: ANN202 - a binary file
        try:
            (self.job.folder / SPOOL).touch()
            return open(self.job.folder / SPOOL, "rb+")
        except OSError as error:
            raise MachineError(f"cannot write into {self.job.folder}: {error.strerror}") from error

    def _run(self, number: int, members: np.ndarray) -> dict[int, Path]:
        """Run pp.x for a batch; its cubes by the index of their energy."""
        root, folder = f"batch{number:03d}_", self.job.folder
        for path in folder.glob(f"{root}*"):  # of an interrupted run
            path.unlink()
        gauss = knows_gauss(self.version)
        text = pp_input(self.energies[members], self.sigma, filplot=root, use_gauss_ldos=gauss)
        self.job.pp(self.command, text, change_xml=not gauss)
        for path in folder.glob(f"{root}*"):  # these hold the same numbers as the cubes
            if path.suffix != ".cube":
                path.unlink()
        step = self.energies[1] - self.energies[0]
        found = {}
        for path in folder.glob(f"{root}*.cube"):
            said = title(path)
            index = -1.0 if said is None else (said[0] - self.energies[0]) / step
            if round(index) not in members or abs(index - round(index)) > 0.02:
                raise FileError(f"{path}: its energy is none of those that pp.x was asked for")
            found[round(index)] = path
        missing = sorted(set(members.tolist()) - set(found))
        if missing:
            raise FileError(f"{folder}: pp.x left no cube for {self.energies[missing[0]]:g} eV")
        return found

    def _convert(self, index: int, path: Path, spool: int, sums: np.ndarray) -> None:
        _, values = ldos_values(path, self.grid, self.stride)
        sums[index] = values.sum(dtype=np.float64)
        try:
            os.pwrite(spool, values.data, 4 * len(values) * index)
        except OSError as error:
            raise MachineError(f"cannot write into {self.job.folder}: {error.strerror}") from error
        if self.keep:
            path.rename(self.job.folder / f"tmp.pp{index + 1:03d}_ldos.cube")
        else:
            path.unlink()

    def _finish(self, batch: tuple[int, list[Future[None]]], done: list[bool], sums: np.ndarray) -> None:
        number, jobs = batch
        for one in jobs:
            one.result()
        done[number] = True
        write_json(self.job.folder / PROGRESS, {"key": self._key(), "done": done, "sums": sums.tolist()})


def knows_gauss(version: str) -> bool:
    """Whether pp.x of this version of QE has ``use_gauss_ldos`` (7.2 and later)."""
    found = re.match(r"\D*(\d+)\.(\d+)", version)
    return found is not None and (int(found[1]), int(found[2])) >= (7, 2)
