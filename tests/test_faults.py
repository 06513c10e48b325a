"""A prediction over ranks that is struck in one of its stages ends, and the same line again finishes it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ase.io
import numpy as np
import pytest
from fakes import make_atoms
from launch import TESTS, mpirun
from models import tiny_model

import malax

pytest.importorskip("mpi4py", reason="mpi4py is not installed: pip install 'malax[mpi]'")

SHAPE = (20, 20, 21)
LINE = ["predict", "m.malax", "al.xyz", "--grid", *map(str, SHAPE), "--json", "-o"]
CASES = [
    # stage, what happens, to which rank; exit code (None: the launcher's), what is said
    ("first", "SIGTERM", "all", 75, "stopped by SIGTERM"),
    ("energies", "SIGUSR1", "1", 75, "stopped by SIGUSR1"),
    ("writing", "SIGTERM", "0", 75, "stopped by SIGTERM"),
    ("writing", "SIGKILL", "1", None, ""),
    ("main", "FILL", "1", 1, "cannot keep tiles in .main-FILL.h5.tiles: No space left on device"),
]


@contextmanager
def small_disk(folder: Path, megabytes: int = 8) -> Iterator[str]:
    """Mount a disk on a folder; yields why that cannot be, or nothing."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder]
    tried = subprocess.run(mount, capture_output=True, text=True)
    try:
        yield tried.stderr.strip() if tried.returncode else ""
    finally:
        if not tried.returncode:
            subprocess.run(["umount", folder], check=True)


def write_inputs(folder: Path) -> None:
    tiny_model().save(folder / "m.malax")
    ase.io.write(folder / "al.xyz", make_atoms(0), format="extxyz", parallel=False)


def struck(
    stage: str, action: str, victim: str, folder: Path, mark: str = ""
) -> tuple[subprocess.CompletedProcess, Path]:
    """A run of two ranks that is struck, and the output it would have written."""
    output = folder / f"{stage}-{action}{mark}.h5"
    lines = folder / f"{output.stem}.json"
    lines.write_text(json.dumps([[*LINE, output.name]]))
    return mpirun(
        2, TESTS / "faults_program.py", stage, action, victim, lines, cwd=folder, timeout=60
    ), output


def finish(folder: Path, outputs: list[Path]) -> None:
    """The same lines again, in one start; all must give the numbers of one rank that nothing happens to."""
    lines = folder / "again.json"
    lines.write_text(json.dumps([[*LINE, output.name] for output in outputs]))
    ran = mpirun(2, TESTS / "faults_program.py", "never", "SIGTERM", "all", lines, cwd=folder, timeout=100)
    assert ran.returncode == 0, ran.stderr
    one = malax.Emulator.load(folder / "m.malax").predict(ase.io.read(folder / "al.xyz"), grid=SHAPE)
    for output in outputs:
        result = malax.load(output)
        assert result.terms() == pytest.approx(one.terms(), rel=1e-9), output
        np.testing.assert_allclose(result.density, one.density, rtol=1e-9)
    left = {path.name for path in folder.iterdir()} - {output.name for output in outputs}
    assert not [name for name in left if name.startswith(".") or name.endswith((".h5", ".part"))], left


def check_end(ran: subprocess.CompletedProcess, output: Path, code: int | None, said: str) -> None:
    assert ran.returncode == code if code is not None else ran.returncode != 0, ran.stderr
    lines = [line for line in ran.stderr.splitlines() if line.startswith("malax:")]
    assert said in "\n".join(lines) and len(lines) == bool(said), ran.stderr
    assert not output.exists() and "Traceback" not in ran.stderr


def test_struck_in_any_stage(tmp_path):
    """Nothing hangs, nothing half-written stands under the final name, the next run goes on."""
    with small_disk(tmp_path) as no_disk:
        write_inputs(tmp_path)
        outputs = []
        for stage, action, victim, code, said in CASES:
            if action == "FILL" and no_disk:
                continue
            ran, output = struck(stage, action, victim, tmp_path)
            check_end(ran, output, code, said)
            outputs.append(output)
        # killed while writing: what it left is there until the next run
        assert list(tmp_path.glob(".writing-SIGKILL.h5.*.part"))
        (tmp_path / "filler").unlink(missing_ok=True)
        finish(tmp_path, outputs)
    if no_disk:
        pytest.skip(f"all but the full disk passed; a small disk cannot be mounted here: {no_disk}")
