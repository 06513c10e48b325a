"""What each rank of test_mpi_energies.py runs; rank 0 prints JSON."""

from __future__ import annotations

import json
import time
import traceback

import numpy as np
from ase import Atoms
from systems import rattled
from test_energies import gaussian_core, smooth

from malax import comm as communication
from malax.comm import Comm, world
from malax.energies import total_free_energy_of
from malax.energies.slab_ewald import ewald_energy_of
from malax.energies.slab_factors import structure_factors
from malax.fft import Waves
from malax.grid import Grid

CELL = np.array([[4.1, 0.0, 0.0], [1.3, 3.9, 0.0], [-0.9, 1.1, 4.6]])


def four_atoms() -> Atoms:
    scaled = [[0.02, 0.11, 0.07], [0.48, 0.35, 0.60], [0.81, 0.77, 0.21], [0.45, 0.9, 0.05]]
    return rattled(Atoms("Al4", cell=CELL, scaled_positions=scaled, pbc=True), 0.05, seed=2)


def divided(comm: Comm, field: np.ndarray, uneven: bool) -> np.ndarray:
    """This rank's part: flat, contiguous; uneven ones leave the second rank without points."""
    cuts = np.linspace(0, field.size, comm.size + 1).astype(int)
    if uneven and comm.size > 2:
        cuts[2] = cuts[1]
    return field.reshape(-1)[cuts[comm.rank] : cuts[comm.rank + 1]]


def energies(comm: Comm, shape: tuple[int, int, int], ecutrho: float | None, uneven: bool) -> dict:
    atoms, pseudo = four_atoms(), {"Al": gaussian_core()}
    grid = Grid(CELL, shape)
    part = divided(comm, smooth(grid, 12.0), uneven)
    found = total_free_energy_of(atoms, part, grid, -3.0, -0.1, pseudo, "PBE", ecutrho, comm)
    every = comm.gather(found.total_free)
    return {**found.as_dict(), "same": every is None or len(set(every)) == 1}


def mesh(comm: Comm) -> dict:
    """Ewald and a structure factor over the mesh, which so few atoms would not choose."""
    atoms = four_atoms()
    energy = ewald_energy_of(atoms, np.array([1.0, 2.0, 3.0, 2.0]), comm, method="mesh")
    waves = Waves(Grid(CELL, (1, 1, 1)).reciprocal, 7.0**2, comm)
    factors = structure_factors(atoms.get_scaled_positions(), np.ones(4), waves, "mesh")
    whole = comm.allgatherv(factors)
    probe = np.random.default_rng(0).normal(size=len(whole))
    every = comm.gather(energy)
    return {
        "ewald": energy,
        "real": float(probe @ whole.real),
        "imaginary": float(probe @ whole.imag),
        "same": every is None or len(set(every)) == 1,
    }


def everything(comm: Comm) -> dict:
    found = {
        "prime grid": energies(comm, (11, 13, 17), None, False),
        "fewer planes than ranks": energies(comm, (3, 5, 7), None, True),
        "refined": energies(comm, (7, 8, 9), 250.0, True),
        "mesh": mesh(comm),
    }
    largest, communication.LARGEST_MESSAGE = communication.LARGEST_MESSAGE, 1000
    found["small messages"] = energies(comm, (11, 13, 17), None, True)
    communication.LARGEST_MESSAGE = largest
    return found


def main() -> None:
    """The first 1, 2, ... ranks compute; those that wait for them sleep."""
    mpi = world().mpi
    found = {}
    for size in range(1, mpi.Get_size() + 1):
        some = mpi.Split(mpi.Get_rank() < size)
        if mpi.Get_rank() < size:
            found[size] = everything(communication.as_comm(some))
        done = mpi.Ibarrier()
        while not done.Test():
            time.sleep(0.02)
    if mpi.Get_rank() == 0:
        print(json.dumps(found))


if __name__ == "__main__":
    try:
        main()
    except Exception:
        traceback.print_exc()
        world().abort(1)
