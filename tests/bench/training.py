"""What a training step costs: float32, bfloat16, eager, compiled, three kinds of AdamW, against torch.mm.

    python tests/bench/training.py [--threads 1] [--batch 1024] [--hidden 256 256 256] [--compile]

The variants take turns, so that a busy machine disturbs all of them alike; the median of each counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from malax.network import LDOSNetwork


def step(network: LDOSNetwork, forward: Callable, optimizer: torch.optim.Optimizer, x, y) -> None:
    optimizer.zero_grad()
    (forward(x) - y).square().mean().backward()
    optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 256, 256])
    parser.add_argument("--features", type=int, default=92)
    parser.add_argument("--energies", type=int, default=181)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--compile", action="store_true", help="torch.compile, too (needs a C++ compiler)")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    x, y = torch.randn(given.batch, given.features), torch.randn(given.batch, given.energies)
    variants: dict[str, Callable[[], None]] = {}

    def add(name: str, mixed: bool = False, compiled: bool = False, **options: bool) -> None:
        network = LDOSNetwork(given.features, given.hidden, given.energies)
        network.mixed = mixed
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, **options)
        forward = torch.compile(network.scaled) if compiled else network.scaled
        variants[name] = lambda: step(network, forward, optimizer, x, y)

    add("float32, AdamW (foreach off)", foreach=False)
    add("float32, AdamW (foreach)", foreach=True)
    add("float32, AdamW (fused)", fused=True)
    add("bfloat16 hidden layers, fused", mixed=True, fused=True)
    if given.compile:
        add("float32, compiled, fused", compiled=True, fused=True)
    widths = [given.features, *given.hidden, given.energies]
    pairs = [
        (torch.randn(given.batch, a), torch.randn(a, b)) for a, b in zip(widths, widths[1:], strict=False)
    ]

    def products() -> None:
        """The products of forward and backward pass: three of the same size per layer."""
        for a, b in pairs:
            for _ in range(3):
                torch.mm(a, b)

    variants["torch.mm, the same products"] = products
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(given.rounds):
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    # the lower quartile: what a step costs when nobody interrupts it
    found = {name: float(np.quantile(values[3:], 0.25)) for name, values in seconds.items()}
    floor = found["torch.mm, the same products"]
    print(f"{given.threads} thread(s), batch {given.batch}, {'-'.join(map(str, widths))}")
    for name, value in found.items():
        print(f"{name:32s} {1e3 * value:8.2f} ms   torch.mm is {100 * floor / value:5.1f} % of it")


if __name__ == "__main__":
    main()
