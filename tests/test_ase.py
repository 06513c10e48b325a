"""malax as a calculator of ASE."""

from __future__ import annotations

import pytest
from ase.calculators.calculator import PropertyNotImplementedError
from fakes import make_atoms
from models import tiny_model

from malax.errors import InputError
from malax.interfaces.ase import MalaxCalculator

OPTIONS = {"grid": (9, 9, 9)}


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def test_energy_is_the_total_free_energy(model):
    atoms = make_atoms(0)
    atoms.calc = MalaxCalculator(model, **OPTIONS)
    free = model.predict(atoms, **OPTIONS).energies.total_free
    assert atoms.get_potential_energy() == free
    assert atoms.get_potential_energy(force_consistent=True) == free
    assert atoms.calc.result.energies.total_free == free
    assert atoms.calc.result.density.shape == (9, 9, 9)


def test_reached_lazily():
    import malax

    assert malax.interfaces.ase.MalaxCalculator is MalaxCalculator
    with pytest.raises(AttributeError, match="no attribute 'vasp'"):
        _ = malax.interfaces.vasp


def test_from_a_file_with_options(model, tmp_path):
    path = model.save(tmp_path / "m.malax")
    calculator = MalaxCalculator(path, temperature=1000.0, descriptors="native", **OPTIONS)
    assert calculator.get_potential_energy(make_atoms(1)) == pytest.approx(
        model.predict(make_atoms(1), **OPTIONS).energies.total_free, abs=1e-9
    )


def test_moved_atoms_are_predicted_anew_and_others_not(model, monkeypatch):
    calls = []
    predict = type(model).predict
    monkeypatch.setattr(type(model), "predict", lambda *a, **k: calls.append(1) or predict(*a, **k))
    atoms = make_atoms(0)
    atoms.calc = MalaxCalculator(model, **OPTIONS)
    first = atoms.get_potential_energy()
    assert atoms.get_potential_energy() == first and len(calls) == 1
    atoms.positions[0] += 0.1
    assert atoms.get_potential_energy() != first and len(calls) == 2


def test_what_it_cannot(model):
    atoms = make_atoms(0)
    atoms.calc = MalaxCalculator(model, **OPTIONS)
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_forces()
    atoms.symbols[0] = "Be"
    with pytest.raises(InputError, match="the structure holds Be"):
        atoms.get_potential_energy()


@pytest.mark.filterwarnings("ignore::malax.checks.ModelDomainWarning")
def test_a_model_without_pseudopotentials():
    calculator = MalaxCalculator(tiny_model(with_pseudopotentials=False), **OPTIONS)
    with pytest.raises(InputError, match="no pseudopotentials"):
        calculator.get_potential_energy(make_atoms(0))
