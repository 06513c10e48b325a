"""How the golden files were made: ``python tests/golden/make.py NAME``, with the malax of that time.

``format1``: commit fd8f49b, the first that wrote models. ``format2``: commit 95794ad, the first with
ensembles. Nothing is ever made anew: files of users stay what they are, and so must their numbers.
A new format gets a new file, made with the first version that writes it. This script then only tells how.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk

from malax.descriptors import Descriptor
from malax.emulator import Emulator, ModelInfo, TrainingSnapshot
from malax.io.upf import Pseudopotential
from malax.network import LDOSNetwork, NetworkConfig

HERE = Path(__file__).parent
ENERGY_GRID = np.linspace(-4.0, 9.0, 27)
GRIDS = {"cubic": (8, 8, 8), "triclinic": (7, 6, 9)}


def structures() -> dict[str, Atoms]:
    """Four displaced atoms, and a triclinic cell of two."""
    cubic = bulk("Al", "fcc", a=4.05, cubic=True)
    cubic.positions += 0.1 * np.sin(np.arange(12.0)).reshape(4, 3)
    cell = [[2.9, 0.1, 0.0], [1.3, 2.6, 0.2], [0.3, -0.4, 4.7]]
    triclinic = Atoms("Al2", scaled_positions=[[0.02, 0.0, 0.01], [0.47, 0.52, 0.5]], cell=cell, pbc=True)
    return {"cubic": cubic, "triclinic": triclinic}


def pseudopotential() -> Pseudopotential:
    """Three valence electrons and a Gaussian core charge, on a mesh of 41 radii."""
    i = np.arange(41.0)
    r = 0.01 * np.expm1(0.16 * i)
    core = 0.5 * np.exp(-((r / 0.6) ** 2))
    return Pseudopotential("Al", 3.0, "PBE", "NC", r, 0.0016 * np.exp(0.16 * i), core, "made up", "made up")


def network(descriptor: Descriptor, hidden: tuple[int, ...], seed: int) -> LDOSNetwork:
    """Random weights, smooth over the energies, around a step."""
    config = NetworkConfig(hidden=hidden, activation="silu", non_negative=True)
    one = LDOSNetwork.from_config(
        config, descriptor.n_features, len(ENERGY_GRID), torch.Generator().manual_seed(seed)
    )
    ones = torch.ones(descriptor.n_features)
    step = torch.from_numpy(0.05 / (1 + np.exp(-(ENERGY_GRID + 2.0) / 0.5)))
    one.set_scalers(30 * ones, 30 * ones, torch.full((len(ENERGY_GRID),), 0.05), step)
    smooth = np.exp(-((np.subtract.outer(ENERGY_GRID, ENERGY_GRID) / 2.0) ** 2))
    with torch.no_grad():
        weight = one.linear_layers[-1].weight
        weight.copy_(torch.from_numpy(smooth / smooth.sum(axis=1, keepdims=True)).float() @ weight)
    return one


def model(seed: int, hidden: tuple[int, ...], **changes: object) -> Emulator:
    descriptor = Descriptor(twojmax=2, cutoff=3.5)
    one = network(descriptor, hidden, seed)
    energies = {"band": 4.0, "total_free": -58.0, "ewald": -73.0}
    seen = TrainingSnapshot(
        name="made up", sha256="0", n_atoms=4, temperature=1000.0, volume=16.6, energies=energies
    )
    info = ModelInfo(
        malax_version="0.1.0", elements=("Al",), valence={"Al": 3.0}, descriptor=descriptor,
        network=one.config, kernel="gaussian", sigma=0.5, complete_to=8.0, grid_spacing=0.5, xc="PBE",
        training_temperatures=(1000.0,), training_volumes=(16.6,), training_snapshots=(seen,),
    )  # fmt: skip
    return Emulator(one, info, ENERGY_GRID, {"Al": pseudopotential()}, **changes)  # type: ignore[arg-type]


def numbers(emulator: Emulator) -> dict[str, object]:
    """What the model says of each structure: plain numbers."""
    found: dict[str, object] = {}
    for name, atoms in structures().items():
        one = emulator.predict(atoms, 1000.0, GRIDS[name])
        found[name] = {
            "energies": {k: float(v) for k, v in one.energies.as_dict().items()},
            "fermi_level": float(one.fermi_level),
            "dos": one.dos.tolist(),
            "density": one.density.reshape(-1)[::37].tolist(),
        }
        spread = getattr(one, "spread", None)
        if spread is not None:
            found[name]["members"] = {k: v.tolist() for k, v in spread.energies.items()}  # type: ignore[index]
            found[name]["dos_std"] = spread.dos_std.tolist()  # type: ignore[index]
            found[name]["outside"] = one.outside  # type: ignore[index]
    return found


def ensemble() -> Emulator:
    from malax.domain import Domain

    f = Descriptor(twojmax=2, cutoff=3.5).n_features
    domain = Domain(np.full(f, 30.0), 0.1 * (np.eye(f) + 0.2), 4.0)
    return Emulator.combine([model(1, (6,), domain=domain), model(2, (4, 5), domain=domain)])


if __name__ == "__main__":
    name = sys.argv[1]
    made = model(0, (6,)) if name == "format1" else ensemble()
    made.save(HERE / f"{name}.malax", overwrite=False)
    text = json.dumps(numbers(Emulator.load(HERE / f"{name}.malax")), indent=1)
    (HERE / f"{name}.json").write_text(text + "\n", encoding="utf-8")
