"""What a recipe has come to: ``status.csv``, and how good each snapshot's own LDOS is.

Everything is found on disk (snapshots, folders of runs, locks), so that several processes, jobs of an array
and a later look agree.
"""

from __future__ import annotations

import csv
import fcntl
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from malax import observables
from malax.errors import MalaxError
from malax.evaluate import from_own_ldos
from malax.fields import percentage_error
from malax.io.files import atomic_path
from malax.io.pw_run import PwRun
from malax.io.snapshot import Snapshot
from malax.units import BOLTZMANN

FLOOR_WARNING = 5.0
"""meV/atom: what DFT's own LDOS may be off in the total free energy before a line says so."""
LEVELS_WARNING = 75
"""Levels (bands x k-points) per width 2 sigma of the LDOS kernel, on average below the Fermi level, that are
called a coarse mesh. Al with 8^3 k-points, 4 atoms, 0.1 eV has 53, and no network could learn its spikes
(errors of 100 to 200 meV/atom); 4^3, 32 atoms, 0.2 eV has 106; 14^3, 4 atoms, 0.2 eV 570."""

CHECKS, FAILURE = "checks.json", "failure.txt"


@dataclass(frozen=True)
class Checks:
    """Whether an LDOS gives back its own calculation; predicted from it minus DFT.

    floor, floor_band : total free and band energy, meV/atom; None where DFT's is not known
    electrons : relative deviation of the electrons of the LDOS below DFT's Fermi level, unbroadening apart
    density : mean absolute percentage error of the density; None without DFT's
    levels : per 2 sigma below the Fermi level, see `LEVELS_WARNING`; None if not known
    seconds : wall time of the calculation and the harvest
    iterations : of the self-consistent cycle
    short : eV that the LDOS lacks to be complete where the occupation falls to 1e-6 (14 kT)
    """

    floor: float | None
    floor_band: float | None
    electrons: float
    density: float | None
    levels: float | None = None
    seconds: float | None = None
    iterations: int | None = None
    short: float = 0.0

    @property
    def concerns(self) -> list[str]:
        """What should be looked at, one line each."""
        found = []
        if self.floor is not None and abs(self.floor) > FLOOR_WARNING:
            found.append(
                f"its own LDOS misses DFT's free energy by {self.floor:.1f} meV/atom: smaller spacing of the "
                "energies or sigma, or a finer grid"
            )
        if self.short > 0:
            found.append(
                f"states are occupied up to {self.short:.1f} eV above what its bands complete: more bands"
            )
        if self.levels is not None and self.levels < LEVELS_WARNING:
            found.append(
                f"coarse k-mesh: {self.levels:.0f} levels per width of the LDOS kernel, {LEVELS_WARNING} or "
                "more are learned better: more k-points, a larger cell or sigma"
            )
        return found


def check(snapshot: Snapshot, run: PwRun | None = None) -> Checks:
    """Compute the checks of a snapshot that has its file."""
    terms, density, _ = from_own_ldos(snapshot)
    n_atoms = len(snapshot.atoms)
    mine = terms.as_dict()

    def off(term: str) -> float | None:
        value, theirs = mine[term], snapshot.energies.get(term)
        return None if value is None or theirs is None else 1e3 * (value - theirs) / n_atoms

    assert snapshot.dos is not None  # it has its file
    held = observables.electrons_at(
        snapshot.dos, snapshot.energy_grid, snapshot.fermi_level, snapshot.temperature
    )
    reference = snapshot.density
    return Checks(
        floor=off("total_free"),
        floor_band=off("band"),
        electrons=float(held / snapshot.n_electrons - 1),
        density=None if reference is None else percentage_error(density, reference),
        levels=None if run is None else levels_per_width(run, snapshot.sigma),
        short=max(0.0, snapshot.fermi_level + 14 * BOLTZMANN * snapshot.temperature - snapshot.complete_to),
    )


def levels_per_width(run: PwRun, sigma: float) -> float | None:
    """Levels of the whole k-mesh per 2 sigma, on average from the lowest level to the Fermi level."""
    if run.fermi_level is None:
        return None
    low = float(run.eigenvalues.min())
    below = run.eigenvalues < run.fermi_level
    # weights sum to 2 over the mesh, of which symmetry leaves fewer points
    n_points = np.prod(run.kpoint_mesh[:3]) if run.kpoint_mesh else len(run.weights)
    levels = float((run.weights[:, None] / 2 * below).sum() * n_points)
    return levels / max(run.fermi_level - low, 1e-3) * 2 * sigma


@dataclass(frozen=True)
class Status:
    """One line of status.csv."""

    name: str
    state: str
    """"made", "failed", "running", "waiting"."""
    seconds: float | None = None
    iterations: int | None = None
    floor_meV_per_atom: float | None = None
    floor_band_meV_per_atom: float | None = None
    electrons_percent: float | None = None
    density_percent: float | None = None
    remark: str = ""


def look(name: str, snapshot: Path, folder: Path) -> Status:
    """The status of one structure, from what lies on disk."""
    if snapshot.is_file():
        checks = read_checks(folder)
        if checks is None:
            return Status(name, "made")
        return Status(
            name,
            "made",
            seconds=checks.seconds,
            iterations=checks.iterations,
            floor_meV_per_atom=checks.floor,
            floor_band_meV_per_atom=checks.floor_band,
            electrons_percent=100 * checks.electrons,
            density_percent=checks.density,
            remark="; ".join(checks.concerns),
        )
    if is_locked(folder):
        return Status(name, "running")
    failure = folder / FAILURE
    if failure.is_file():
        return Status(name, "failed", remark=" ".join(failure.read_text().split()))
    return Status(name, "waiting")


def is_locked(folder: Path) -> bool:
    """Whether a process works in the folder of a run."""
    try:
        lock = os.open(folder / ".lock", os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(lock)


def write_checks(folder: Path, checks: Checks) -> None:
    """Keep the checks in the folder of the run."""
    with atomic_path(folder / CHECKS) as temporary:
        temporary.write_text(json.dumps(asdict(checks), indent=1) + "\n")


def read_checks(folder: Path) -> Checks | None:
    """The checks that were kept; None if there are none."""
    try:
        return Checks(**json.loads((folder / CHECKS).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def write_failure(folder: Path, error: MalaxError | None) -> None:
    """Keep the reason of a failure in the folder of the run, or remove an old one."""
    path = folder / FAILURE
    if error is None:
        path.unlink(missing_ok=True)
    elif folder.is_dir():
        with atomic_path(path) as temporary:
            temporary.write_text(f"{error}\n")


def write_status(path: Path, rows: Iterable[Status]) -> None:
    """Write status.csv, whole or not at all."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Status.__dataclass_fields__)
        for row in rows:
            values = asdict(row).values()
            writer.writerow(["" if v is None else f"{v:.4g}" if isinstance(v, float) else v for v in values])
