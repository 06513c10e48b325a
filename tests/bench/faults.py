"""Every fault in every stage of a prediction over two ranks: ``python tests/bench/faults.py``, a few minutes.

A line per case: exit code, seconds, what was said. After that all cases are run again and must end with the
numbers of one rank. The launcher is that of the tests (MALAX_MPIEXEC); a full disk needs the right to mount.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from faults_program import STAGES
from test_faults import finish, small_disk, struck, write_inputs


def main(folder: Path) -> None:
    outputs = []
    for stage in STAGES:
        for action in ("SIGTERM", "SIGUSR1", "SIGKILL", "FILL"):
            # the first pass is one tile, and writes nothing
            if (stage, action) in (("first", "FILL"), ("energies", "FILL")):
                continue
            for victim in ("0", "1", "all"):
                start = time.monotonic()
                ran, output = struck(stage, action, victim, folder, f"-{victim}")
                (folder / "filler").unlink(missing_ok=True)
                said = [line for line in ran.stderr.splitlines() if line.startswith("malax:")]
                seconds = time.monotonic() - start
                print(
                    f"{stage:9s} {action:8s} rank {victim:4s} code {ran.returncode:4d} {seconds:5.1f} s  "
                    f"{' | '.join(said)}",
                    flush=True,
                )
                assert not output.exists() or ran.returncode == 0
                outputs.append(output)
    finish(folder, outputs)
    print(f"all {len(outputs)} were finished by the same lines, with the numbers of one rank")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        with small_disk(Path(name), 64) as no_disk:
            if no_disk:
                sys.exit(f"a small disk cannot be mounted here: {no_disk}")
            write_inputs(Path(name))
            main(Path(name))
