"""Energies of a density divided over ranks: the same on any number of them, and those of one array."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from launch import TESTS, mpirun
from systems import GRIDS, SYSTEMS
from test_energies import gaussian_core, smooth

from malax.comm import SerialComm
from malax.energies import core_density, ewald_energy, hartree_energy, total_free_energy
from malax.energies.slab_ewald import ewald_energy_of
from malax.energies.slab_factors import structure_factors
from malax.energies.slab_terms import Part, coefficients_of, core_coefficients, hartree, sphere_waves
from malax.energies.sphere import KINETIC, GSphere
from malax.errors import InputError
from malax.fft import Transform, Waves, as_slab, rounds_for
from malax.grid import Grid

ALONE = SerialComm()


def packed(whole: torch.Tensor, sphere: GSphere, waves: Waves) -> np.ndarray:
    """Coefficients (nx, ny, nz//2+1) in the packed order of ``waves``."""
    found = []
    for block in waves.blocks():
        my, mz = waves.columns[waves.owned][block.here].T
        lines = whole.numpy()[waves.mx[None, :], my[:, None], mz[:, None]]
        assert (sphere.inside.numpy()[waves.mx[None, :], my[:, None], mz[:, None]] == block.inside).all()
        found.append(lines[block.inside])
    return np.concatenate(found)


@pytest.mark.parametrize("name", SYSTEMS)
def test_transforms_are_those_of_one_array(name):
    atoms = SYSTEMS[name]()
    grid = Grid(atoms.cell.array, tuple(n + 6 for n in GRIDS[name]))
    rng = np.random.default_rng(1)
    field = rng.random(grid.shape)
    sphere, waves = GSphere(grid), sphere_waves(grid, None, ALONE)
    assert waves.n == int(sphere.inside.sum())
    found = coefficients_of(Part.of(field, grid, ALONE), waves)
    wanted = packed(sphere.coefficients(torch.from_numpy(field)), sphere, waves)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-15)
    smooth_field = sphere.field(sphere.coefficients(torch.from_numpy(field))).numpy()
    for rounds in [r for r in range(1, grid.shape[0] + 1) if grid.shape[0] % r == 0]:
        transform = Transform(waves, grid.shape, rounds)
        again = np.zeros(waves.n, dtype=complex)
        for r in range(rounds):
            transform.add_to(again, field[r::rounds].copy(), r)
            planes = [transform.field(s) for (s,) in transform.spectra([transform.sheet(found, r)])]
            np.testing.assert_allclose(np.concatenate(planes), smooth_field[r::rounds], atol=1e-14)
        np.testing.assert_allclose(again, wanted, rtol=0, atol=1e-15)


def test_a_wave_that_the_grid_does_not_hold_is_zero_and_nyquist_is_shared():
    cell = np.eye(3) * 4.0
    coarse, fine = Grid(cell, (4, 5, 6)), Grid(cell, (12, 12, 12))
    waves = sphere_waves(fine, None, ALONE)
    x = np.arange(4)[:, None, None] * np.ones(coarse.shape)
    found = coefficients_of(Part.of(np.cos(np.pi * x), coarse, ALONE), waves)
    there = {}
    for block in waves.blocks():
        lines = waves.unpacked(found, block)
        my, mz = waves.columns[block.here].T
        for c, m in zip(*np.nonzero(np.abs(lines) > 1e-12), strict=True):
            there[int(waves.mx[m]), int(my[c]), int(mz[c])] = lines[c, m]
    assert there == {(2, 0, 0): pytest.approx(0.5), (-2, 0, 0): pytest.approx(0.5)}


def test_slabs_from_any_division():
    shape = (5, 3, 4)
    field = np.arange(60.0)
    np.testing.assert_array_equal(as_slab(ALONE, field, np.array([0, 60]), shape), field.reshape(shape))


@pytest.mark.parametrize("nx, size, rounds", [(1, 1, 1), (13, 2, 1), (700, 2, 10), (1050, 2, 10), (24, 3, 2)])
def test_rounds(nx, size, rounds):
    assert rounds_for(nx, size) == rounds


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("method", ["direct", "mesh"])
def test_structure_factors(name, method):
    atoms = SYSTEMS[name]()
    scaled = atoms.get_scaled_positions(wrap=False)
    weights = np.linspace(-1, 2, len(atoms))
    waves = Waves(Grid(atoms.cell.array, (1, 1, 1)).reciprocal, 8.0**2, ALONE)
    found = structure_factors(scaled, weights, waves, method)
    for block in waves.blocks():
        my, mz = waves.columns[block.here].T
        m = np.stack(np.broadcast_arrays(waves.mx[None, :], my[:, None], mz[:, None]), axis=-1)[block.inside]
        wanted = np.exp(-2j * np.pi * m @ scaled.T) @ weights
        np.testing.assert_allclose(found[block.place], wanted, atol=1e-9)


