"""Three figures of a training: its share of torch.mm's rate, the speed-up of two ranks, its memory.

    python tests/bench/training_speed.py [--gigabytes 5] [--points 400000] [--folder DIR] [--keep]

Made-up snapshots (4 atoms, 48^3 points, 181 energies: 80 MB of LDOS each) of so many gigabytes are trained by
``malax train`` itself, in processes of their own with one thread each:

1. an epoch of about ``--points`` points: 6 x weights x points / its seconds in log.csv (with reading, loss,
   optimiser and validation), beside torch.mm on the products of the same shapes, before and after;
2. the same on two ranks (skipped, and said, without mpiexec);
3. an epoch over all points: the largest resident memory of the process.

Needs about 2.6 times ``--gigabytes`` on the disk of ``--folder``. The machine must be quiet for 1 and 2.
"""

from __future__ import annotations

import argparse
import csv
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from timing import table

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fakes import make_snapshot  # noqa: E402 - of the tests

from malax.descriptors import Descriptor  # noqa: E402

SHAPE = (48, 48, 48)
ENERGIES = np.linspace(-6.0, 12.0, 181)
HIDDEN = (256, 256, 256)
YAML = """
output: {folder}/{name}.malax
data:
  training: ["{folder}/a*.h5"]
  validation: ["{folder}/v.h5"]
  cache: "{folder}/cache"
  batch_size: {batch}
  points_per_snapshot: {points}
network: {{hidden: [256, 256, 256]}}
loss: {{density: 3.0, grand_potential: 3.0, integrated: 10.0}}
epochs: {epochs}
evaluate_every: 1000
select: last
threads: 1
"""


def make_data(folder: Path, gigabytes: float) -> int:
    """So many gigabytes of LDOS to train on, and one snapshot to validate; the number of snapshots."""
    size = 4 * np.prod(SHAPE) * len(ENERGIES)
    number = max(2, round(gigabytes * 1e9 / size))
    for i in range(number + 1):
        path = folder / (f"a{i}.h5" if i < number else "v.h5")
        if not path.exists():
            make_snapshot(path, i, shape=SHAPE, energy_grid=ENERGIES, sigma=0.2, complete_to=10.5)
    return number


def run(folder: Path, name: str, ranks: int = 1, **settings: object) -> tuple[list[float], float]:
    """Train; seconds of each epoch, and the largest resident memory so far of all children in GB."""
    text = YAML.format(folder=folder, name=name, **settings)
    (folder / f"{name}.yaml").write_text(text)
    command = [sys.executable, "-m", "malax.cli", "train", str(folder / f"{name}.yaml"), "--overwrite"]
    if ranks > 1:
        command = ["mpiexec", "-n", str(ranks), *command]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    with open(folder / f"{name}.run" / "log.csv", newline="") as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6


def product_rate(widths: list[int], batch: int, seconds: float = 3.0) -> float:
    """Floating point operations per second of torch.mm on forward and backward pass, one thread."""
    torch.set_num_threads(1)
    triples = []
    for a, b in zip(widths, widths[1:], strict=False):
        x, w, y = torch.randn(batch, a), torch.randn(a, b), torch.randn(batch, b)
        triples.append((x, w, y))
    best, begin = np.inf, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        for x, w, y in triples:
            torch.mm(x, w)  # forward
            torch.mm(x.T, y)  # gradient of the weights
            torch.mm(y, w.T)  # gradient of the inputs
        best = min(best, time.perf_counter() - start)
    return 6 * batch * sum(a * b for a, b in zip(widths, widths[1:], strict=False)) / best


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=5.0)
    parser.add_argument("--points", type=int, default=400_000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--keep", action="store_true", help="keep the data for another run")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="malax-training-"))
    folder.mkdir(parents=True, exist_ok=True)
    number = make_data(folder, given.gigabytes)
    each = max(1, min(given.points // number, int(np.prod(SHAPE))))
    points = number * each // given.batch * given.batch
    features = Descriptor().n_features  # type: ignore[call-arg]
    widths = [features, *HIDDEN, len(ENERGIES)]
    weights = sum(a * b for a, b in zip(widths, widths[1:], strict=False))

    common = {"batch": given.batch, "points": each}
    run(folder, "warm", epochs=1, **common)  # computes the features
    before = product_rate(widths, given.batch)
    one, _ = run(folder, "one", epochs=given.epochs, **common)
    after = product_rate(widths, given.batch)
    rate = 6 * weights * points / float(np.median(one[1:]))
    rows = [
        ["torch.mm, same shapes", f"{before / 1e9:.1f} and {after / 1e9:.1f} Gflop/s", ""],
        ["epoch, one rank", f"{rate / 1e9:.1f} Gflop/s", f"{np.median(one[1:]):.2f} s, {points} points"],
        ["share of torch.mm", f"{100 * rate / max(before, after):.0f} %", "60 % is asked for"],
    ]
    if shutil.which("mpiexec"):
        two, _ = run(folder, "two", ranks=2, epochs=given.epochs, **common)
        gain = float(np.median(one[1:]) / np.median(two[1:]))
        rows.append(["two ranks against one", f"{gain:.2f} x", "1.8 is asked for"])
    else:
        rows.append(["two ranks against one", "not measured", "no mpiexec here"])
    all_points = {"batch": given.batch, "points": int(np.prod(SHAPE))}
    _, memory = run(folder, "all", epochs=1, **all_points)
    ldos = number * 4 * np.prod(SHAPE) * len(ENERGIES) / 1e9
    rows.append(["largest memory", f"{memory:.2f} GB", f"of {ldos:.2f} GB of LDOS; 1 GB is asked for"])
    table(["", "", ""], rows)
    if not given.keep:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
