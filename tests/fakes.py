"""Small snapshots made on the spot: no DFT, but everything in them fits together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk

from malax import energies
from malax.grid import Grid
from malax.io.snapshot import Snapshot, save_snapshot
from malax.io.upf import Pseudopotential, read_upf
from malax.observables import electrons_at, from_ldos
from malax.units import BOHR, HARTREE

UPF = Path(__file__).resolve().parents[1] / "malax" / "data" / "Al.pbe-nc.UPF"
ENERGY_GRID = np.linspace(-4.0, 9.0, 27)
SIGMA = 0.5


def make_atoms(seed: int, rattle: float = 0.15) -> Atoms:
    """Four displaced fcc Al atoms."""
    atoms = bulk("Al", "fcc", a=4.05, cubic=True)
    atoms.positions += np.random.default_rng(seed).normal(0.0, rattle, (len(atoms), 3))
    return atoms


def smooth_ldos(atoms: Atoms, grid: Grid, energy_grid: np.ndarray) -> np.ndarray:
    """(P, E) positive LDOS in 1/(eV A^3): a smooth function of the distances to the atoms.

    A rounded step in energy whose height follows a sum of Gaussians, and whose edge moves with it.
    """
    images = (
        np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), axis=-1).reshape(-1, 3) @ atoms.cell.array
    )
    centers = (atoms.positions[:, None] + images).reshape(-1, 3)
    square = ((grid.points()[:, None] - centers) ** 2).sum(axis=-1)
    height = np.exp(-square / (2 * 1.1**2)).sum(axis=1)
    edge = -0.5 - 0.4 * height
    step = 1 / (1 + np.exp(-(energy_grid - edge[:, None]) / 0.5))
    return 0.02 * (0.3 + height)[:, None] * step * (1 + 0.05 * (energy_grid + 4.0))


def make_snapshot(
    path: Path,
    seed: int = 0,
    *,
    atoms: Atoms | None = None,
    shape: tuple[int, int, int] = (8, 8, 8),
    energy_grid: np.ndarray = ENERGY_GRID,
    temperature: float = 1000.0,
    complete_to: float = 8.0,
    kernel: str = "gaussian",
    sigma: float = SIGMA,
    pseudopotentials: dict[str, Pseudopotential] | None = None,
) -> Snapshot:
    """Write a snapshot: its density and energies are those of its own LDOS, so its floor is zero.

    The LDOS is complete up to ``complete_to`` and, as in real ones, falls to zero above.
    """
    atoms = make_atoms(seed) if atoms is None else atoms
    pseudopotentials = pseudopotentials or {"Al": read_upf(UPF)}
    grid = Grid(atoms.cell.array, shape)
    n_electrons = sum(pseudopotentials[s].z_valence for s in atoms.get_chemical_symbols())
    ldos = smooth_ldos(atoms, grid, energy_grid)
    missing = np.clip((energy_grid - complete_to) / 2, 0, 1)
    # a Fermi level well below complete_to
    dos = ldos.sum(axis=0) * grid.point_volume
    ldos *= n_electrons / electrons_at(dos, energy_grid, 3.0, temperature)
    ldos = (ldos * (1 - missing)).astype(np.float32)
    variance = sigma**2 * (0.5 if kernel == "gaussian" else np.pi**2 / 3)
    found = from_ldos(ldos.reshape(*shape, -1), energy_grid, grid.volume, temperature, n_electrons, variance)
    ecutrho = 0.9 * grid.largest_sphere * HARTREE * BOHR**2 / 2
    terms = energies.total_free_energy(
        atoms,
        found.density,
        found.band_energy,
        found.entropy_term,
        pseudopotentials,
        xc="PBE",
        ecutrho=ecutrho,
    )
    snapshot = Snapshot(
        name=path.stem,
        atoms=atoms,
        energy_grid=energy_grid,
        kernel=kernel,
        sigma=sigma,
        complete_to=complete_to,
        temperature=temperature,
        n_electrons=n_electrons,
        fermi_level=float(found.fermi_level),
        energies={k: float(v) for k, v in terms.as_dict().items() if k != "internal" and v is not None},
        density=found.density,
        ldos_shape=shape,
        pseudopotentials=pseudopotentials,
        xc="PBE",
        ecutrho=ecutrho,
        provenance={"made_by": "tests/fakes.py", "seed": seed},
    )
    return save_snapshot(path, snapshot, [ldos], keep_bits=None)
