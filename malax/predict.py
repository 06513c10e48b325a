"""From the passes over the grid to density, observables and energies.

Nothing of size (points x features) or (points x energies) is held for the whole grid (unless the LDOS
is asked for). The density needs the Fermi level and the Fermi level needs the whole DOS, so

1. a first pass over a grid three times coarser gives mu_0;
2. the main pass reduces the LDOS of each tile to its DOS and to the density at a few chemical potentials
   around mu_0, and the density at the final mu is interpolated between them.

The interpolation replaces the weights w(mu) by w~ = sum_k L_k(mu) w(mu_k), which are known, so its error is
not estimated but bounded: for a non-negative LDOS the mean absolute error of the density, relative to its
mean, is at most D.|w - w~| / N. Above `TOLERANCE`, or with mu outside the nodes, a third pass with the exact
weights follows. Members of an ensemble have Fermi levels of their own, which often need it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from ase import Atoms

from malax import energies, observables
from malax.comm import Comm
from malax.energies import Energies
from malax.errors import InputError
from malax.grid import Grid
from malax.streaming import Chain, Clock, Progress, Reduced
from malax.units import BOLTZMANN

if TYPE_CHECKING:
    from malax.emulator import Emulator

_BLOCK = 1 << 13
N_NODES = 7
TOLERANCE = 1e-6
"""Largest relative error of the density from the interpolation in mu."""


class Final(NamedTuple):
    """What stands at the end for one temperature: observables of the DOS and this rank's density (n,).

    Of an ensemble ``members`` holds the same of each member; empty for one network.
    """

    observables: Any
    density: np.ndarray
    interpolation: dict[str, Any]
    members: tuple[Final, ...] = ()


@dataclass
class Physics:
    """The observables of one prediction: electrons, kernel, correction."""

    energy_grid: np.ndarray
    n_electrons: float
    variance: float
    unbroaden: bool

    def from_dos(self, dos: np.ndarray, temperature: float) -> Any:
        return observables.from_dos(
            dos, self.energy_grid, temperature, self.n_electrons, self.variance, self.unbroaden
        )

    def weights(self, levels: Sequence[float] | np.ndarray, temperature: float) -> np.ndarray:
        """Number weights (K, E) at several Fermi levels."""
        mu = np.asarray(levels, dtype=np.float64)
        weights = observables.number_weights(self.energy_grid, mu, temperature, self.variance, self.unbroaden)
        return weights.numpy()


def run(
    chain: Chain,
    physics: Physics,
    grid: Grid,
    temperatures: Sequence[float],
    keep_ldos: bool,
    progress: Progress | None,
) -> tuple[Reduced, list[Final]]:
    """All passes: the density and the observables at each temperature (K)."""
    with chain.clock("first pass"):
        coarse = _first_pass(chain, grid)

    def level(kelvin: float) -> float:
        return physics.from_dos(coarse, kelvin).fermi_level

    for temperature in temperatures:
        check_complete(chain.emulator, temperature, level)
    start = [level(temperature) for temperature in temperatures]
    nodes = chain.comm.bcast([chebyshev(mu, t) for mu, t in zip(start, temperatures, strict=True)])
    weights = np.concatenate([physics.weights(mu, t) for mu, t in zip(nodes, temperatures, strict=True)])
    reduced = chain.reduce(grid, weights, keep_ldos, progress, "main")
    table = [
        [
            interpolate(
                physics,
                dos,
                reduced.values[:, members, i * N_NODES : (i + 1) * N_NODES],
                nodes[i],
                temperature,
            )
            for dos, members in _curves(reduced)
        ]
        for i, temperature in enumerate(temperatures)
    ]
    # the largest array of a prediction: it goes before the next comes
    reduced = reduced._replace(values=np.empty((0, 0, 0)))
    _exact_where_needed(chain, physics, grid, temperatures, table, progress)
    return reduced, [row[0]._replace(members=tuple(row[1:])) for row in table]


def _curves(reduced: Reduced) -> list[tuple[np.ndarray, slice]]:
    """Every DOS (E,) with a Fermi level of its own, and the members whose mean it is.

    The first is the prediction's; those of the members of an ensemble follow.
    """
    k = len(reduced.member_dos)
    each = [(dos, slice(m, m + 1)) for m, dos in enumerate(reduced.member_dos)]
    return [(reduced.dos, slice(0, k)), *(each if k > 1 else [])]


def _exact_where_needed(
    chain: Chain,
    physics: Physics,
    grid: Grid,
    temperatures: Sequence[float],
    table: list[list[Final]],
    progress: Progress | None,
) -> None:
    """Another pass for the densities in ``table`` (temperatures x curves) that interpolation cannot give."""
    redo = chain.comm.bcast([[final.interpolation["redo"] for final in row] for row in table])
    # per temperature a column at the Fermi level of the mean, and one at each member's own
    columns = [(i, False) for i, row in enumerate(redo) if row[0]]
    columns += [(i, True) for i, row in enumerate(redo) if any(row[1:])]
    if not columns:
        return
    n_members = max(1, len(table[0]) - 1)

    def weights_of(member: int) -> np.ndarray:
        rows = []
        for i, own in columns:
            level = table[i][1 + member if own else 0].observables.fermi_level
            rows.append(physics.weights([level], temperatures[i]))
        return np.concatenate(rows)

    weights = np.stack([weights_of(m) for m in range(n_members)])
    values = chain.reduce(grid, weights, False, progress, "exact").values
    for column, (i, own) in enumerate(columns):
        for c in range(1, n_members + 1) if own else (0,):
            members = slice(c - 1, c) if own else slice(0, n_members)
            report = {**table[i][c].interpolation, "density_error": 0.0, "electron_error": 0.0}
            table[i][c] = Final(table[i][c].observables, values[:, members, column].mean(axis=1), report)


def _first_pass(chain: Chain, grid: Grid) -> np.ndarray:
    """The DOS (E,) on the coarse grid, from a run that was killed if there was one."""
    known = None if chain.long_run is None else chain.long_run.recalled("first")
    if known is not None:
        return known
    first = replace(chain, clock=Clock(), long_run=None)
    dos = first.reduce(coarse_grid(grid), np.zeros((0, len(chain.emulator.energy_grid)))).dos
    if chain.long_run is not None:
        chain.long_run.remember("first", dos)
    return dos


def coarse_grid(grid: Grid) -> Grid:
    """The grid of the first pass: a third of the points along each axis, but 8 where there are as many."""
    return Grid(grid.cell, tuple(max(min(n, 8), -(-n // 3)) for n in grid.shape))  # type: ignore[arg-type]


def chebyshev(center: float, temperature: float) -> np.ndarray:
    """`N_NODES` Chebyshev nodes (eV) around a Fermi level.

    The weights are analytic in mu up to i pi kT from the real axis; half of kT pi / 2 to each side makes
    seven nodes converge to 1e-8, and is far more than the first pass errs. 10 meV at T -> 0.
    """
    half_width = max(np.pi / 4 * BOLTZMANN * temperature, 0.01)
    return center + half_width * np.cos(np.pi * (np.arange(N_NODES) + 0.5) / N_NODES)


def lagrange(nodes: np.ndarray, x: float) -> np.ndarray:
    """Lagrange's coefficients (K,) of a value at ``x`` from values at ``nodes`` (K,)."""
    others = ~np.eye(len(nodes), dtype=bool)
    rows = [np.prod((x - nodes[o]) / (node - nodes[o])) for node, o in zip(nodes, others, strict=True)]
    return np.array(rows)


