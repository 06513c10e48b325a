"""Hartree, XC and core charge of a density that is divided over ranks.

The formulas are those of `hartree`, `xc` and `core`, which work on whole arrays and are differentiable.

The density goes to the layout of the FFT once. XC is done in rounds of planes, and within them in chunks of
points, so that neither gradients nor the finer grid that ``ecutrho`` may need ever exist as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms

from malax.comm import Comm
from malax.energies.core import form_factor
from malax.energies.functionals import Functional
from malax.energies.slab_factors import structure_factors
from malax.energies.sphere import cutoff_g2
from malax.energies.xc import CHUNK, sums_over_points
from malax.errors import InputError
from malax.fft import Transform, Waves, as_slab, rounds_for
from malax.grid import Grid
from malax.io.upf import Pseudopotential
from malax.units import BOHR, COULOMB, HARTREE


@dataclass(frozen=True)
class Part:
    """This rank's part of a density, and where the others' are.

    values : (n,) float64 in 1/A^3, the flat points ``bounds[rank]`` to ``bounds[rank + 1]``
    bounds : (P + 1,)
    """

    values: np.ndarray
    grid: Grid
    bounds: np.ndarray
    comm: Comm

    @classmethod
    def of(cls, values: np.ndarray, grid: Grid, comm: Comm) -> Part:
        """Collective. InputError if the parts of all ranks are not as many points as the grid has, or for a
        density that is not finite."""
        flat = np.ascontiguousarray(values, dtype=np.float64).reshape(-1)
        bad = int((~np.isfinite(flat)).sum())
        lengths, bads = comm.allgatherv(np.array([[len(flat), bad]])).T
        if lengths.sum() != grid.n_points:
            raise InputError(f"the density has {lengths.sum()} points, the grid {grid.shape}")
        if bads.sum():
            raise InputError(f"the density is not finite at {bads.sum()} of {grid.n_points} grid points")
        return cls(flat, grid, np.concatenate([[0], np.cumsum(lengths)]), comm)

    def total(self, negative_only: bool = False) -> float:
        """Electrons of all ranks, or the negative ones only; collective."""
        mine = np.minimum(self.values, 0.0).sum() if negative_only else self.values.sum()
        return float(self.comm.allgatherv(np.array([mine])).sum()) * self.grid.point_volume


def coefficients_of(density: Part, waves: Waves) -> np.ndarray:
    """Packed plane-wave coefficients of a density; collective."""
    found = np.zeros(waves.n, dtype=np.complex128)
    slab = as_slab(density.comm, density.values, density.bounds, density.grid.shape)
    Transform(waves, density.grid.shape).add_to(found, slab)
    return found


def sphere_waves(grid: Grid, ecutrho: float | None, comm: Comm) -> Waves:
    """The waves with hbar^2 |G|^2 / 2m <= ``ecutrho`` (eV); None: in the largest sphere inside the grid."""
    return Waves(grid.reciprocal, cutoff_g2(grid, ecutrho), comm)


def hartree(coefficients: np.ndarray, waves: Waves, volume: float) -> float:
    """E_H = 2 pi e^2 V sum_{G != 0} |n(G)|^2 / |G|^2 in eV, the same on all ranks; collective."""
    energy = 0.0
    for block in waves.blocks():
        some = coefficients[block.place]
        there = block.g2 > 0
        kernel = np.where(block.mz > 0, 2.0, 1.0) / np.where(there, block.g2, np.inf)
        energy += float((kernel * (some.real**2 + some.imag**2)).sum())
    total = waves.comm.allgatherv(np.array([energy])).sum()
    return float(2 * math.pi * COULOMB * volume * total)


def core_coefficients(
    atoms: Atoms, waves: Waves, pseudopotentials: Mapping[str, Pseudopotential]
) -> np.ndarray | None:
    """Packed coefficients of the core charge; None if no element has one. Collective."""
    symbols = np.array(atoms.get_chemical_symbols())
    scaled = atoms.positions @ np.linalg.inv(atoms.cell.array)
    total = None
    for symbol in sorted(set(symbols)):
        if pseudopotentials[symbol].core_density is None:
            continue
        mine = scaled[symbols == symbol]
        factors = structure_factors(mine, np.full(len(mine), 1 / atoms.get_volume()), waves)
        for block in waves.blocks():
            g = torch.from_numpy(np.sqrt(block.g2))
            radial = form_factor(pseudopotentials[symbol], g, waves.g2_max**0.5)
            factors[block.place] *= radial.numpy()
        total = factors if total is None else np.add(total, factors, out=total)
    return total


def exchange_correlation(
    density: np.ndarray, core: np.ndarray | None, waves: Waves, grid: Grid, functional: Functional
) -> tuple[float, float]:
    """E_xc[n + n_c] and int v_xc[n + n_c] n in eV from packed coefficients; collective.

    ``core`` is used up: it holds n + n_c afterwards.
    """
    arrays = [density] if core is None else [density, np.add(core, density, out=core)]
    transform = Transform(waves, grid.shape, rounds_for(grid.shape[0], waves.comm.size))
    sums = np.zeros(2)
    for round in range(transform.rounds):
        sheets = [transform.sheet(array, round) for array in arrays]
        if functional.is_gga:
            sheets += [transform.sheet(array, round, times_mx=True) for array in arrays]
        for fields in _point_fields(transform, sheets, len(arrays), functional.is_gga):
            sums += _sums(functional, fields)
        del sheets  # before the next ones are made
    exc, vxc = waves.comm.allgatherv(sums[None]).sum(axis=0) * (HARTREE / BOHR**3 * grid.point_volume)
    return float(exc), float(vxc)


def _point_fields(
    transform: Transform, sheets: Sequence[np.ndarray], n_arrays: int, is_gga: bool
) -> Iterator[list[np.ndarray]]:
    """n + n_c, n, and for a GGA |grad(n + n_c)|^2 and grad(n + n_c) . grad n, some planes at a time."""
    _, ny, nz = transform.shape
    b1, b2, b3 = transform.waves.reciprocal
    my = np.fft.fftfreq(ny, 1 / ny)[:, None]
    mz = np.fft.rfftfreq(nz, 1 / nz)[None, :]
    for spectra in transform.spectra(list(sheets)):
        fields = []
        if is_gga:
            sigma = product = np.zeros(1)
            for axis in range(3):
                across = 1j * (my * b2[axis] + mz * b3[axis])
                slopes = [
                    transform.field(b1[axis] * spectra[n_arrays + i] + across * spectra[i])
                    for i in range(n_arrays)
                ]
                sigma = sigma + slopes[-1] ** 2
                product = product + slopes[-1] * slopes[0]
            fields = [sigma, product]
        values = [transform.field(spectra[i]) for i in range(n_arrays)]
        yield [values[-1], values[0], *fields]


@torch.inference_mode()
def _sums(functional: Functional, fields: Sequence[np.ndarray]) -> np.ndarray:
    """Sums over points of f and of v n in Hartree/bohr^3."""
    columns = [torch.from_numpy(np.ascontiguousarray(field).reshape(-1)) for field in fields]
    total = np.zeros(2)
    for start in range(0, len(columns[0]), CHUNK):
        total += sums_over_points(functional, *(c[start : start + CHUNK] for c in columns)).numpy()
    return total
