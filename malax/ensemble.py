"""Several networks that were trained alike: their mean is the prediction, their spread its error bar.

The prediction is made from the mean LDOS. What follows from it is not linear (the Fermi level, Hartree,
XC), so every member also goes through the whole chain alone, with its own Fermi level, and the standard
deviation over the members is that of the members' own energies. All of them see one set of descriptors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from malax.calibration import Calibration
from malax.comm import Comm
from malax.errors import InputError
from malax.network import LDOSNetwork, NetworkConfig


class EnsembleNetwork(nn.Module):
    """The mean of several networks with the same features and energies.

    Raises
    ------
    InputError
        no member, or members with other numbers of features or energies than the first.
    """

    def __init__(self, members: Sequence[LDOSNetwork]) -> None:
        super().__init__()
        sizes = {(m.n_features, m.n_energies) for m in members}
        if len(sizes) != 1:
            raise InputError(f"the members of an ensemble must have one shape, got {sorted(sizes)}")
        self.members = nn.ModuleList(members)

    @property
    def n_features(self) -> int:
        """Number of features per point, F."""
        return self.first.n_features

    @property
    def n_energies(self) -> int:
        """Number of energies of the LDOS, E."""
        return self.first.n_energies

    @property
    def first(self) -> LDOSNetwork:
        """The first member."""
        return self.members[0]  # type: ignore[return-value]

    @property
    def config(self) -> NetworkConfig:
        """The description of the first member."""
        return self.first.config

    def forward(self, features: Tensor) -> Tensor:
        """Mean LDOS (P, E) in 1/(eV A^3) from raw features (P, F)."""
        return torch.stack([member(features) for member in self.members]).mean(dim=0)


def members_of(network: nn.Module) -> list[LDOSNetwork]:
    """The networks that an emulator's network consists of: one, or the members of an ensemble."""
    found = list(network.members) if isinstance(network, EnsembleNetwork) else [network]
    return found  # type: ignore[return-value]


@dataclass(eq=False)
class Spread:
    """What the members of an ensemble say of one structure, each for itself.

    Standard deviations are multiplied with the factors of ``calibration``, if there is one; what the members
    themselves say is not.

    Attributes
    ----------
    energies : term -> (k,) eV, the names of `malax.energies.Energies` and ``internal``
    fermi_levels : (k,) eV
    dos_std : (E,) standard deviation of the DOS in 1/eV
    density_std : standard deviation of the density in 1/A^3, laid out as the result's density
    density_std_mean : its mean over the whole grid
    calibration : None if the standard deviations are those of the members as they are
    """

    energies: dict[str, np.ndarray]
    fermi_levels: np.ndarray
    dos_std: np.ndarray
    density_std: np.ndarray
    density_std_mean: float
    calibration: Calibration | None = None

    def calibrated(self, calibration: Calibration) -> Spread:
        """The same with error bars multiplied with factors that were measured; of one that is plain."""
        return replace(
            self,
            dos_std=self.dos_std * calibration.dos,
            density_std=self.density_std * calibration.density,
            density_std_mean=self.density_std_mean * calibration.density,
            calibration=calibration,
        )

    @property
    def n_members(self) -> int:
        """Number of members, k."""
        return len(self.fermi_levels)

    @property
    def std(self) -> dict[str, float]:
        """Standard deviation of each energy in eV."""
        known = {} if self.calibration is None else self.calibration.energies
        return {term: known.get(term, 1.0) * deviation(values) for term, values in self.energies.items()}

    @property
    def fermi_level_std(self) -> float:
        """Standard deviation of the Fermi level in eV."""
        factor = 1.0 if self.calibration is None else self.calibration.fermi_level
        return factor * deviation(self.fermi_levels)

    def minus(self, other: Spread, weights: tuple[float, float] = (1.0, 1.0)) -> dict[str, float]:
        """Standard deviations (eV) of the differences of energies between two structures of one ensemble.

        Member by member: what all members get wrong alike for both structures drops out. ``weights`` multiply
        the energies of this and the other structure, (1/N, 1/M) for differences per atom.

        Raises
        ------
        InputError
            the other comes from an ensemble of another size.
        """
        if self.n_members != other.n_members:
            raise InputError(
                "differences need predictions of one ensemble, got "
                f"{self.n_members} and {other.n_members} members"
            )
        terms = self.energies.keys() & other.energies.keys()
        a, b = weights
        known = {} if self.calibration is None else self.calibration.differences
        return {
            t: known.get(t, 1.0) * deviation(a * self.energies[t] - b * other.energies[t])
            for t in sorted(terms)
        }

    def as_json(self) -> dict[str, object]:
        """Standard deviations, and the energies of every member, which differences need."""
        return {
            "members": self.n_members,
            "calibrated": self.calibration is not None,
            "energies_std": self.std,
            "fermi_level_std": self.fermi_level_std,
            "energies": {term: values.tolist() for term, values in self.energies.items()},
            "fermi_levels": self.fermi_levels.tolist(),
            "dos_std_max": float(self.dos_std.max()),
            "density_std_mean": self.density_std_mean,
            "calibration": None if self.calibration is None else self.calibration.to_plain(),
        }


def deviation(values: np.ndarray) -> float:
    """Standard deviation of a sample (k - 1 in the denominator), k > 1."""
    return float(np.std(values, ddof=1))


def mean_over_grid(mine: np.ndarray, n_points: int, comm: Comm) -> float:
    """The mean of a field of ``n_points`` points, of which each rank has some; collective."""
    return float(comm.allreduce(np.array([mine.sum()]))[0]) / n_points


def energies_by_member(each: Sequence[Mapping[str, float | None]]) -> dict[str, np.ndarray]:
    """Term -> (k,), of the terms that every member has."""
    return {
        term: np.array([one[term] for one in each], dtype=np.float64)
        for term in each[0]
        if all(one[term] is not None for one in each)
    }
