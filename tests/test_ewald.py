"""The Ewald energy: known lattices, invariances, derivatives, and a second implementation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from systems import SYSTEMS, rattled

from malax.energies import ewald_energy
from malax.energies.ewald import ewald
from malax.energies.structure_factor import structure_factors
from malax.errors import InputError
from malax.units import COULOMB

# Madelung constants for the distance of nearest neighbours
IONIC = {
    "rocksalt": (1.747564594633182, 0.5),
    "cesiumchloride": (1.762674773070988, math.sqrt(3) / 2),
    "zincblende": (1.638055053388790, math.sqrt(3) / 4),
}

# Wigner crystals: E = -alpha e^2 / (2 r_s) per electron, alpha in Ry (Coldwell-Horsfall, Maradudin 1960)
WIGNER = {"sc": 1.760119, "bcc": 1.791859, "fcc": 1.791747}


def charges_of(atoms: Atoms, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(1, 4, len(atoms))


def many(n: int = 5) -> Atoms:
    """500 rattled Al atoms in a sheared cell."""
    atoms = bulk("Al", "fcc", a=4.05, cubic=True) * (n, n, n)
    atoms.set_cell(atoms.cell.array @ np.array([[1, 0, 0], [0.1, 1, 0], [-0.05, 0.2, 1]]), scale_atoms=True)
    return rattled(atoms, 0.1, seed=5)


def tensors(atoms: Atoms, charges: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.tensor(atoms.positions), torch.tensor(atoms.cell.array), torch.tensor(charges)


@pytest.mark.parametrize("structure", IONIC)
def test_madelung_constants(structure):
    constant, distance = IONIC[structure]
    a = 4.7
    atoms = bulk("NaCl", structure, a=a)
    expected = -constant * COULOMB / (distance * a)
    assert ewald_energy(atoms, [1.0, -1.0]) == pytest.approx(expected, rel=1e-12)
    cubic = bulk("NaCl", structure, a=a, cubic=True)
    signs = [1.0 if s == "Na" else -1.0 for s in cubic.symbols]
    assert ewald_energy(cubic, signs) == pytest.approx(expected * len(cubic) / 2, rel=1e-12)


@pytest.mark.parametrize("structure", WIGNER)
def test_wigner_crystals(structure):
    """Charges of one sign: the background is what makes the energy finite."""
    atoms = bulk("H", structure, a=3.0)
    radius = (3 * atoms.get_volume() / (4 * math.pi)) ** (1 / 3)
    expected = -WIGNER[structure] * COULOMB / (2 * radius)
    assert ewald_energy(atoms, [1.0]) == pytest.approx(expected, rel=1e-6)
    assert ewald_energy(atoms, [3.0]) == pytest.approx(9 * ewald_energy(atoms, [1.0]), rel=1e-12)


def test_simple_cubic_lattice_with_background():
    """-2.837297479480620 e^2 / 2L."""
    energy = ewald_energy(Atoms("H", cell=np.eye(3) * 2.5, pbc=True), [1.0])
    assert energy == pytest.approx(-2.837297479480620 * COULOMB / 5.0, rel=1e-12)


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("method", ["direct", "mesh"])
def test_does_not_depend_on_the_splitting(name, method):
    atoms = SYSTEMS[name]()
    arguments = tensors(atoms, charges_of(atoms))
    expected = ewald(*arguments).item()
    for cutoff in (2.5, 4.0, 7.0):
        found = ewald(*arguments, cutoff=cutoff, method=method).item()
        assert found == pytest.approx(expected, abs=1e-9 * len(atoms)), cutoff


@pytest.mark.parametrize("name", SYSTEMS)
def test_invariances(name):
    atoms = SYSTEMS[name]()
    q = charges_of(atoms)
    energy = ewald_energy(atoms, q)

    rotated = atoms.copy()
    rotated.rotate(53.0, (2, -1, 3), rotate_cell=True)
    rotated.positions += (0.3, -11.0, 5.0)
    assert ewald_energy(rotated, q) == pytest.approx(energy, abs=1e-9)

    order = np.random.default_rng(1).permutation(len(atoms))
    assert ewald_energy(atoms[order], q[order]) == pytest.approx(energy, abs=1e-9)

    mirrored = atoms.copy()
    mirrored.set_cell(-atoms.cell.array)  # left-handed where it was right-handed
    assert ewald_energy(mirrored, q) == pytest.approx(energy, abs=1e-9)

    # other lattice vectors of the same lattice
    skewed = atoms.copy()
    skewed.set_cell(np.array([[1, 1, 0], [0, 1, 0], [2, -1, 1]]) @ atoms.cell.array)
    assert ewald_energy(skewed, q) == pytest.approx(energy, abs=1e-9)

    repeated = atoms * (2, 1, 3)
    assert ewald_energy(repeated, np.tile(q, 6)) == pytest.approx(6 * energy, abs=1e-8)

    larger = atoms.copy()
    larger.set_cell(atoms.cell.array * 1.3, scale_atoms=True)
    assert ewald_energy(larger, q) == pytest.approx(energy / 1.3, abs=1e-9)


def test_many_atoms_over_a_mesh():
    """Over a mesh as directly, to far below 1e-4 meV per atom."""
    atoms = many()
    arguments = tensors(atoms, charges_of(atoms))
    direct = ewald(*arguments, method="direct").item() / len(atoms)
    for cutoff in (None, 5.0, 9.0):
        over_mesh = ewald(*arguments, cutoff=cutoff, method="mesh").item() / len(atoms)
        assert over_mesh == pytest.approx(direct, abs=1e-9)


@pytest.mark.parametrize("name", ["orthogonal", "triclinic", "one_atom", "three_species"])
def test_against_torch_pme(name):
    torchpme = pytest.importorskip("torchpme", reason="no torch-pme (pip install malax[test])")
    vesin = pytest.importorskip("vesin")
    atoms = SYSTEMS[name]()
    positions, cell, q = tensors(atoms, charges_of(atoms))
    cutoff = 10.0
    i, j, distances = vesin.NeighborList(cutoff=cutoff, full_list=False).compute(
        points=atoms.positions, box=atoms.cell.array, periodic=True, quantities="ijd"
    )
    coulomb = torchpme.CoulombPotential(smearing=1.3).to(torch.float64)
    calculator = torchpme.EwaldCalculator(coulomb, lr_wavelength=0.5, full_neighbor_list=False)
    calculator = calculator.to(torch.float64)
    pairs = torch.tensor(np.stack([i, j], axis=1).astype(np.int64))
    potential = calculator(q[:, None], cell, positions, pairs, torch.tensor(distances))
    expected = COULOMB * (q[:, None] * potential).sum().item()
    assert ewald_energy(atoms, q.numpy()) / len(atoms) == pytest.approx(expected / len(atoms), abs=1e-10)


@pytest.mark.parametrize("method", ["direct", "mesh"])
@pytest.mark.parametrize("name", ["triclinic", "left_handed", "one_atom"])
def test_derivatives(name, method):
    """Forces and the derivative by the cell against finite differences."""
    atoms = SYSTEMS[name]()
    positions, cell, q = tensors(atoms, charges_of(atoms))
    positions.requires_grad_(), cell.requires_grad_()
    gradients = torch.autograd.grad(ewald(positions, cell, q, cutoff=4.0, method=method), (positions, cell))
    rng = np.random.default_rng(2)
    h = 1e-4
    with torch.no_grad():
        for which, gradient in enumerate(gradients):
            change = torch.tensor(rng.normal(size=gradient.shape))
            moved = [[positions, cell], [positions, cell]]
            moved[0][which] = moved[0][which] + h * change
            moved[1][which] = moved[1][which] - h * change
            up, down = (ewald(*pair, q, cutoff=4.0, method=method).item() for pair in moved)
            slope = (up - down) / (2 * h)
            assert (gradient * change).sum().item() == pytest.approx(slope, rel=1e-5, abs=1e-5)


def test_forces_of_many_atoms_sum_to_zero():
    atoms = many(3)
    positions, cell, q = tensors(atoms, charges_of(atoms))
    positions.requires_grad_()
    by_method = []
    for method in ("direct", "mesh"):
        (gradient,) = torch.autograd.grad(ewald(positions, cell, q, method=method), positions)
        assert gradient.sum(0).abs().max() < 1e-7
        by_method.append(gradient)
    assert by_method[0].abs().max() > 1.0
    torch.testing.assert_close(*by_method, rtol=0, atol=1e-7)


def test_structure_factors_against_their_definition():
    rng = np.random.default_rng(3)
    scaled, weights = rng.normal(size=(40, 3)), rng.normal(size=40)
    waves = tuple(torch.arange(low, high, dtype=torch.float64) for low, high in ((-6, 7), (-4, 5), (0, 9)))
    columns = torch.tensor([[0, 0], [6, 4], [12, 1], [3, 8]])
    found = {
        method: structure_factors(torch.tensor(scaled), torch.tensor(weights), waves, columns, method).numpy()
        for method in ("direct", "mesh")
    }
    for row, (i, j) in enumerate(columns.tolist()):
        for k, mz in enumerate(waves[2].tolist()):
            m = np.array([waves[0][i].item(), waves[1][j].item(), mz])
            expected = (weights * np.exp(-2j * np.pi * scaled @ m)).sum()
            assert abs(found["direct"][row, k] - expected) < 1e-11
            assert abs(found["mesh"][row, k] - expected) < 2e-11 * np.abs(weights).sum()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda a: a.set_pbc([True, True, False]), r"periodic in all three directions.*True, True, False"),
        (lambda a: a.set_cell(np.zeros((3, 3))), "cell is empty or degenerate"),
        (lambda a: a.__delitem__(slice(None)), "no atoms"),
        (lambda a: a.positions.__setitem__((0, 1), np.nan), "not finite"),
        (
            lambda a: a.positions.__setitem__(2, a.positions[1] + a.cell[0] + 1e-3),
            r"atoms 1 and 2 \(from 0\) overlap",
        ),
    ],
)
def test_unusable_structures(change, message):
    atoms = SYSTEMS["orthogonal"]()
    change(atoms)
    with pytest.raises(InputError, match=message):
        ewald_energy(atoms, np.ones(len(atoms)))


@pytest.mark.parametrize("charges", [[1.0, 2.0], [[3.0] * 4], [1.0, 1.0, 1.0, np.inf]])
def test_unusable_charges(charges):
    with pytest.raises(InputError, match="one finite charge per atom"):
        ewald_energy(SYSTEMS["orthogonal"](), charges)
