"""Physics checks: fits and differences against known answers, what shows what, the command."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from models import tiny_model

from malax import cli, equation_of_state, finite_differences, launcher, validate, validate_page
from malax.comm import SerialComm
from malax.equation_of_state import EV_PER_A3
from malax.errors import InputError
from malax.finite_differences import forces_of
from malax.io.snapshot import Snapshot
from malax.validate_data import vacancy_pairs, volume_series, with_forces

pytestmark = pytest.mark.filterwarnings("ignore::malax.checks.ModelDomainWarning")
V0, B0, B1 = 16.5, 77.0, 4.6


def birch_murnaghan(volumes: np.ndarray) -> np.ndarray:
    """E(V) in eV as it is usually written, with B0 in GPa and its derivative B1."""
    f = (V0 / volumes) ** (2 / 3)
    return -57.0 + 9 * V0 * B0 / EV_PER_A3 / 16 * ((f - 1) ** 3 * B1 + (f - 1) ** 2 * (6 - 4 * f))


def test_the_fit_finds_its_own_parameters() -> None:
    volumes = V0 * np.linspace(0.94, 1.06, 7)
    found = equation_of_state.fit(volumes, birch_murnaghan(volumes))
    assert found.volume == pytest.approx(V0, rel=1e-7)
    assert found.bulk_modulus == pytest.approx(B0, rel=1e-5)
    assert found.residual < 1e-10
    np.testing.assert_allclose(found.energy(volumes), birch_murnaghan(volumes), rtol=0, atol=1e-9)
    noise = 1e-4 * np.array([1, -1, 1, -1, 1, -1, 1])
    noisy = equation_of_state.fit(volumes, birch_murnaghan(volumes) + noise)
    assert 1e-5 < noisy.residual < 2e-4 and noisy.volume == pytest.approx(V0, rel=2e-3)


def test_fits_that_cannot_be() -> None:
    volumes = V0 * np.linspace(0.8, 0.9, 7)
    with pytest.raises(InputError, match="no minimum between 13.20 and 14.85"):
        equation_of_state.fit(volumes, birch_murnaghan(volumes))
    with pytest.raises(InputError, match="needs five volumes, there are 2"):
        equation_of_state.fit([16.0, 17.0, 16.0], [1.0, 2.0, 1.0])


def springs(atoms: Atoms, temperature: float, shape: tuple[int, int, int]) -> float:
    """A made-up energy with simple derivatives: a sum over x^2, and a quadratic form of the cell."""
    return float((SPRING * atoms.positions**2).sum() + (MODULI * atoms.cell.array).sum())


SPRING = np.array([1.0, 2.0, 3.0])
MODULI = np.array([[0.3, 0.1, -0.2], [0.1, 0.5, 0.4], [-0.2, 0.4, -0.1]])


def test_finite_differences() -> None:
    atoms = bulk("Al", cubic=True)
    atoms.positions[:] = np.random.default_rng(0).normal(size=(4, 3))
    found = forces_of(springs, atoms, 300.0, (4, 4, 4), None)
    assert len(found.coordinates) == 12 and found.dft is None and found.rms is None
    expected = -2 * SPRING * atoms.positions
    np.testing.assert_allclose(found.model, expected.reshape(-1), rtol=0, atol=1e-9)
    # dE/d(strain): positions and cell rows go as x -> x (1 + strain)
    x, cell = atoms.positions, atoms.cell.array
    gradient = 2 * x.T @ (SPRING * x) + cell.T @ MODULI
    symmetric = (gradient + gradient.T) / 2 / atoms.get_volume()
    voigt = [symmetric[i, j] for i, j in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))]
    np.testing.assert_allclose(found.stress, voigt, rtol=0, atol=1e-6)
    many = forces_of(springs, atoms.repeat(2), 300.0, (4, 4, 4), None)
    assert len(many.coordinates) == 6


def perfect(volume: float) -> Atoms:
    atoms = bulk("Al", "fcc", a=4.05, cubic=True)
    atoms.set_cell(atoms.cell.array * volume ** (1 / 3), scale_atoms=True)
    return atoms


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five volumes of fcc, the same with a vacancy, one structure at two temperatures, forces on one."""
    folder = tmp_path_factory.mktemp("validate")
    for i, volume in enumerate((0.9, 0.95, 1.0, 1.05, 1.1)):
        fakes.make_snapshot(folder / f"e{i}.h5", atoms=perfect(volume))
    fakes.make_snapshot(folder / "q.h5", atoms=perfect(1.0)[1:])
    for name, kelvin in (("cold", 900.0), ("hot", 1100.0)):
        made = fakes.make_snapshot(folder / f"{name}.h5", 7, temperature=kelvin)
    from malax.io.snapshot import save_snapshot

    forces, stress = np.full((4, 3), 0.5), np.full(6, 0.01)
    ldos = made.read_ldos(0, 512).reshape(8, 8, 8, -1)
    pushed = dataclasses.replace(made, name="pushed", forces=forces, stress=stress, temperature=1000.0)
    save_snapshot(folder / "pushed.h5", pushed, [ldos], keep_bits=None)
    return folder


def load(folder: Path) -> list[Snapshot]:
    return [Snapshot.load(path) for path in sorted(folder.glob("*.h5"))]


def test_snapshots_are_told_by_their_structures(snapshots: Path) -> None:
    every = load(snapshots)
    assert [[s.name for s in group] for group in volume_series(every)] == [["e0", "e1", "e2", "e3", "e4"]]
    assert volume_series([s for s in every if s.name != "e3"]) == []
    assert [(a.name, b.name) for a, b in vacancy_pairs(every)] == [("e2", "q")]
    assert [s.name for s in with_forces(tiny_model().info, every, 5)] == ["pushed"]
    assert with_forces(tiny_model().info, every, 0) == []


