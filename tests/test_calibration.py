"""Error bars: factors found again where the truth is known; from training to prediction and evaluation."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
from models import tiny_model
from test_train import settings

from malax import calibration, cli
from malax.calibration import Calibration, Scores, fit, histogram, pooled, within
from malax.comm import SerialComm
from malax.emulator import Emulator
from malax.ensemble import Spread
from malax.errors import FileError, InputError
from malax.evaluate import evaluate_snapshot
from malax.io.snapshot import Snapshot
from malax.result import Result
from malax.train import train
from malax.uncertainty import calibrate, scores_of

pytestmark = pytest.mark.filterwarnings("ignore::malax.checks.ModelDomainWarning")
K = 5
"""Members of the made-up ensembles."""


def made_up(rng: np.random.Generator, common: float, own: float, n_atoms: int = 4) -> Scores:
    """A snapshot whose members err by a common part and each by its own; the mean of them is predicted.

    True errors of the mean have the variance common^2 + own^2 / K, the members' spread has own^2.
    """

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        members = rng.normal(0.0, own, (K, n))
        return members.mean(axis=0) + rng.normal(0.0, common, n), members

    def counts(n: int) -> np.ndarray:
        error, members = draw(n)
        return histogram(error, members.std(axis=0, ddof=1))

    error, members = draw(2)
    per_cell = n_atoms * members
    stds = per_cell.std(axis=0, ddof=1)
    return Scores(
        name="x",
        n_atoms=n_atoms,
        errors={"band": n_atoms * error[0], "ewald": 0.0},
        stds={"band": float(stds[0]), "ewald": 0.0},
        members={"band": per_cell[:, 0], "ewald": np.zeros(K)},
        fermi_level=(float(error[1]), float(members[:, 1].std(ddof=1))),
        density=counts(1000),
        dos=counts(300),
    )


def test_the_factors_are_those_of_the_truth() -> None:
    """Members share three quarters of their error: their spread shows half of it, and the fit finds that."""
    rng = np.random.default_rng(1)
    common, own = 3.0, 2.0
    scores = [made_up(rng, common, own, 4 + 4 * (i % 3)) for i in range(200)]
    found = fit(scores)
    truth = np.sqrt(common**2 + own**2 / K) / own
    assert found.energies == {"band": pytest.approx(truth, rel=0.1)}
    assert found.fermi_level == pytest.approx(truth, rel=0.1)
    # differences: common errors here are independent of the structure, so they do not drop out
    assert found.differences["band"] == pytest.approx(truth, rel=0.1)
    # with the factors on it, other data of the same kind lie within two error bars as often as they should
    fresh = [made_up(rng, common, own) for _ in range(60)]
    for name in ("density", "dos"):
        factor = getattr(found, name)
        assert factor > truth  # five members: a t distribution has wider tails than the normal one
        counts = np.sum([getattr(s, name) for s in fresh], axis=0)
        inside = counts[calibration.EDGES[1:] <= 2 * factor * 1.0001].sum() / counts.sum()
        assert inside == pytest.approx(calibration.TWO_SIGMA, abs=0.012)
        assert within(counts) is not None and within(counts) < 0.85  # type: ignore[operator]
    assert pooled(fresh) < 0.85  # type: ignore[operator]


def test_a_perfect_ensemble_needs_no_factor() -> None:
    """Errors as large as the spread of very many members: factors near 1."""
    rng = np.random.default_rng(2)
    error, std = rng.normal(0.0, 1.0, 100_000), np.ones(100_000)
    counts = histogram(error, std)
    assert counts.sum() == 100_000
    assert within(counts) == pytest.approx(calibration.TWO_SIGMA, abs=0.003)
    assert within(np.zeros_like(counts)) is None
    one = Scores("x", 1, {}, {}, {}, (0.0, 0.0), counts, np.zeros_like(counts))
    found = fit([one])
    assert found.density == pytest.approx(1.0, rel=0.02) and found.dos == 1.0 and found.fermi_level == 1.0
    assert found.differences == {} and found.energies == {}


def test_common_errors_drop_out_of_differences() -> None:
    """All members wrong alike on all structures: differences need no such factor as the energies."""
    rng = np.random.default_rng(3)
    scores = []
    for one in (made_up(rng, 0.2, 1.0) for _ in range(250)):
        scores.append(dataclasses.replace(one, errors={"band": one.errors["band"] + 4 * 10.0, "ewald": 0.0}))
    found = fit(scores)
    assert found.energies["band"] > 8
    assert found.differences["band"] == pytest.approx(np.sqrt(0.04 + 1 / K), rel=0.15)


def test_z_scores_and_plain_values() -> None:
    one = made_up(np.random.default_rng(4), 1.0, 1.0)
    assert one.z == {
        "band": one.errors["band"] / one.stds["band"],
        "fermi_level": one.fermi_level[0] / one.fermi_level[1],
    }
    found = Calibration({"band": 2.0}, {"band": 1.5}, 3.0, 4.0, 5.0, ("a", "b"))
    again = Calibration.from_plain(json.loads(json.dumps(found.to_plain())))
    assert vars(again) == vars(found)
    for broken in ({"density": float("nan")}, {"dos": -1.0}, {"energies": {"band": "x"}}):
        with pytest.raises(ValueError):
            Calibration.from_plain({**found.to_plain(), **broken})


def test_the_spread_is_multiplied() -> None:
    rng = np.random.default_rng(5)
    values = {"band": rng.normal(size=3), "ewald": np.zeros(3)}
    plain = Spread(values, rng.normal(size=3), np.ones(4), np.full(6, 2.0), 2.0)
    other = dataclasses.replace(plain, energies={"band": rng.normal(size=3), "ewald": np.zeros(3)})
    factors = Calibration({"band": 2.0}, {"band": 1.5}, 3.0, 4.0, 5.0, ("a",))
    scaled = plain.calibrated(factors)
    assert scaled.std["band"] == pytest.approx(2 * plain.std["band"]) and scaled.std["ewald"] == 0.0
    assert scaled.fermi_level_std == pytest.approx(3 * plain.fermi_level_std)
    assert (scaled.dos_std == 5.0).all() and (scaled.density_std == 8.0).all()
    assert scaled.density_std_mean == 8.0
    assert scaled.minus(other)["band"] == pytest.approx(1.5 * plain.minus(other)["band"])
    assert scaled.energies is plain.energies  # what the members said stays
    assert scaled.as_json()["calibrated"] is True and plain.as_json()["calibrated"] is False


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibration")
    for i in range(3):
        fakes.make_snapshot(folder / f"a{i}.h5", i)
    for i in (10, 11, 12):
        fakes.make_snapshot(folder / f"v{i}.h5", i)
    fakes.make_snapshot(folder / "t0.h5", 20)
    return folder


@pytest.fixture(scope="module")
def model(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(settings(data, tmp_path_factory.mktemp("model"), "members=2", "epochs=2"))


def test_training_calibrates(model: Path, data: Path, tmp_path: Path) -> None:
    """On the validation snapshots; what is predicted and stored afterwards has the factors on it."""
    emulator = Emulator.load(model)
    known = emulator.calibration
    assert known is not None and known.snapshots == ("v10", "v11", "v12")
    assert set(known.energies) == {
        "band", "entropy_term", "hartree", "xc", "vxc_rho", "total_free", "internal",
    }  # fmt: skip
    snapshots = [Snapshot.load(p) for p in sorted(data.glob("v*.h5"))]
    plain = Emulator.combine([emulator])
    assert plain.calibration is None
    lines: list[str] = []
    again = calibrate(plain, snapshots, SerialComm(), lines.append)
    assert again is not None and again.energies == pytest.approx(dict(known.energies), rel=1e-6)
    assert lines == ["error bars are calibrated on 3 validation snapshots"]
    atoms = fakes.make_atoms(20)
    with_factors, without = (m.predict(atoms, 1000.0, (8, 8, 8)) for m in (emulator, plain))
    assert with_factors.spread is not None and without.spread is not None
    for term, factor in known.energies.items():
        assert with_factors.spread.std[term] == pytest.approx(factor * without.spread.std[term], rel=1e-6)
    assert any("calibrated on 3 validation snapshots" in n for n in with_factors.notes)
    assert any("not calibrated" in n for n in without.notes)
    stored = Result.load(with_factors.save(tmp_path / "r.h5"))
    read, written = stored.as_json()["spread"], with_factors.as_json()["spread"]
    mean = read.pop("density_std_mean"), written.pop("density_std_mean")  # rounds otherwise
    assert read == written and mean[0] == pytest.approx(mean[1], rel=1e-12)
    assert read["calibration"]["density"] == known.density
    # on the snapshots of the calibration themselves the pooled coverage is what it was made to be
    scores: list[Scores] = []
    for s in snapshots:
        result = emulator.predict(s.atoms, s.temperature, s.density_grid)
        one = scores_of(result, s, min(emulator.info.complete_to, s.complete_to))
        assert one is not None
        scores.append(one)
    assert pooled(scores) == pytest.approx(calibration.TWO_SIGMA, abs=0.01)
    with pytest.raises(InputError, match="not calibrated yet"):
        calibrate(emulator, snapshots, SerialComm(), lines.append)
    with pytest.raises(InputError, match="one network has no spread"):
        calibrate(tiny_model(), snapshots[:1], SerialComm(), lines.append)


def test_older_files_have_no_calibration(model: Path, tmp_path: Path) -> None:
    plain = Emulator.combine([Emulator.load(model)])
    assert Emulator.load(plain.save(tmp_path / "old.malax")).calibration is None
    plain.calibration = Calibration({}, {}, float("nan"), 1.0, 1.0, ())
    with pytest.raises(FileError, match="calibration factor nan"):
        Emulator.load(plain.save(tmp_path / "bad.malax"))


def test_a_snapshot_that_cannot_be_predicted_is_left_out(model: Path, data: Path) -> None:
    plain = Emulator.combine([Emulator.load(model)])
    good = Snapshot.load(data / "v10.h5")
    hot = dataclasses.replace(good, name="hot", temperature=90000.0)
    lines: list[str] = []
    found = calibrate(plain, [hot, good], SerialComm(), lines.append)
    assert found is not None and found.snapshots == ("v10",)
    assert lines[0].startswith("the calibration leaves out hot: ")
    assert calibrate(plain, [hot], SerialComm(), lines.append) is None
    assert lines[-1].endswith("the error bars are not calibrated")


def run(capsys: Any, *arguments: str) -> str:
    with pytest.raises(SystemExit) as leave:
        cli.main(list(arguments))
    assert not leave.value.code
    return capsys.readouterr().out


def test_evaluate_lists_z_and_coverage(model: Path, data: Path, capsys: Any, monkeypatch: Any) -> None:
    from malax import launcher

    for name in (*launcher.TASK_COUNTS, *launcher.TASK_MARKS):
        monkeypatch.delenv(name, raising=False)
    files = [str(data / name) for name in ("t0.h5", "v10.h5")]
    text = run(capsys, "evaluate", str(model), *files)
    assert "error / error bar" in text
    assert "pooled over density points and DOS values of 1 unseen snapshots" in text
    found = json.loads(run(capsys, "evaluate", str(model), *files, "--json"))
    one = evaluate_snapshot(Emulator.load(model), Snapshot.load(data / "t0.h5"))
    assert one is not None and one.scores is not None
    bars = found["snapshots"][0]["error_bars"]
    assert bars["z"] == pytest.approx(one.scores.z)
    assert bars["z"]["total_free"] == pytest.approx(
        one.errors["total_free"] * 4e-3 / one.scores.stds["total_free"]
    )
    assert bars["density_points"] == 512 and 0 < bars["dos_values"] <= 27
    assert found["coverage"]["within_2_sigma"] == pytest.approx(pooled([one.scores]))
    info = run(capsys, "info", str(model))
    assert "calibrated on 3 snapshots: v10, v11, v12" in info


def test_a_vacuum_does_not_count(model: Path, data: Path, tmp_path: Path) -> None:
    emulator, snapshot = Emulator.load(model), Snapshot.load(data / "t0.h5")
    result = emulator.predict(snapshot.atoms, snapshot.temperature, snapshot.density_grid)
    assert snapshot.density is not None
    holed = snapshot.density.copy()
    holed[0] = 0.0
    found = scores_of(result, dataclasses.replace(snapshot, density=holed), 8.0)
    whole = scores_of(result, snapshot, 8.0)
    assert found is not None and whole is not None
    assert found.density.sum() == whole.density.sum() - 64 == 512 - 64


def test_differences_of_several_structures(
    model: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    """In --json and in the table: member by member, calibrated; the same when a series is taken up again."""
    import csv

    import ase.io

    from malax import launcher

    for name in (*launcher.TASK_COUNTS, *launcher.TASK_MARKS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    images = [fakes.make_atoms(i) for i in range(2)]
    images.append(fakes.make_atoms(2).repeat((2, 1, 1)))
    for i, atoms in enumerate(images):
        ase.io.write(tmp_path / f"{i}.xyz", atoms, format="extxyz", parallel=False)
    names = [f"{i}.xyz" for i in range(3)]
    arguments = ["predict", str(model), *names, "--spacing", "0.6", "--json"]
    found = json.loads(run(capsys, *arguments))
    emulator = Emulator.load(model)
    assert emulator.calibration is not None
    values = [np.array(one["spread"]["energies"]["total_free"]) / one["n_atoms"] for one in found["results"]]
    factor = emulator.calibration.differences["total_free"]
    assert len(found["differences"]) == 2
    for i, row in enumerate(found["differences"], start=1):
        assert row["structure"] == found["results"][i]["structure"]
        assert row["minus"] == found["results"][0]["structure"]
        expected = factor * np.std(values[i] - values[0], ddof=1)
        assert row["total_free_std_per_atom"] == pytest.approx(expected)
    # the first two rows alone, then all of it: as if it had been one run
    run(capsys, "predict", str(model), *names[:2], "--spacing", "0.6", "--table", "t.csv")
    again = json.loads(run(capsys, *arguments, "--table", "t.csv"))
    for a, b in zip(again["differences"], found["differences"], strict=True):
        for name in ("total_free_per_atom", "total_free_std_per_atom"):
            assert a[name] == pytest.approx(b[name], rel=1e-9)
        assert (a["structure"], a["minus"]) == (b["structure"], b["minus"])
    with open("t.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["minus_first_eV_per_atom"] for row in rows][0] == ""
    for row, one in zip(rows[1:], found["differences"], strict=True):
        assert float(row["minus_first_eV_per_atom"]) == pytest.approx(one["total_free_per_atom"])
        assert float(row["minus_first_std_eV_per_atom"]) == pytest.approx(one["total_free_std_per_atom"])
    single = str(tiny_model().save(tmp_path / "single.malax"))
    plain = json.loads(run(capsys, "predict", single, *names[:2], "--spacing", "0.6", "--json"))
    assert plain["differences"] == []
