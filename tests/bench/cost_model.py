"""The cost model as the tables of docs/scaling.md: rates measured here, one thread, extended to many ranks.

    python tests/bench/cost_model.py [--atoms 1e4 1e5 1e6 1e7] [--ranks 1 16 128 1024 10240] [--model MODEL]

``--latency`` (s), ``--bandwidth`` (bytes/s of a rank) and ``--disk`` (bytes/s of the file system) describe a
cluster that is not here.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from malax import bench, cost_model, estimate, probe, shipped
from malax.emulator import Emulator
from malax.machine import resident

NAMES = {
    "tiles": "tiles",
    "transforms": "FFT, XC, Ewald",
    "exchange": "transposes",
    "atoms": "all atoms",
    "balance": "balance",
    "dos": "DOS sums",
    "output": "output",
}


def number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def row(emulator: Emulator, n: int, ranks: int, measured: tuple, start: int) -> str:
    """One line of the table; ``measured`` are rates, what is not divided, and the fabric."""
    job, _ = bench.jobs(emulator, n, ranks)
    found = cost_model.stages(emulator, job, *measured)
    alone = cost_model.stages(emulator, bench.jobs(emulator, n, 1)[0], *measured)
    total, whole = sum(found.values()), sum(alone.values())
    largest = max((name for name in found if name != "tiles"), key=lambda name: found[name])
    memory = (start + estimate.peak(emulator, job)) / 1e9
    cells = [f"{n:.0e}".replace("e+0", "e"), str(ranks), str(job.grid.shape[0])]
    cells += [number(found[name]) for name in NAMES]
    cells += [number(total), f"{100 * whole / ranks / total:.0f} %", f"{memory:.2f}", NAMES[largest]]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--atoms", type=float, nargs="+", default=[1e4, 1e5, 1e6, 1e7])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 16, 128, 1024, 10240])
    parser.add_argument("--model", type=Path, default=shipped.model())
    parser.add_argument("--latency", type=float, default=cost_model.Fabric.latency)
    parser.add_argument("--bandwidth", type=float, default=cost_model.Fabric.bandwidth)
    parser.add_argument("--disk", type=float, default=cost_model.Fabric.disk)
    options = parser.parse_args()
    torch.set_num_threads(1)
    emulator = Emulator.load(options.model)
    start = resident()
    fabric = cost_model.Fabric(options.latency, options.bandwidth, options.disk)
    _, sample = bench.jobs(emulator, 1000, 1)
    rates = probe.measure(emulator, sample, [min(emulator.info.training_temperatures)], seconds=5.0)
    serial = cost_model.measure_serial(emulator, sample)
    point = {stage: 1e6 * rate * rates.cost_per_point for stage, rate in rates.main.items() if rate}
    print(
        "Measured, one thread:", ", ".join(f"{stage} {value:.2f}" for stage, value in point.items()), end=""
    )
    per_point = 1e6 * (rates.fields + rates.core) / rates.points
    print(f" us per point; Hartree, XC, core charge {per_point:.2f} us per point of the dense grid;", end=" ")
    print(f"Ewald {1e6 * rates.ewald:.0f} and set-up {1e6 * rates.setup:.1f} us per atom;", end=" ")
    print(
        f"{1e6 * serial.tree:.0f} us per subtree of tiles, {1e6 * serial.tile:.2f} us to count a tile.",
        end=" ",
    )
    print(f"Assumed: {1e6 * fabric.latency:g} us and {1e-9 * fabric.bandwidth:g} GB/s per rank,", end=" ")
    print(f"{1e-9 * fabric.disk:g} GB/s to the disk.\n")
    heads = ["atoms", "ranks", "grid", *(f"{name}, s" for name in NAMES.values())]
    heads += ["together, s", "efficiency", "GB per rank", "largest but the tiles"]
    print("| " + " | ".join(heads) + " |")
    print("|" + "---|" * len(heads))
    for n in options.atoms:
        for ranks in options.ranks:
            print(row(emulator, int(n), ranks, (rates, serial, fabric), start))


if __name__ == "__main__":
    main()
