"""Errors against DFT: snapshots whose LDOS the model predicts exactly, floor, baselines, groups."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from fakes import make_snapshot
from models import tiny_model, training_snapshot

from malax import plots
from malax.baselines import baselines
from malax.energies import total_free_energy
from malax.errors import InputError
from malax.evaluate import evaluate_snapshot, from_own_ldos, group, seen_as
from malax.fields import resample
from malax.io.snapshot import Snapshot, save_snapshot

SHAPE = (10, 10, 10)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory) -> Snapshot:
    return make_snapshot(tmp_path_factory.mktemp("s") / "some.h5", 3, shape=SHAPE)


def as_predicted(model, snapshot: Snapshot, path, stride: int = 1) -> Snapshot:
    """A snapshot in which DFT says what the model predicts."""
    result = model.predict(snapshot.atoms, snapshot.temperature, SHAPE, ldos=True)
    ldos = result.ldos[::stride, ::stride, ::stride]
    own = dataclasses.replace(
        snapshot,
        fermi_level=result.fermi_level,
        energies={k: v for k, v in result.energies.as_dict().items() if v is not None},
        density=result.density,
        ldos_shape=ldos.shape[:3],
        ecutrho=None or snapshot.ecutrho,
    )
    energies = total_free_energy(
        own.atoms, own.density, own.energies["band"], own.energies["entropy_term"], own.pseudopotentials,
        ecutrho=own.ecutrho,
    )  # fmt: skip
    own = dataclasses.replace(own, energies=energies.as_dict())
    return save_snapshot(path, own, [ldos], keep_bits=None)


def test_a_perfect_prediction(model, snapshot, tmp_path):
    own = as_predicted(model, snapshot, tmp_path / "own.h5")
    emulator = type(model)(
        model.network,
        model.info.model_copy(update={"ecutrho": own.ecutrho}),
        model.energy_grid,
        model.pseudopotentials,
    )
    one = evaluate_snapshot(emulator, own)
    assert set(one.errors) == {"band", "entropy_term", "hartree", "xc", "total_free"}
    for errors in (one.errors, one.floor_errors):
        assert errors == pytest.approx(dict.fromkeys(errors, 0.0), abs=1e-2)
    assert one.fermi_level_error == pytest.approx(0.0, abs=1e-3)
    assert one.density_mape == pytest.approx(0.0, abs=1e-3)
    assert one.density_error == pytest.approx(0.0, abs=1e-3)
    assert one.electrons_at_dft_level == pytest.approx(one.floor_electrons_at_dft_level, abs=1e-5)


def test_errors_are_predicted_minus_dft_per_atom(model, snapshot):
    one = evaluate_snapshot(model, snapshot)
    result = model.predict(snapshot.atoms, 1000.0, SHAPE)
    for term in ("band", "total_free", "xc"):
        wanted = 1e3 * (getattr(result.energies, term) - snapshot.energies[term]) / 4
        assert one.errors[term] == pytest.approx(wanted, abs=1e-6)
    assert one.fermi_level_error == pytest.approx(1e3 * (result.fermi_level - snapshot.fermi_level))
    difference = np.abs(result.density - snapshot.density)
    assert one.density_mape == pytest.approx(100 * np.mean(difference / snapshot.density))
    assert one.density_error == pytest.approx(100 * difference.sum() / snapshot.density.sum(), rel=1e-6)
    # the fake's density and energies come from its own LDOS
    assert one.floor_errors == pytest.approx(dict.fromkeys(one.floor_errors, 0.0), abs=1e-3)
    assert json.loads(json.dumps(one.as_json()))["name"] == "some"


def test_floor_of_an_ldos_on_a_coarser_grid(model, snapshot, tmp_path):
    own = as_predicted(model, snapshot, tmp_path / "own.h5")
    coarse = as_predicted(model, snapshot, tmp_path / "coarse.h5", stride=2)
    energies, density, level = from_own_ldos(coarse)
    assert coarse.ldos_shape == (5, 5, 5) and density.shape == SHAPE
    full = from_own_ldos(own)[1]
    # the density that the coarse points carry, whatever the waves they cannot hold
    np.testing.assert_allclose(density[::2, ::2, ::2] / full[::2, ::2, ::2], 1.0, atol=0.05)
    np.testing.assert_allclose(resample(density, (5, 5, 5)), density[::2, ::2, ::2], rtol=1e-9)
    assert energies.total_free is not None and abs(level - own.fermi_level) < 0.1


def test_seen_by_hash_or_by_energy(model, snapshot):
    per_atom = {k: v / 4 for k, v in snapshot.energies.items()}

    def info(**changes):
        return model.info.model_copy(
            update={
                "training_snapshots": (
                    training_snapshot("a", -58.0),
                    training_snapshot("b", -57.0, **changes),
                )
            }
        )

    assert seen_as(model.info, snapshot) is None
    assert seen_as(info(sha256=snapshot.sha256), snapshot) == "training"
    assert seen_as(info(sha256=snapshot.sha256, role="validation"), snapshot) == "validation"
    assert seen_as(info(energies=per_atom), snapshot) == "training"  # written anew from the same run
    assert seen_as(info(energies=per_atom, n_atoms=8), snapshot) is None


def test_baselines(model, snapshot):
    """The mean at this temperature, and a fit that is exact for energies that are linear."""
    rng = np.random.default_rng(0)

    def linear(ewald, volume, temperature):
        return 3.0 + 0.2 * ewald - 1.5 * volume + 1e-4 * temperature

    training = []
    for i in range(9):
        ewald, volume, kelvin = -73 + rng.normal(), 16.6 + rng.normal(), (1000.0, 300.0)[i % 2]
        energies = {"band": float(i), "total_free": linear(ewald, volume, kelvin), "ewald": ewald}
        training.append(training_snapshot(str(i), 0, volume=volume, temperature=kelvin, energies=energies))
    training.append(training_snapshot("v", 1e3, role="validation"))
    info = model.info.model_copy(update={"training_snapshots": tuple(training)})
    mean, fit = baselines(info, snapshot)
    assert mean["band"] == pytest.approx(4 * np.mean([0, 2, 4, 6, 8]))
    volume = snapshot.grid.volume / 4
    assert fit["total_free"] == pytest.approx(
        4 * linear(snapshot.energies["ewald"] / 4, volume, 1000.0), rel=1e-9
    )
    other = dataclasses.replace(snapshot, temperature=500.0)
    assert baselines(info, other)[0] == {}  # no training snapshot at this temperature
    assert set(baselines(info, other)[1]) == {"band", "total_free"}
    assert baselines(info.model_copy(update={"training_snapshots": ()}), snapshot) == ({}, {})


def test_fit_with_columns_that_do_not_vary(model, snapshot):
    """One temperature, one volume: the fit falls back on what varies, and does not blow up."""
    energies = [{"band": 1.0 + x, "total_free": x, "ewald": -73 + 2 * x} for x in (0.0, 0.5, 1.0)]
    training = tuple(training_snapshot(str(i), 0, energies=e) for i, e in enumerate(energies))
    fit = baselines(model.info.model_copy(update={"training_snapshots": training}), snapshot)[1]
    assert fit["total_free"] == pytest.approx(4 * (snapshot.energies["ewald"] / 4 + 73) / 2)


def test_groups(model, snapshot):
    one = evaluate_snapshot(model, snapshot)
    low = dataclasses.replace(one, errors={"band": -3.0, "total_free": 1.0})
    high = dataclasses.replace(one, errors={"band": 5.0, "total_free": 1.0}, temperature=1000.1)
    other = dataclasses.replace(one, n_atoms=32)
    seen = dataclasses.replace(low, seen="training")
    groups = group([low, other, high, seen])
    assert [(g.temperature, g.n_atoms, g.seen, g.n_snapshots) for g in groups] == [
        (1000.0, 4, False, 2),
        (1000.0, 4, True, 1),
        (1000.0, 32, False, 1),
    ]
    assert groups[0].signed["band"] == 1.0 and groups[0].absolute["band"] == 4.0
    assert groups[0].signed["density_mape"] == pytest.approx(one.density_mape)
    assert groups[0].signed["mean_band"] == pytest.approx(one.mean_errors["band"])
    assert groups[0].signed["floor_band"] == pytest.approx(one.floor_errors["band"])


def test_plots_show_these_numbers(model, snapshot):
    one = evaluate_snapshot(model, snapshot)
    figure = plots.against_dft(one)
    axes = {ax.get_title(): ax for ax in figure.get_axes() if ax.get_title()}
    lines = {line.get_label(): line for line in axes["some: 4 atoms, 1000 K"].get_lines()}
    np.testing.assert_allclose(lines["DFT"].get_ydata(), snapshot.dos / 4)
    np.testing.assert_allclose(lines["malax"].get_ydata(), one.curves["dos"] / 4)
    shown = np.asarray(axes["density, DFT, z = 0.5"].collections[0].get_array()).reshape(11, 11)
    np.testing.assert_allclose(shown[:-1, :-1], snapshot.density[:, :, 5])
    assert f"malax - DFT (MAPE {one.density_mape:.2f} %)" in axes
    figure = plots.parity([one, dataclasses.replace(one, name="b", seen="training")])
    left, right = figure.get_axes()
    assert "seen" in right.get_title()
    assert [t.get_text() for t in right.get_xticklabels()] == ["some", "b*"]
    point = left.get_lines()[0]
    assert point.get_ydata()[0] - point.get_xdata()[0] == pytest.approx(one.errors["total_free"])
    bare = dataclasses.replace(one, curves={k: v for k, v in one.curves.items() if "plane" not in k})
    assert len(plots.against_dft(bare).get_axes()) == 1


def test_refuses_what_cannot_be_compared(model, snapshot):
    other = dataclasses.replace(snapshot.pseudopotentials["Al"], sha256="other", name="Al.other.UPF")
    changed = dataclasses.replace(snapshot, pseudopotentials={"Al": other})
    with pytest.raises(InputError, match="another pseudopotential of Al .Al.other.UPF"):
        evaluate_snapshot(model, changed)
    with pytest.raises(InputError, match="highest allowed"):
        evaluate_snapshot(model, dataclasses.replace(snapshot, temperature=30000.0))