@pytest.mark.parametrize("name", SYSTEMS)
def test_ewald(name):
    atoms = SYSTEMS[name]()
    charges = np.linspace(1.0, 3.0, len(atoms))
    wanted = ewald_energy(atoms, charges)
    for options in ({}, {"method": "mesh"}, {"cutoff": 2.3}, {"cutoff": 9.0}):
        assert ewald_energy_of(atoms, charges, ALONE, **options) == pytest.approx(wanted, rel=1e-11), options


@pytest.mark.filterwarnings("ignore:.*was made for PBE")
@pytest.mark.parametrize("xc", ["PZ", "PBE"])
@pytest.mark.parametrize("ecutrho", [None, 120.0, 400.0])
@pytest.mark.parametrize("name", ["orthogonal", "rotated", "left_handed"])
def test_total_is_that_of_the_differentiable_path(name, ecutrho, xc):
    """With sphere in the grid, equal to what it holds, and on a grid that must be refined."""
    atoms = SYSTEMS[name]()
    grid = Grid(atoms.cell.array, (13, 12, 11))
    symbol = atoms.get_chemical_symbols()[0]
    pseudo = {symbol: gaussian_core(symbol)}
    density = smooth(grid, 3.0 * len(atoms))
    arguments = (-3.0, -0.1, pseudo)
    one = total_free_energy(atoms, torch.from_numpy(density), *arguments, xc=xc, ecutrho=ecutrho)
    many = total_free_energy(atoms, density, *arguments, xc=xc, ecutrho=ecutrho)
    for term, energy in one.as_dict().items():
        assert getattr(many, term) == pytest.approx(energy, rel=1e-10), term


def test_core_charge():
    atoms = SYSTEMS["rotated"]()
    grid = Grid(atoms.cell.array, (12, 14, 13))
    pseudo = {"Be": gaussian_core("Be")}
    sphere, waves = GSphere(grid), sphere_waves(grid, None, ALONE)
    whole = sphere.coefficients(torch.from_numpy(core_density(atoms, grid, pseudo)))
    found = core_coefficients(atoms, waves, pseudo)
    np.testing.assert_allclose(found, packed(whole, sphere, waves), atol=1e-13)


def test_parts_must_make_a_density():
    grid = Grid(np.eye(3) * 4, (3, 4, 5))
    with pytest.raises(InputError, match="59 points"):
        Part.of(np.ones(59), grid, ALONE)
    with pytest.raises(InputError, match="not finite at 1 of 60"):
        Part.of(np.r_[np.ones(59), np.nan], grid, ALONE)


def test_hartree_of_a_wave():
    grid = Grid(np.diag([4.0, 5.0, 6.0]), (8, 9, 10))
    field = 1 + np.cos(2 * np.pi * np.arange(10) / 10) * np.ones(grid.shape)
    waves = sphere_waves(grid, 10 * KINETIC, ALONE)
    found = hartree(coefficients_of(Part.of(field, grid, ALONE), waves), waves, grid.volume)
    assert found == pytest.approx(hartree_energy(field, grid, 10 * KINETIC), rel=1e-13)


RANKS = (1, 2, 3, 4, 5)


@pytest.fixture(scope="module")
def energies_of_ranks(tmp_path_factory) -> dict[int, dict]:
    """One start of five ranks, of which 1, 2, 3, 4 and 5 compute."""
    folder = tmp_path_factory.mktemp("energies")
    ran = mpirun(RANKS[-1], TESTS / "mpi_energies_program.py", cwd=folder, timeout=100)
    assert ran.returncode == 0, ran.stderr
    return {int(ranks): found for ranks, found in json.loads(ran.stdout).items()}


@pytest.mark.parametrize("ranks", RANKS)
def test_any_number_of_ranks_gives_the_same_energies(energies_of_ranks, ranks):
    """A triclinic cell of four atoms, a prime grid, and (3, 5, 7) planes for up to five ranks."""
    one, many = energies_of_ranks[1], energies_of_ranks[ranks]
    for case, terms in one.items():
        assert many[case].pop("same"), f"{case}: ranks differ"
        for term, energy in terms.items():
            if term != "same":
                assert many[case][term] == pytest.approx(energy, rel=1e-11, abs=1e-12), (case, term)
