"""From the spread of an ensemble's members to error bars that hold.

Members that are trained alike are wrong alike, so their spread is too small. How much too small is measured
on snapshots with DFT values, and each kind of quantity gets one factor:

- *density and DOS* have very many values, and where there are few members the spread at a single one is a
  poor estimate, so that error / spread is far from normal. The factor is that with which 95.45 % of the
  values lie within two standard deviations, as they would in a normal distribution: the quantile of
  |error| / spread, divided by two (split conformal prediction; Angelopoulos and Bates,
  Found. Trends Mach. Learn. 16, 494 (2023)).
- *energies*, per term, *Fermi levels*, and *differences* of energies between structures have one value per
  snapshot or pair of snapshots, too few for a quantile, and a mean of (error / spread)^2 would follow the one
  snapshot on which the members happen to agree. The factor is the ratio of the root mean squares,
  sqrt(sum error^2 / sum spread^2), per atom. From n snapshots it is uncertain by 1 / sqrt(2 n).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

TWO_SIGMA = 0.9545
"""Fraction of normally distributed values within two standard deviations."""
EDGES = 2.0 * 2.0 ** (np.arange(-20 * 64, 20 * 64 + 1) / 64)
"""Bins of |error| / spread, 1 % wide; 2 is one of the edges."""
_TWO = 20 * 64


@dataclass(frozen=True, eq=False)
class Calibration:
    """What the spread of the members is multiplied with.

    Attributes
    ----------
    energies : term -> factor; differences : term -> factor, for differences per atom between structures
    fermi_level, density, dos : factors
    snapshots : names of the snapshots from which they come
    """

    energies: Mapping[str, float]
    differences: Mapping[str, float]
    fermi_level: float
    density: float
    dos: float
    snapshots: tuple[str, ...]

    def to_plain(self) -> dict[str, Any]:
        """Plain values, for a model's header or a result's file."""
        return {**vars(self), "snapshots": list(self.snapshots)}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Calibration:
        """The inverse of `to_plain`.

        KeyError, TypeError or ValueError if something is missing or no factor.
        """
        tables = [{t: float(f) for t, f in plain[name].items()} for name in ("energies", "differences")]
        level, density, dos = (float(plain[name]) for name in ("fermi_level", "density", "dos"))
        for factor in (*tables[0].values(), *tables[1].values(), level, density, dos):
            if not (np.isfinite(factor) and factor >= 0):
                raise ValueError(f"calibration factor {factor}")
        return cls(tables[0], tables[1], level, density, dos, tuple(map(str, plain["snapshots"])))


@dataclass(eq=False)
class Scores:
    """The errors of one snapshot beside the members' spread.

    Attributes
    ----------
    name, n_atoms : of the snapshot
    errors, stds : term -> eV, predicted minus DFT, and the error bar as it stands (calibrated or not)
    members : term -> (k,) eV, what each member says
    fermi_level : error and error bar in eV
    density, dos : (B,) how many values have |error| / error bar in each bin of `EDGES`
    """

    name: str
    n_atoms: int
    errors: Mapping[str, float]
    stds: Mapping[str, float]
    members: Mapping[str, np.ndarray]
    fermi_level: tuple[float, float]
    density: np.ndarray
    dos: np.ndarray
    z: dict[str, float] = field(init=False)
    """error / error bar: terms, and ``fermi_level``; what no member doubts (Ewald) is left out."""

    def __post_init__(self) -> None:
        pairs = {t: (e, self.stds[t]) for t, e in self.errors.items()} | {"fermi_level": self.fermi_level}
        self.z = {name: error / std for name, (error, std) in pairs.items() if std > 1e-9}

    def as_json(self) -> dict[str, Any]:
        """z of each energy, and the fractions of density points and DOS values within two error bars."""
        return {
            "z": self.z,
            "density_within_2_sigma": within(self.density),
            "dos_within_2_sigma": within(self.dos),
            "density_points": int(self.density.sum()),
            "dos_values": int(self.dos.sum()),
        }


def histogram(errors: np.ndarray, stds: np.ndarray) -> np.ndarray:
    """(B,) counts of |errors| / stds (equal shapes) in `EDGES`; what lies beyond is in the last bins."""
    z = np.abs(errors) / np.maximum(stds, 1e-300)
    return np.histogram(np.clip(z, EDGES[0], EDGES[-1]), EDGES)[0].astype(np.float64)


def within(counts: np.ndarray) -> float | None:
    """Fraction within two error bars; None of nothing."""
    total = counts.sum()
    return float(counts[:_TWO].sum() / total) if total else None


def pooled(scores: Sequence[Scores]) -> float | None:
    """The fraction within two error bars of all density points and DOS values of all snapshots."""
    return within(np.sum([s.density + s.dos for s in scores], axis=0)) if scores else None


def fit(scores: Sequence[Scores]) -> Calibration:
    """The factors that the errors ask for; ``scores`` of an ensemble that is not calibrated yet."""
    terms = [t for t in scores[0].errors if any(s.stds[t] > 1e-9 for s in scores)]
    levels = np.array([s.fermi_level for s in scores])
    return Calibration(
        energies={
            t: _ratio([s.errors[t] / s.n_atoms for s in scores], [s.stds[t] / s.n_atoms for s in scores])
            for t in terms
        },
        differences={t: _difference_factor(scores, t) for t in terms} if len(scores) > 1 else {},
        fermi_level=_ratio(levels[:, 0], levels[:, 1]),
        density=_quantile_factor(np.sum([s.density for s in scores], axis=0)),
        dos=_quantile_factor(np.sum([s.dos for s in scores], axis=0)),
        snapshots=tuple(s.name for s in scores),
    )


def _ratio(errors: Sequence[float] | np.ndarray, stds: Sequence[float] | np.ndarray) -> float:
    """Root mean square error over root mean square spread; 1 without any spread, which nothing can scale."""
    spread = np.sum(np.square(stds))
    return float(np.sqrt(np.sum(np.square(errors)) / spread)) if spread > 0 else 1.0


def _difference_factor(scores: Sequence[Scores], term: str) -> float:
    """The same over all pairs of snapshots, for differences per atom."""
    errors, stds = [], []
    for a, b in itertools.combinations(scores, 2):
        errors.append(a.errors[term] / a.n_atoms - b.errors[term] / b.n_atoms)
        stds.append(float(np.std(a.members[term] / a.n_atoms - b.members[term] / b.n_atoms, ddof=1)))
    return _ratio(errors, stds)


def _quantile_factor(counts: np.ndarray) -> float:
    """By what the spread must grow for `TWO_SIGMA` of the values to lie within two of it; 1 of nothing."""
    total = counts.sum()
    if not total:
        return 1.0
    reached = int(np.searchsorted(np.cumsum(counts), TWO_SIGMA * total))
    return float(EDGES[reached + 1] / 2.0)
