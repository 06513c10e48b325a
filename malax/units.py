"""The only conversion factors of the package.

Everything inside malax is in eV, Angstrom, Kelvin and elementary charges. Other units appear
where files of other programs are read or written. Constants are CODATA 2018, the set that
Quantum ESPRESSO (>= 6.6) uses, so that its numbers convert without loss.
"""

HARTREE = 27.211386245988
"""One hartree in eV."""

RYDBERG = HARTREE / 2
"""One rydberg in eV."""

BOHR = 0.529177210903
"""One bohr in Angstrom."""

BOLTZMANN = 8.617333262e-5
"""Boltzmann constant in eV/K."""

COULOMB = HARTREE * BOHR
"""e^2 / (4 pi epsilon_0) in eV Angstrom."""

EV_PER_A3_IN_GPA = 160.21766340
"""One eV/Angstrom^3 in GPa."""
