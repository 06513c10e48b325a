"""What must hold between the fields of a snapshot: finite, fitting shapes, and the number of electrons."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from malax.errors import InputError

if TYPE_CHECKING:
    from malax.io.snapshot import Snapshot

KERNELS = ("gaussian", "fermi-dirac")
ENERGY_TERMS = ("total_free", "band", "entropy_term", "hartree", "xc", "vxc_rho", "ewald")
DENSITY_TOLERANCE = 1e-3
LDOS_TOLERANCE = 0.05
"""Relative deviations of the integrals from the number of electrons that are refused. That of the LDOS
is wide because the kernel moves electrons over the Fermi level; it catches wrong units, cells and grids."""


def check_fields(s: Snapshot, where: str) -> None:
    """InputError unless the fields are finite and fit together."""
    arrays = {
        "cell": s.atoms.cell.array,
        "positions": s.atoms.positions,
        "energy grid": s.energy_grid,
        "energies": list(s.energies.values()),
        "sigma, complete_to, temperature, electrons, Fermi level, ecutrho": [
            s.sigma, s.complete_to, s.temperature, s.n_electrons, s.fermi_level, s.ecutrho,
        ],
        "forces": s.forces,
        "stress": s.stress,
        "density": s.density,
    }  # fmt: skip
    for name, array in arrays.items():
        if array is not None and not np.isfinite(np.asarray(array, dtype=np.float64)).all():
            raise InputError(f"{where}: not finite: {name}")
    if s.kernel not in KERNELS or not s.sigma > 0:
        raise InputError(
            f"{where}: kernel {s.kernel!r} of width {s.sigma} eV; known: {' or '.join(KERNELS)}, > 0"
        )
    unknown = set(s.energies) - set(ENERGY_TERMS)
    if unknown:
        raise InputError(f"{where}: unknown energy terms {sorted(unknown)}; known: {', '.join(ENERGY_TERMS)}")
    steps = np.diff(s.energy_grid)
    if s.energy_grid.ndim != 1 or len(steps) < 2 or steps.min() <= 0 or np.ptp(steps) > 1e-6 * steps.max():
        raise InputError(
            f"{where}: the energy grid must be ascending and evenly spaced, with 3 energies or more"
        )
    missing = set(s.atoms.get_chemical_symbols()) - set(s.pseudopotentials)
    if missing:
        raise InputError(f"{where}: no pseudopotential for {', '.join(sorted(missing))}")
    _ = s.grid, s.density_grid
    for name, array, shape in (("forces", s.forces, (len(s.atoms), 3)), ("stress", s.stress, (6,))):
        if array is not None and np.shape(array) != shape:
            raise InputError(f"{where}: {name} have shape {np.shape(array)}, expected {shape}")
    if s.density is not None:
        electrons = float(s.density.sum()) * s.density_grid.point_volume
        if abs(electrons - s.n_electrons) > DENSITY_TOLERANCE * s.n_electrons:
            raise InputError(
                f"{where}: the density integrates to {electrons:.4f} electrons over the cell, not to "
                f"{s.n_electrons:.4f}: its grid {s.density.shape} or unit does not match the cell"
            )


def check_dos(s: Snapshot, dos: np.ndarray) -> None:
    """InputError unless the LDOS, filled to the Fermi level, holds about the number of electrons."""
    if np.shape(dos) != np.shape(s.energy_grid) or not np.isfinite(dos).all():
        raise InputError(f"snapshot {s.name}: the DOS is not finite or does not fit the energy grid")
    if not s.energy_grid[0] < s.fermi_level < s.energy_grid[-1]:
        raise InputError(
            f"snapshot {s.name}: the Fermi level {s.fermi_level:.3f} eV is outside the energy grid "
            f"{s.energy_grid[0]:g} to {s.energy_grid[-1]:g} eV of the LDOS"
        )
    # a step at the Fermi level, the DOS linear between energies: the temperature hardly moves the number
    width = (s.fermi_level - s.energy_grid[0]) / 20000
    middles = s.energy_grid[0] + width * (np.arange(20000) + 0.5)
    electrons = float(np.interp(middles, s.energy_grid, dos).sum() * width)
    if abs(electrons - s.n_electrons) > LDOS_TOLERANCE * s.n_electrons:
        raise InputError(
            f"snapshot {s.name}: the LDOS below the Fermi level holds {electrons:.3f} electrons, not "
            f"{s.n_electrons:.3f}: its grid {s.ldos_shape}, cell or unit is wrong, or energies start too high"
        )
