"""A tiny model for tests: untrained, but its LDOS holds the right number of electrons, near enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from fakes import ENERGY_GRID, SIGMA, UPF

from malax.descriptors import Descriptor
from malax.emulator import Emulator, ModelInfo, TrainingSnapshot
from malax.io.upf import read_upf
from malax.network import LDOSNetwork, NetworkConfig

DESCRIPTOR = Descriptor(twojmax=4, cutoff=3.5)
VALENCE = {"Al": 3.0, "Be": 2.0, "O": 6.0}


def tiny_model(
    elements: Sequence[str] = ("Al",), with_pseudopotentials: bool = True, seed: int = 0, **changes: Any
) -> Emulator:
    """An emulator of a few hundred parameters; ``changes`` go into its `ModelInfo`."""
    config = NetworkConfig(hidden=(12,), activation="silu", non_negative=True)
    network = LDOSNetwork.from_config(
        config, DESCRIPTOR.n_features, len(ENERGY_GRID), torch.Generator().manual_seed(seed)
    )
    step = 0.05 / (1 + np.exp(-(ENERGY_GRID + 2.0) / 0.5))
    # the scale of the features of rattled fcc Al, roughly: the LDOS then varies by some ten per cent
    network.set_scalers(
        torch.full((DESCRIPTOR.n_features,), 10.0),
        torch.full((DESCRIPTOR.n_features,), 10.0),
        torch.full((len(ENERGY_GRID),), 0.05),
        torch.from_numpy(step),
    )
    # smooth in energy, as an LDOS with a broadening is
    distance = np.subtract.outer(ENERGY_GRID, ENERGY_GRID)
    smooth = np.exp(-((distance / 2.0) ** 2))
    with torch.no_grad():
        weight = network.linear_layers[-1].weight
        weight.copy_(torch.from_numpy(smooth / smooth.sum(axis=1, keepdims=True)).float() @ weight)
    settings = {
        "malax_version": "test",
        "elements": tuple(elements),
        "valence": {element: VALENCE[element] for element in elements},
        "descriptor": DESCRIPTOR,
        "network": config,
        "kernel": "gaussian",
        "sigma": SIGMA,
        "complete_to": 8.0,
        "grid_spacing": 0.45,
        "xc": "PBE",
        "ecutrho": None,
        "training_temperatures": (1000.0,),
        "training_volumes": (16.6,),
        "training_snapshots": (training_snapshot("seen", -58.0), training_snapshot("other", -57.0)),
        **changes,
    }
    pseudopotentials = {"Al": read_upf(UPF)} if with_pseudopotentials else {}
    return Emulator(network, ModelInfo(**settings), ENERGY_GRID, pseudopotentials)


def training_snapshot(name: str, total_free: float, **changes: Any) -> TrainingSnapshot:
    """What a model remembers of a snapshot, with made-up energies (eV/atom)."""
    values = {
        "name": name,
        "sha256": name,
        "n_atoms": 4,
        "temperature": 1000.0,
        "volume": 16.6,
        "energies": {"band": 10.0 + total_free / 10, "total_free": total_free, "ewald": -73.0},
    }
    return TrainingSnapshot(**{**values, **changes})
