"""What is known of a finished pw.x run, in malax's units, and what follows from its eigenvalues."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from scipy.special import expit, xlogy

from malax.errors import InputError
from malax.grid import Grid
from malax.units import BOLTZMANN


@dataclass(frozen=True, eq=False)
class PwRun:
    """What ``pw.x`` wrote about one calculation, in eV, Angstrom and Kelvin.

    Attributes
    ----------
    version : of QE, e.g. "6.7MaX"
    calculation : "scf", "relax", ...
    converged : the self-consistent cycle (and, if any, the geometry) reached its thresholds
    atoms : final structure
    kpoints : (K, 3) in 1/A, with the factor 2 pi
    weights : (K,) occupations included twice for spin: they sum to 2
    eigenvalues : (K, B) eV
    occupation_numbers : (K, B) between 0 and 1
    occupations : "smearing", "fixed", "tetrahedra", ...
    smearing : kind of smearing of the bands (the one that pp.x sees), None without
    scf_smearing : kind that was asked for in the input of pw.x
    degauss : width of the smearing in eV, None without
    fermi_level : eV; the middle of the gap for fixed occupations; None if it cannot be known
    energies : total_free, band, entropy_term, hartree, xc, vxc_rho, ewald in eV
    forces, stress : eV/A; (6,) eV/A^3 in ASE's sign and Voigt order; None if not computed
    ecutwfc, ecutrho : eV
    fft_shape : dense FFT grid
    symmetries : (S, 3, 3) int and (S, 3) float, rotations and translations of the crystal in
        crystal axes as QE writes them
    unsupported : features whose snapshots would be wrong, in words; empty when fit for a snapshot
    """

    path: Path
    version: str
    calculation: str
    converged: bool
    atoms: Atoms
    species_files: dict[str, str]
    pseudo_dir: Path
    kpoints: np.ndarray
    weights: np.ndarray
    eigenvalues: np.ndarray
    occupation_numbers: np.ndarray
    occupations: str
    smearing: str | None
    scf_smearing: str | None
    degauss: float | None
    n_electrons: float
    fermi_level: float | None
    energies: dict[str, float]
    forces: np.ndarray | None
    stress: np.ndarray | None
    ecutwfc: float
    ecutrho: float
    fft_shape: tuple[int, int, int]
    functional: str
    gamma_only: bool
    kpoint_mesh: tuple[int, ...] | None
    symmetries: tuple[np.ndarray, np.ndarray]
    unsupported: tuple[str, ...]

    @property
    def temperature(self) -> float | None:
        """Electronic temperature in K: degauss / k for Fermi-Dirac smearing, 0 for fixed occupations.

        None for smearings that are no temperature.
        """
        if self.occupations == "fixed":
            return 0.0
        if self.scf_smearing == "fermi-dirac" and self.degauss is not None:
            return self.degauss / BOLTZMANN
        return None

    @property
    def grid(self) -> Grid:
        """The dense FFT grid."""
        return Grid(self.atoms.cell.array, self.fft_shape)

    @property
    def highest_complete_energy(self) -> float:
        """The lowest over k of the highest computed band, eV: above it bands are missing."""
        return float(self.eigenvalues.max(axis=1).min())

    def density_of_states(self, energies: np.ndarray, kernel: str, sigma: float) -> np.ndarray:
        """Density of states (E,) in 1/eV from the eigenvalues, each broadened by the kernel."""
        result = np.zeros(len(energies))
        for weight, levels in zip(self.weights, self.eigenvalues, strict=True):
            result += weight * broaden(levels, energies, kernel, sigma).sum(axis=0)
        return result

    def band_terms(self) -> tuple[float, float, float]:
        """Number of electrons, band energy and -TS (eV) from eigenvalues and weights at the Fermi level.

        InputError without a Fermi level or an electronic temperature.
        """
        if self.fermi_level is None or self.temperature is None:
            raise InputError(f"{self.path}: no Fermi level or electronic temperature, so no band energy")
        kt = max(self.temperature * BOLTZMANN, 1e-12)
        f = expit((self.fermi_level - self.eigenvalues) / kt)
        entropy = -(xlogy(f, f) + xlogy(1 - f, 1 - f))
        w = self.weights[:, None]
        return (
            float((w * f).sum()),
            float((w * f * self.eigenvalues).sum()),
            float(-kt * (w * entropy).sum()),
        )


def broaden(levels: np.ndarray, energies: np.ndarray, kernel: str, sigma: float) -> np.ndarray:
    """Kernel (len(levels), len(energies)) in 1/eV: K(energy - level).

    "gaussian" exp(-x^2)/(sqrt(pi) sigma); "fermi-dirac" 1/(2 + e^x + e^-x)/sigma (DESIGN section 5).
    """
    x = (np.asarray(energies)[None, :] - np.asarray(levels)[:, None]) / sigma
    if kernel == "gaussian":
        return np.exp(-(x**2)) / (np.sqrt(np.pi) * sigma)
    if kernel == "fermi-dirac":
        return expit(x) * expit(-x) / sigma
    raise InputError(f"unknown kernel {kernel!r}: gaussian or fermi-dirac")