def interpolate(
    physics: Physics, dos: np.ndarray, values: np.ndarray, nodes: np.ndarray, temperature: float
) -> Final:
    """Observables from the whole DOS (E,), and the density (n,) at its Fermi level.

    ``values`` (n, k, K) are the densities of k members at the ``nodes`` (K,); their mean is interpolated.
    """
    found = physics.from_dos(dos, temperature)
    coefficients = lagrange(nodes, found.fermi_level)
    missing = physics.weights([found.fermi_level], temperature)[0]
    missing = missing - coefficients @ physics.weights(nodes, temperature)
    density = np.zeros(len(values))
    for start in range(0, len(values), _BLOCK):
        some = slice(start, start + _BLOCK)
        for coefficient, column in zip(coefficients, values[some].mean(axis=1).T, strict=True):
            density[some] += coefficient * column  # not BLAS: one order everywhere
    error = float(np.abs(dos) @ np.abs(missing)) / physics.n_electrons
    outside = not nodes.min() <= found.fermi_level <= nodes.max()
    report = {
        "first_fermi_level": float(nodes.mean()),
        "nodes": len(nodes),
        "density_error": error,
        "electron_error": float(dos @ missing),
        "redo": bool(outside or error > TOLERANCE),
    }
    return Final(found, density, report)


def check_complete(emulator: Emulator, temperature: float, level: Callable[[float], float]) -> None:
    """InputError if ``temperature`` (K) occupies energies above those that the model's data hold.

    ``level`` gives the Fermi level (eV) at a temperature; it is searched for the highest one allowed.
    """
    complete_to = emulator.info.complete_to

    def is_allowed(kelvin: float) -> bool:
        return kelvin <= observables.highest_temperature(emulator.energy_grid, complete_to, level(kelvin))

    if is_allowed(temperature):
        return
    ground = level(0.0)
    if ground >= complete_to:
        raise InputError(
            f"the Fermi level, {ground:.2f} eV, is not below {complete_to:.2f} eV, where the training "
            "data end: the model is not made for this structure"
        )
    low, high = 0.0, temperature
    while high - low > 0.5:
        middle = (low + high) / 2
        low, high = (middle, high) if is_allowed(middle) else (low, middle)
    raise InputError(
        f"{temperature:g} K occupies states above {complete_to:.2f} eV, where the training data of this "
        f"model end; the highest allowed temperature here is {np.floor(low):.0f} K"
    )


def total_energies(emulator: Emulator, atoms: Atoms, grid: Grid, final: Final, comm: Comm) -> Energies:
    """All terms (eV), the same on every rank; collective. Every rank does its part of the grid.

    Terms that cannot be had without pseudopotentials are None.
    """
    info, found = emulator.info, final.observables
    if set(atoms.get_chemical_symbols()) <= set(emulator.pseudopotentials):
        return energies.total_free_energy_of(
            atoms,
            final.density,
            grid,
            found.band_energy,
            found.entropy_term,
            emulator.pseudopotentials,
            info.xc,
            info.ecutrho,
            comm,
        )
    charges = np.array([info.valence[symbol] for symbol in atoms.get_chemical_symbols()])
    hartree, ewald = energies.electrostatics_of(atoms, final.density, grid, charges, comm)
    return Energies(band=found.band_energy, entropy_term=found.entropy_term, hartree=hartree, ewald=ewald)
