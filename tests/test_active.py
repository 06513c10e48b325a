"""The choice of what to compute next: uncertain, and unlike what is chosen already."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
from models import tiny_model

from malax import active, cli
from malax.active import Candidate, pick, spread_out
from malax.comm import SerialComm
from malax.domain import Domain
from malax.emulator import Emulator
from malax.errors import InputError
from malax.grid import Grid

pytestmark = pytest.mark.filterwarnings("ignore::malax.checks.ModelDomainWarning")


def test_uncertain_and_unlike() -> None:
    points = np.array([[0.0], [0.01], [5.0], [10.0], [10.01]])
    values = np.array([9.0, 8.9, 1.0, 3.0, 2.9])
    # the twin of the first is nearly as uncertain, but tells nothing new
    assert spread_out(values, points, 2) == [0, 3]
    assert spread_out(values, points, 3) == [0, 3, 2]
    assert sorted(spread_out(values, points, 5)) == [0, 1, 2, 3, 4]
    assert spread_out(np.array([1.0, 2.0]), np.zeros((2, 3)), 1) == [1]
    assert spread_out(np.array([1.0]), np.zeros((1, 3)), 1) == [0]


def test_many_frames_take_little_memory() -> None:
    rng = np.random.default_rng(0)
    tracemalloc.start()
    spread_out(rng.random(600), rng.random((600, 91)), 5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 8 * 600**2  # a few matrices of the pairs; all differences would be 91 of them


@pytest.fixture(scope="module")
def ensemble() -> Emulator:
    return Emulator.combine([tiny_model(seed=seed) for seed in range(3)])


def candidates() -> list[Candidate]:
    """From nearly perfect to far from it; the last two are nearly the same."""
    made = [fakes.make_atoms(i, 0.02 + 0.06 * i) for i in range(4)]
    made.append(made[-1].copy())
    made[-1].positions += 1e-3
    return [Candidate(f"s{i}", atoms, 1000.0) for i, atoms in enumerate(made)]


def test_an_ensemble_chooses_by_its_spread(ensemble: Emulator) -> None:
    lines: list[str] = []
    stds = {}
    for one in candidates():
        grid = Grid.from_spacing(one.atoms.cell.array, 2 * ensemble.info.grid_spacing)
        spread = ensemble.predict(one.atoms, 1000.0, grid).spread
        assert spread is not None
        stds[one.name] = 1e3 * spread.std["total_free"] / 4
    found = pick(ensemble, candidates(), 2, lines.append)
    assert found[0].name == max(stds, key=stds.__getitem__) and found[0].unit == "meV/atom"
    assert found[0].uncertainty == pytest.approx(stds[found[0].name])
    assert {c.name for c in found} != {"s3", "s4"} and lines == []
    with pytest.raises(InputError, match="6 structures are to be picked, 5 are left"):
        pick(ensemble, candidates(), 6, lines.append)


def test_what_the_model_refuses_is_left_out(ensemble: Emulator) -> None:
    strange = Candidate("be", fakes.make_atoms(0), 1000.0)
    strange.atoms.symbols[0] = "Be"
    lines: list[str] = []
    found = pick(ensemble, [strange, *candidates()[:2]], 2, lines.append)
    assert {c.name for c in found} == {"s0", "s1"}
    assert len(lines) == 1 and lines[0].startswith("be is left out: the model knows Al only")


def test_one_network_chooses_by_distance() -> None:
    model = tiny_model()
    with pytest.raises(InputError, match="train an ensemble"):
        pick(model, candidates(), 1, print)
    grid = Grid(candidates()[0].atoms.cell.array, (6, 6, 6))
    features = model.info.descriptor.compute(candidates()[0].atoms, grid, dtype="float64")
    x = features.reshape(-1, features.shape[-1])
    model.domain = Domain(x.mean(axis=0), np.diag(1 / x.std(axis=0)), 2.0)
    values = [active.uncertainty(model, c, SerialComm()) for c in candidates()[:4]]
    assert values[0] < values[1] < values[2] < values[3]  # ever further from the perfect crystal
    (choice,) = pick(model, candidates()[:4], 1, print)
    assert choice.name == "s3" and str(choice).startswith("s3: ") and "training" in str(choice)


RECIPE = """
out: {out}
seed: 1
pseudopotentials: {{Al: {upf}}}
qe: {{pw_command: "true {{input}}", system: {{ecutwfc: 20}}}}
ldos: {{sigma: 0.5, energies: [-4.0, 9.0, 0.5]}}
groups:
  a:
    lattice: {{name: Al, cubic: true}}
    temperature: 1000
    rattle: 0.1
    kpoints: [1, 1, 1]
    n_bands: 12
    indices: [0, 1, 2, 3, 4]
"""


def test_the_command(ensemble: Emulator, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    """What was begun comes first, what is made or has failed is not chosen."""
    from malax import launcher
    from malax.commands import generate as command

    for name in (*launcher.TASK_COUNTS, *launcher.TASK_MARKS):
        monkeypatch.delenv(name, raising=False)
    out = tmp_path / "out"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(out=out, upf=fakes.UPF))
    model = str(ensemble.save(tmp_path / "m.malax"))
    asked: list[list[str]] = []
    monkeypatch.setattr(command, "generate", lambda *arguments: asked.append(list(arguments[5])))

    def run(*more: str, code: int = 0) -> Any:
        with pytest.raises(SystemExit) as leave:
            cli.main(["generate", str(recipe), "--active", model, *more])
        assert (leave.value.code or 0) == code
        return capsys.readouterr()

    text = run("--take", "2").out
    assert len(asked[0]) == 2 and text.count("meV/atom") == 2
    out.mkdir()
    fakes.make_snapshot(out / f"{asked[0][0]}.h5")
    runs = out / "runs"
    (runs / "a4").mkdir(parents=True)
    failed = next(n for n in ("a0", "a1", "a2", "a3") if n not in asked[0])
    (runs / failed).mkdir()
    (runs / failed / "failure.txt").write_text("no convergence")
    text = run("--take", "3").out
    assert asked[1][0] == "a4" and "a4: begun before" in text
    assert len(asked[1]) == 3 and asked[0][0] not in asked[1] and failed not in asked[1]
    assert "exclude each other" in run("--only", "a1", code=2).err
    with pytest.raises(SystemExit):
        cli.main(["generate", "--active", model])
    assert "chooses structures of a recipe" in capsys.readouterr().err
