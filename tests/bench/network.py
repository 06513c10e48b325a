"""The network kernel beside torch: microseconds per row and GFLOP/s of the hidden layers, one thread.

    python tests/bench/network.py [--rows 4096] [--hidden 400 400 400] [--repeats 15]

Without ``--hidden`` the shipped model's. Both sides alternate in one process; the best of the repeats.
``products`` are matrix products alone, in torch and in the kernel (no bias or activation to pay for in
torch). The whole prediction of a tile needs the last layer in torch, and not here (`malax.inference`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from timing import table

from malax import shipped
from malax.emulator import Emulator
from malax.errors import MissingPeerError
from malax.inference import Inference
from malax.kernels_network import DenseLayers
from malax.network import LDOSNetwork
from malax.predict import N_NODES


def sides(network: LDOSNetwork, rows: np.ndarray) -> dict[str, tuple[float, Callable[[], Any]]]:
    """What is timed: floating-point operations per row, and a call."""
    linear = network.linear_layers
    hidden = linear[:-1]
    weights = [layer.weight.detach().numpy() for layer in hidden]
    biases = [layer.bias.detach().numpy() for layer in hidden]
    names = [network.activation] * len(hidden)
    inner, whole = (2.0 * sum(x.in_features * x.out_features for x in some) for some in (hidden, linear))
    x = torch.from_numpy(rows)

    def products() -> None:
        y = x
        for layer in hidden:
            y = y @ layer.weight.T

    plain = DenseLayers(weights, biases, ["identity"] * len(hidden))
    layers = DenseLayers(weights, biases, names)
    found: dict[str, tuple[float, Callable[[], Any]]] = {
        "products, torch": (inner, products),
        "products, malax": (inner, lambda: plain(rows)),
        "hidden layers, torch": (inner, lambda: network.layers[:-1](x)),
        "hidden layers, malax": (inner, lambda: layers(rows)),
    }
    energies = network.n_energies
    options = {"float32": "", "bfloat16": ", bfloat16"}
    for precision, label in options.items():
        try:
            reduce = Inference(network, len(rows), precision).reducer(np.ones((N_NODES, energies)))  # type: ignore[arg-type]
        except MissingPeerError:
            continue
        found[f"a tile, malax{label}"] = (whole, lambda r=reduce: r(rows))
    found["LDOS, torch"] = (whole, lambda: network(x))
    return found


RAW = argparse.RawDescriptionHelpFormatter


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RAW)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--hidden", type=int, nargs="+")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    network: Any = Emulator.load(shipped.model()).network
    if options.hidden:
        network = LDOSNetwork(91, options.hidden, 250)
    rows = np.random.default_rng(0).normal(size=(options.rows, network.n_features)).astype(np.float32)
    timed = sides(network, rows)
    best = dict.fromkeys(timed, np.inf)
    for _ in range(options.repeats):
        for name, (_, call) in timed.items():
            start = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - start)
    each = {name: value / len(rows) for name, value in best.items()}
    lines = [[k, f"{1e6 * v:.2f}", f"{timed[k][0] / v / 1e9:.0f}"] for k, v in each.items()]
    layers = [x.in_features for x in network.linear_layers] + [network.n_energies]
    print("-".join(map(str, layers)), f"{network.activation}, {len(rows)} rows, one thread")
    table(["", "us per row", "GFLOP/s of the full layers"], lines)


if __name__ == "__main__":
    main()