@pytest.fixture
def few_coordinates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finite_differences, "COMPONENTS", 2)


def test_with_data(snapshots: Path, few_coordinates: None) -> None:
    model, every = tiny_model(), load(snapshots)
    found = validate.validate(model, every, SerialComm())
    by_name = {s.name: s for s in every}

    def energy(name: str) -> float:
        s = by_name[name]
        return float(model.predict(s.atoms, s.temperature, s.density_grid).energies.total_free)  # type: ignore[arg-type]

    (curve,) = found.curves
    assert curve.dft is not None
    np.testing.assert_allclose(curve.dft, [by_name[f"e{i}"].energies["total_free"] / 4 for i in range(5)])
    np.testing.assert_allclose(curve.model, [energy(f"e{i}") / 4 for i in range(5)], rtol=1e-9)
    assert curve.volumes[2] == pytest.approx(4.05**3 / 4)
    (vacancy,) = found.vacancies
    assert vacancy.n_atoms == 4 and vacancy.model == pytest.approx(energy("q") - 0.75 * energy("e2"))
    dft = by_name["q"].energies["total_free"] - 0.75 * by_name["e2"].energies["total_free"]
    assert vacancy.dft == pytest.approx(dft)
    (forces,) = found.forces
    assert forces.title == "pushed" and forces.rms == pytest.approx(
        float(np.sqrt(np.mean((forces.model - 0.5) ** 2)))
    )
    assert [t for t, _ in found.entropy.dft] == [900.0, 1000.0, 1100.0]
    assert (np.diff(found.entropy.model) < 0).all()
    assert [(row["n_atoms"], row["snapshots"]) for row in validate.sizes(found.errors)] == [(3, 1), (4, 8)]
    assert found.invariance.rotation < 1e-6  # the grid turns with the cell: rounding only
    assert found.notes == []
    table = {what: (ours, theirs) for what, ours, theirs, _ in validate_page.rows(found)}
    assert table["vacancy in 4 atoms"] == (vacancy.model, vacancy.dft)
    assert table["RMS error of all forces"][0] == forces.rms


def test_lattice_constant() -> None:
    atoms = perfect(1.0)
    volumes: list[float] = []

    def energy(one: Atoms, temperature: float, shape: tuple[int, int, int]) -> float:
        volumes.append(one.get_volume() / 4)
        return 4 * float(birch_murnaghan(np.array([volumes[-1]]))[0])

    from malax.volume_curve import curve_alone

    curve = curve_alone(energy, atoms, 298.0, (4, 4, 4))
    assert len(volumes) == 7 and curve.fit is not None and curve.dft is None
    assert curve.lattice_constant(curve.fit) == pytest.approx((4 * V0) ** (1 / 3), rel=1e-7)


def run(capsys: Any, *arguments: str, code: int = 0) -> Any:
    with pytest.raises(SystemExit) as leave:
        cli.main(list(arguments))
    assert (leave.value.code or 0) == code
    return capsys.readouterr()


def test_the_command(
    snapshots: Path, tmp_path: Path, capsys: Any, monkeypatch: Any, few_coordinates: None
) -> None:
    for name in (*launcher.TASK_COUNTS, *launcher.TASK_MARKS):
        monkeypatch.delenv(name, raising=False)
    model = str(tiny_model(grid_spacing=0.9).save(tmp_path / "m.malax"))
    out = tmp_path / "out"
    alone = run(capsys, "validate", model, "-o", str(out)).out
    assert "no DFT data for an equation of state" in alone and "written" in alone
    assert (out / "validation.png").stat().st_size > 10_000
    numbers = json.loads((out / "validation.json").read_text())
    assert numbers["vacancies"][0]["dft"] is None and len(numbers["notes"]) == 5
    again = run(capsys, "validate", model, "-o", str(out), code=2)
    assert "exists" in again.err and not again.out
    from malax.commands.validate import snapshot_files

    assert [p.name for p in snapshot_files([snapshots, Path("x.h5")])] == [
        "cold.h5", *(f"e{i}.h5" for i in range(5)), "hot.h5", "pushed.h5", "q.h5", "x.h5",
    ]  # fmt: skip
    assert "holds no snapshots" in run(capsys, "validate", model, "--data", str(out), code=2).err


def test_several_elements_need_a_crystal() -> None:
    model = tiny_model(("Al", "Be"))
    with pytest.raises(InputError, match="knows Al, Be: name a crystal with --structure"):
        validate.default_crystal(model)
    crystal = validate.default_crystal(tiny_model())
    assert crystal.get_volume() / 4 == pytest.approx(16.6)


def test_the_recipe_of_the_data() -> None:
    """configs/al_validate.yaml makes what the checks look for: seven volumes, a crystal and its vacancy."""
    from malax import config
    from malax.generate import GenerateConfig, structures

    recipe = Path(__file__).resolve().parents[1] / "configs" / "al_validate.yaml"
    made = {s.name: s.atoms for s in structures(config.load(recipe, GenerateConfig))}
    assert list(made) == [*(f"e{i}" for i in range(7)), "p0", "q0"]
    assert len({round(made[f"e{i}"].get_volume(), 3) for i in range(7)}) == 7
    assert len(made["p0"]) == 32 and len(made["q0"]) == 31
    np.testing.assert_array_equal(made["p0"].cell.array, made["q0"].cell.array)
