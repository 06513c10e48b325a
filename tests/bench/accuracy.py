"""The accuracy tables of README.md and docs/accuracy.md: the median over models of different seeds.

    malax evaluate models/al.malax data/al/{d08,d09,d10,h04,h05,t02,t03}.h5 --json > seed0.json   # and so on
    python tests/bench/accuracy.py seed0.json seed1.json seed2.json

All errors in meV/atom, densities in percent. "shipped" is the first file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("evaluations", nargs="+", type=Path, help="JSON of malax evaluate, one per seed")
    runs = [json.loads(path.read_text()) for path in parser.parse_args().evaluations]
    print(groups_table(runs), end="\n\n")
    print(snapshots_table(runs))


def groups_table(runs: list[dict[str, Any]]) -> str:
    """A row per group and energy: signed and absolute errors beside floor, mean and fit."""
    heads = ["group", "energy", "median over seeds: signed", "absolute", "shipped: signed", "absolute"]
    heads += ["floor", "mean (a)", "fit (b)", "density %"]
    lines = [f"| {' | '.join(heads)} |", "|---|---|" + "--:|" * 8]
    for index, group in enumerate(runs[0]["groups"]):
        same = [run["groups"][index] for run in runs]
        name = f"{group['temperature']:.0f} K, {group['n_atoms']} atoms ({group['n_snapshots']})"
        density = np.median([one["absolute"]["density_mape"] for one in same])
        for term, label in (("total_free", "F"), ("band", "band")):
            signed = np.median([one["signed"][term] for one in same])
            absolute = np.median([one["absolute"][term] for one in same])
            cells = [f"{signed:+.1f}", f"{absolute:.1f}", f"{group['signed'][term]:+.1f}"]
            cells += [f"{group['absolute'][prefix + term]:.1f}" for prefix in ("", "floor_", "mean_", "fit_")]
            lines.append(f"| {name} | {label} | {' | '.join(cells)} | {density:.2f} |")
    return "\n".join(lines)


def snapshots_table(runs: list[dict[str, Any]]) -> str:
    """A row per snapshot: F of every seed."""
    lines = [
        "| snapshot | F, one column per seed " + "| " * (len(runs) - 1) + "| density % |",
        "|---|" + "--:|" * (len(runs) + 1),
    ]
    for index, snapshot in enumerate(runs[0]["snapshots"]):
        same = [run["snapshots"][index] for run in runs]
        errors = " | ".join(f"{one['errors']['total_free']:+.1f}" for one in same)
        density = " / ".join(f"{one['density_mape']:.2f}" for one in same)
        lines.append(f"| {snapshot['name']} | {errors} | {density} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
