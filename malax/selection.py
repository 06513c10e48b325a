"""Which structures of a trajectory to compute: few that differ, rather than many that are alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms

from malax.descriptors import Descriptor
from malax.errors import InputError
from malax.grid import Grid

PROBES = 6
"""Grid points along each axis at which a structure is described for its selection."""
_DESCRIPTOR = Descriptor(twojmax=6, cutoff=5.0, rfac0=0.99363, rmin0=0.0)


def fingerprint(atoms: Atoms) -> np.ndarray:
    """Mean and standard deviation over the cell of each bispectrum component, (2 F,).

    With the elements weighted by their place in the alphabet, so that their exchange shows.
    """
    elements = sorted(set(atoms.get_chemical_symbols()))
    weights = {element: 1.0 + 0.5 * i for i, element in enumerate(elements)}
    descriptor = _DESCRIPTOR.model_copy(update={"weights": weights})
    features = descriptor.compute(atoms, Grid(atoms.cell.array, (PROBES,) * 3), dtype="float64")
    return np.concatenate([features.mean(axis=0), features.std(axis=0)])


def farthest(structures: Sequence[Atoms], number: int) -> list[int]:
    """Indices of ``number`` structures by farthest-point sampling of their fingerprints, ascending.

    The first is the one nearest the mean; each next one is farthest from all chosen so far. Components are
    scaled to unit variance. Nothing is random.

    InputError if there are fewer structures.
    """
    if not 1 <= number <= len(structures):
        raise InputError(f"{number} structures are to be selected, there are {len(structures)}")
    points = np.array([fingerprint(atoms) for atoms in structures])
    spread = points.std(axis=0)
    points = (points - points.mean(axis=0)) / np.where(spread > 1e-9 * np.abs(points).max(), spread, np.inf)
    chosen = [int((points**2).sum(axis=1).argmin())]
    distance = np.full(len(points), np.inf)
    while len(chosen) < number:
        distance = np.minimum(distance, ((points - points[chosen[-1]]) ** 2).sum(axis=1))
        distance[chosen] = -1.0
        chosen.append(int(distance.argmax()))
    return sorted(chosen)
