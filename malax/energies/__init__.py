"""Hartree, exchange-correlation and ion-ion energies, and with them the total free energy.

Every term is a torch function in float64, differentiable with respect to the density; energies are in eV,
lengths in Angstrom. The public functions take NumPy or torch and give floats or 0-d tensors alike.
"""

from malax.energies.core import core_density
from malax.energies.ewald import ewald_energy
from malax.energies.hartree import hartree_energy
from malax.energies.total import Energies, electrostatics_of, total_free_energy, total_free_energy_of
from malax.energies.xc import xc_energy

__all__ = [
    "Energies",
    "core_density",
    "electrostatics_of",
    "ewald_energy",
    "hartree_energy",
    "total_free_energy",
    "total_free_energy_of",
    "xc_energy",
]
