"""Losses through the physics: right values, right derivatives, unbiased estimates, the same on any ranks."""

from __future__ import annotations

import fakes
import numpy as np
import pytest
import torch

from malax.comm import SerialComm
from malax.dataset import Dataset
from malax.descriptors import Descriptor
from malax.energies import total_free_energy
from malax.loss import LossConfig, Ramp
from malax.network import LDOSNetwork
from malax.observables import electrons_at, from_ldos
from malax.physics_loss import UNITS, PhysicsConfig, PhysicsLoss

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("physics")
    # the energy grid is fine enough that no correction is large, the temperature high enough to see -TS
    made = [fakes.make_snapshot(folder / f"{i}.h5", i, shape=(9, 9, 9), temperature=3000.0) for i in range(2)]
    descriptor = Descriptor(twojmax=2, cutoff=3.0)  # type: ignore[call-arg]
    return Dataset.prepare(made, descriptor, folder / "cache", SerialComm())


class Perturbed(torch.nn.Module):
    """Stands for a network: DFT's LDOS of a snapshot, by row, times 1 + a shift of each energy."""

    def __init__(self, ldos: torch.Tensor, size: float = 0.02) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        smooth = torch.sin(torch.linspace(0, 5, ldos.shape[1]) + 1.0)
        local = torch.rand(len(ldos), 1, generator=generator)
        self.shift = torch.nn.Parameter(size * smooth.double())
        self.register_buffer("ldos", ldos.double())
        self.register_buffer("local", local.double())
        self.rows = torch.arange(len(ldos))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.ldos[self.rows] * (1 + self.shift * self.local[self.rows])


def table(dataset: Dataset, index: int) -> torch.Tensor:
    rows = dataset.rows[index]
    return torch.from_numpy(rows.read(0, rows.n_points)[:, rows.n_features :].copy())


def loss(dataset: Dataset, **settings: object) -> PhysicsLoss:
    config = PhysicsConfig(**settings)  # type: ignore[arg-type]
    return PhysicsLoss(dataset, config, torch.ones(2), SerialComm(), CPU)


def oracle(dataset: Dataset, index: int, network: Perturbed) -> dict[str, float]:
    """Errors per atom and unit, by the public functions, on the whole grid in its own order."""
    s, order = dataset.snapshots[index], dataset.rows[index].order
    found = []
    for ldos in (network.ldos, network.ldos * (1 + network.shift.detach() * network.local)):
        whole = np.empty((len(order), ldos.shape[1]))
        whole[order] = ldos.numpy()
        o = from_ldos(
            whole.reshape(*s.ldos_shape, -1), s.energy_grid, s.grid.volume, s.temperature, s.n_electrons,
            s.broadening_variance,
        )  # fmt: skip
        e = total_free_energy(
            s.atoms, o.density, o.band_energy, o.entropy_term, s.pseudopotentials, s.xc, s.ecutrho
        )
        electrons = electrons_at(o.dos, s.energy_grid, s.fermi_level, s.temperature)
        found.append((o.dos, electrons, o.band_energy, e.total_free))
    n = len(s.atoms)
    values = {t: (b - a) / n / UNITS[t] for t, a, b in zip(UNITS, *found, strict=True)}
    values["dos"] = np.sqrt(np.mean(values["dos"][dataset.sound[index]] ** 2))
    return {term: float(value) for term, value in values.items()}


@pytest.mark.parametrize("term", list(UNITS))
def test_values_and_derivatives(dataset: Dataset, term: str) -> None:
    """Whole snapshots: the public chain's value; the gradient is that of finite differences."""
    physics = loss(dataset, **{term: 2.0})
    sample = physics.sample(0, 0, 0)
    network = Perturbed(table(dataset, sample.snapshot))
    value = physics(network, sample, {})  # type: ignore[arg-type]
    assert physics.skipped == 0
    assert value.item() == pytest.approx(2.0 * oracle(dataset, sample.snapshot, network)[term] ** 2, rel=2e-4)
    value.backward()
    gradient = network.shift.grad
    assert gradient is not None
    for i in (4, 11):
        ends = []
        for step in (1e-3, -1e-3):
            network.shift.data[i] += step
            ends.append(2.0 * oracle(dataset, sample.snapshot, network)[term] ** 2)
            network.shift.data[i] -= step
        assert gradient[i].item() == pytest.approx((ends[0] - ends[1]) / 2e-3, rel=2e-3, abs=1e-5)


