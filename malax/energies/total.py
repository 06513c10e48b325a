"""The total free energy from the density and the band energy, term by term."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import torch
from ase import Atoms

from malax.comm import Comm, SerialComm
from malax.energies.core import core_coefficients
from malax.energies.ewald import check_structure, ewald
from malax.energies.functionals import Functional, find_functional
from malax.energies.hartree import hartree
from malax.energies.slab_ewald import ewald_energy_of
from malax.energies.slab_terms import Part, coefficients_of, sphere_waves
from malax.energies.slab_terms import core_coefficients as core_coefficients_of
from malax.energies.slab_terms import exchange_correlation as exchange_correlation_of
from malax.energies.slab_terms import hartree as hartree_of
from malax.energies.sphere import GSphere, as_field, interpolate, refined_grid
from malax.energies.xc import exchange_correlation
from malax.errors import InputError
from malax.grid import Grid
from malax.io.upf import Pseudopotential, resolve

_ELECTRON_TOLERANCE = 0.05
"""A density that holds another number of electrons than this fraction tells is not of these atoms."""

_NEGATIVE_TOLERANCE = 0.01
"""Plane-wave ripples make a density slightly negative in vacuum; more than this fraction is a mistake."""


@dataclass(frozen=True)
class Energies:
    """Energies of one structure in eV. A term that cannot be had is None.

    Attributes
    ----------
    total_free : F = band - hartree + xc - vxc_rho + ewald + entropy_term
    band : sum of occupied eigenvalues
    entropy_term : -T S of the electrons
    hartree : E_H[n]
    xc : E_xc[n + n_c]
    vxc_rho : int v_xc[n + n_c] n
    ewald : point ions in a neutralising background
    """

    total_free: float | torch.Tensor | None = None
    band: float | torch.Tensor | None = None
    entropy_term: float | torch.Tensor | None = None
    hartree: float | torch.Tensor | None = None
    xc: float | torch.Tensor | None = None
    vxc_rho: float | torch.Tensor | None = None
    ewald: float | torch.Tensor | None = None

    @property
    def internal(self) -> float | torch.Tensor | None:
        """The internal energy F + T S in eV."""
        if self.total_free is None or self.entropy_term is None:
            return None
        return self.total_free - self.entropy_term

    def as_dict(self) -> dict[str, float | None]:
        """The seven terms as plain floats (or None); ``Energies(**d)`` is the inverse."""
        return {
            key: None if value is None else float(value)
            for key, value in ((f.name, getattr(self, f.name)) for f in fields(self))
        }


def total_free_energy(
    atoms: Atoms,
    density: np.ndarray | torch.Tensor,
    band_energy: float | torch.Tensor,
    entropy_term: float | torch.Tensor,
    pseudopotentials: Mapping[str, str | os.PathLike[str] | Pseudopotential],
    xc: str = "PBE",
    ecutrho: float | None = None,
) -> Energies:
    """F = E_band - E_H[n] + E_xc[n + n_c] - int v_xc[n + n_c] n + E_Ewald - T S.

    Parameters
    ----------
    atoms : the structure, periodic in three directions
    density : (nx, ny, nz) valence electrons in 1/A^3 on a grid over the cell of ``atoms``
    band_energy : sum of occupied eigenvalues in eV
    entropy_term : -T S in eV
    pseudopotentials : element -> path of a UPF file, or parsed
    xc : "PZ", "PW", "PBE", "PBESOL", or any of QE's spellings
    ecutrho : cutoff of density and core charge in eV, as in the DFT run; None is the largest sphere inside
        the grid. On a grid too coarse for it the density is interpolated to one that holds it.

    Returns
    -------
    Energies with floats for NumPy; for a torch density 0-d tensors, differentiable with respect to it.

    Raises
    ------
    InputError
        an unusable structure, density, energy, functional or cutoff, or an element without pseudopotential.
    FileError
        a pseudopotential cannot be read.
    """
    check_structure(atoms)
    grid = _grid_of(atoms, density)
    field = as_field(density, grid)
    if not isinstance(density, torch.Tensor):
        options = (pseudopotentials, xc, ecutrho, SerialComm())
        return total_free_energy_of(atoms, field.numpy(), grid, band_energy, entropy_term, *options)
    functional = find_functional(xc)
    symbols = atoms.get_chemical_symbols()
    parsed = resolve(pseudopotentials, symbols)
    _warn_of_other_functionals(parsed, functional)
    charges = torch.tensor([parsed[s].z_valence for s in symbols], dtype=torch.float64)
    values = field.detach()
    _check_electrons(
        float(values.sum()) * grid.point_volume,
        float(values.clamp(max=0.0).sum()) * grid.point_volume,
        float(charges.sum()),
    )
    if ecutrho is not None:
        finer = refined_grid(grid, ecutrho)
        field, grid = interpolate(field, finer.shape), finer
    band, entropy = (
        _finite_energy(value, what).to(field.device)
        for value, what in ((band_energy, "band energy"), (entropy_term, "entropy term"))
    )
    terms = _terms(atoms, symbols, field, grid, parsed, charges, functional, ecutrho)
    total = band - terms["hartree"] + terms["xc"] - terms["vxc_rho"] + terms["ewald"] + entropy
    return Energies(total_free=total, band=band, entropy_term=entropy, **terms)


def total_free_energy_of(
    atoms: Atoms,
    density: np.ndarray,
    grid: Grid,
    band_energy: float | torch.Tensor,
    entropy_term: float | torch.Tensor,
    pseudopotentials: Mapping[str, str | os.PathLike[str] | Pseudopotential],
    xc: str,
    ecutrho: float | None,
    comm: Comm,
) -> Energies:
    """`total_free_energy` of a density that is divided over ranks, the same on all of them; collective.

    ``density`` is this rank's part, flat: the points that follow those of the ranks before it. No rank needs
    more than its part of a grid; the most is about 50 bytes per point of the density's.
    """
    check_structure(atoms)
    functional = find_functional(xc)
    symbols = atoms.get_chemical_symbols()
    parsed = resolve(pseudopotentials, symbols)
    if comm.rank == 0:
        _warn_of_other_functionals(parsed, functional)
    charges = np.array([parsed[s].z_valence for s in symbols])
    band, entropy = (
        float(_finite_energy(value, what))
        for value, what in ((band_energy, "band energy"), (entropy_term, "entropy term"))
    )
    part = Part.of(density, grid, comm)
    _check_electrons(part.total(), part.total(negative_only=True), float(charges.sum()))
    dense = grid if ecutrho is None else refined_grid(grid, ecutrho)
    ewald_term = ewald_energy_of(atoms, charges, comm)
    waves = sphere_waves(dense, ecutrho, comm)
    coefficients = coefficients_of(part, waves)
    hartree_term = hartree_of(coefficients, waves, grid.volume)
    core = core_coefficients_of(atoms, waves, parsed)
    exc, vxc_rho = exchange_correlation_of(coefficients, core, waves, dense, functional)
    return Energies(
        total_free=band - hartree_term + exc - vxc_rho + ewald_term + entropy,
        band=band,
        entropy_term=entropy,
        hartree=hartree_term,
        xc=exc,
        vxc_rho=vxc_rho,
        ewald=ewald_term,
    )


def electrostatics_of(
    atoms: Atoms, density: np.ndarray, grid: Grid, charges: np.ndarray, comm: Comm
) -> tuple[float, float]:
    """Hartree energy of a density that is divided over ranks, and Ewald energy of charges (N,), in eV;
    collective."""
    part = Part.of(density, grid, comm)
    waves = sphere_waves(grid, None, comm)
    hartree_term = hartree_of(coefficients_of(part, waves), waves, grid.volume)
    return hartree_term, ewald_energy_of(atoms, charges, comm)


def _warn_of_other_functionals(pseudopotentials: dict[str, Pseudopotential], functional: Functional) -> None:
    """QE allows it (input_dft), but far more often it is an oversight."""
    for value in pseudopotentials.values():
        if value.functional != functional.name:
            warnings.warn(
                f"{value.name} was made for {value.functional}, the energy is that of {functional.name}",
                stacklevel=3,
            )


def _terms(
    atoms: Atoms,
    symbols: list[str],
    field: torch.Tensor,
    grid: Grid,
    pseudopotentials: dict[str, Pseudopotential],
    charges: torch.Tensor,
    functional: Functional,
    ecutrho: float | None,
) -> dict[str, torch.Tensor]:
    sphere = GSphere(grid, ecutrho, field.device)
    positions = torch.tensor(atoms.positions, device=field.device)
    cell = torch.tensor(atoms.cell.array, device=field.device)
    coefficients = sphere.coefficients(field)
    core = core_coefficients(positions, symbols, sphere, pseudopotentials)
    exc, vxc_rho = exchange_correlation(coefficients, core, sphere, functional)
    return {
        "hartree": hartree(coefficients, sphere),
        "xc": exc,
        "vxc_rho": vxc_rho,
        "ewald": ewald(positions, cell, charges.to(field.device)),
    }


def _grid_of(atoms: Atoms, density: np.ndarray | torch.Tensor) -> Grid:
    shape = tuple(density.shape)
    if len(shape) != 3:
        raise InputError(f"the density must have the shape (nx, ny, nz), got {shape}")
    return Grid(atoms.cell.array, shape)


def _check_electrons(total: float, negative: float, n_electrons: float) -> None:
    """Refuse a density that cannot be that of these atoms."""
    if abs(total - n_electrons) > _ELECTRON_TOLERANCE * n_electrons:
        raise InputError(
            f"the density holds {total:.6g} electrons in the cell of the structure, its pseudopotentials "
            f"have {n_electrons:.6g}: wrong cell, wrong unit (1/A^3 is right), or not the valence density"
        )
    if -negative > _NEGATIVE_TOLERANCE * n_electrons:
        raise InputError(f"the density is negative: {-negative:.3g} of {n_electrons:.6g} electrons")


def _finite_energy(value: float | torch.Tensor, what: str) -> torch.Tensor:
    try:
        energy = torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"the {what} must be one number in eV, got {value!r}") from error
    if energy.numel() != 1 or not torch.isfinite(energy).all():
        raise InputError(f"the {what} must be one finite number in eV, got {value!r}")
    return energy.reshape(())
