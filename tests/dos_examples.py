"""Densities of states on one energy grid, for the tests of what follows from them."""

from __future__ import annotations

import numpy as np

GRID = np.linspace(-6.0, 12.0, 181)
SPACING = 0.1
VARIANCE = 0.02


def smooth_ldos(shape: tuple[int, ...] = (3, 4, 5), seed: int = 0) -> np.ndarray:
    """A positive LDOS: three bands whose weights and centres depend on the point."""
    rng = np.random.default_rng(seed)
    ldos = np.zeros((*shape, len(GRID)))
    for centre, width in ((-2.0, 1.5), (3.0, 2.0), (7.0, 2.5)):
        weight = rng.uniform(0.01, 0.05, shape)[..., None]
        shift = rng.normal(0, 0.3, shape)[..., None]
        ldos += weight * np.exp(-(((GRID - centre - shift) / width) ** 2))
    return ldos


def free_electron_dos() -> np.ndarray:
    return 1.3 * np.sqrt(np.clip(GRID + 5.0, 0, None))


def spiky_dos() -> np.ndarray:
    """Narrow peaks: the corrected number of electrons is not monotonic."""
    return sum(np.exp(-(((GRID - e) / 0.25) ** 2)) for e in (-4.0, -2.2, 0.3, 1.1, 4.0))