def test_dfts_own_ldos_has_no_error(dataset: Dataset) -> None:
    for points in (None, 300):
        physics = loss(dataset, dos=1.0, electrons=1.0, band=1.0, total_free=1.0, points=points)
        sample = physics.sample(0, 0, 0)
        network = Perturbed(table(dataset, sample.snapshot), 0.0)
        network.rows = sample.rows
        assert abs(physics(network, sample, {}).item()) < 1e-5  # type: ignore[arg-type]


@pytest.mark.parametrize("term", list(UNITS))
def test_random_points_estimate_without_bias(dataset: Dataset, term: str) -> None:
    """The mean over many samples is the square of the whole snapshot's error, not more."""
    physics = loss(dataset, **{term: 1.0}, points=120)
    network = Perturbed(table(dataset, 0), 0.01)
    exact = oracle(dataset, 0, network)[term] ** 2
    samples = [s for step in range(0, 3000, 10) if (s := physics.sample(1, 0, step)).snapshot == 0]
    values = []
    for sample in samples:
        network.rows = sample.rows
        values.append(physics(network, sample, {}).item())  # type: ignore[arg-type]
    error = np.std(values) / np.sqrt(len(values))
    assert len(values) > 120 and error < 0.1 * exact
    assert np.mean(values) == pytest.approx(exact, abs=4 * error + 0.02 * exact)


def test_each_step_takes_another_snapshot(dataset: Dataset) -> None:
    physics = loss(dataset, dos=1.0, every=5)
    assert [physics.due(step) for step in range(6)] == [True, *[False] * 4, True]
    assert {physics.sample(0, 2, step).snapshot for step in (0, 5)} == {0, 1}
    assert not loss(dataset, every=1).due(0)
    some = loss(dataset, dos=1.0, points=100)
    one, again, other = (some.sample(0, 0, step).rows for step in (0, 0, 20))
    assert torch.equal(one, again) and not torch.equal(one, other) and len(one) == 100
    for start in range(0, 6000, 10):  # also around the end of the file
        sample = some.sample(3, 0, start)
        rows = dataset.rows[sample.snapshot]
        whole = rows.read(0, rows.n_points)
        np.testing.assert_array_equal(sample.features, whole[sample.rows][:, : rows.n_features])


def test_no_fermi_level_is_left_out_and_counted(dataset: Dataset) -> None:
    physics = loss(dataset, band=1.0, dos=1.0)
    sample = physics.sample(0, 0, 0)
    network = LDOSNetwork(sample.features.shape[1], [4], sample.ldos.shape[1])
    network.ldos_scale.mul_(1e-6)
    value = physics(network, sample, {})
    assert physics.skipped == 1 and torch.isfinite(value) and value.item() > 0


def test_factors() -> None:
    ramp = Ramp(start=2.0, full=6.0)
    assert [ramp.factor(p) for p in (0, 2, 3, 6, 9)] == [0, 0, 0.25, 1, 1]
    assert [Ramp(start=2, full=2).factor(p) for p in (1.9, 2)] == [0, 1]
    config = LossConfig(density=1.0, ramps={"density": ramp})
    assert config.factor("density", 3) == 0.25 and config.factor("density", None) == 1.0
    assert config.factor("band", 0) == 1.0
    with pytest.raises(ValueError, match="must not be below start"):
        Ramp(start=3, full=2)
    with pytest.raises(ValueError):
        LossConfig(ramps={"densities": ramp})  # type: ignore[dict-item]
