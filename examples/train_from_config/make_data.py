"""Eight snapshots of four displaced aluminium atoms, made without DFT.

The shipped model stands in for DFT: its LDOS, density and energies are written into snapshot files. So the
example trains on files of the real format within seconds. Your own come from `malax generate`.
"""

import sys
import warnings
from pathlib import Path

import numpy as np
from ase.build import bulk

from malax import Emulator, Snapshot
from malax.emulator import ModelDomainWarning
from malax.io.snapshot import save_snapshot

# a coarse grid makes less to train on; that its energies are rough does not matter here
GRID = (14, 14, 14)
warnings.simplefilter("ignore", ModelDomainWarning)

teacher = Emulator.load(sys.argv[1])
folder = Path(sys.argv[2])
folder.mkdir(parents=True, exist_ok=True)
info = teacher.info

for number in range(8):
    atoms = bulk("Al", "fcc", a=4.05, cubic=True)
    atoms.positions += np.random.default_rng(number).normal(0.0, 0.1, (4, 3))
    result = teacher.predict(atoms, temperature=298, grid=GRID, ldos=True)
    snapshot = Snapshot(
        name=f"al{number}",
        atoms=atoms,
        energy_grid=result.energy_grid,
        kernel=info.kernel,
        sigma=info.sigma,
        complete_to=info.complete_to,
        temperature=result.temperature,
        n_electrons=info.valence["Al"] * len(atoms),
        fermi_level=result.fermi_level,
        energies=result.energies.as_dict(),
        density=result.density,
        ldos_shape=result.grid.shape,
        pseudopotentials=teacher.pseudopotentials,
        xc=info.xc,
        ecutrho=info.ecutrho,
        provenance={"made_by": "examples/train_from_config", "model_sha256": teacher.hash},
    )
    save_snapshot(folder / f"{snapshot.name}.h5", snapshot, [result.ldos])
print(f"8 snapshots in {folder}")
