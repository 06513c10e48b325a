"""Hartree energy, core charge, and the total free energy that is put together from the terms."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from systems import GRIDS, SYSTEMS

from malax import energies
from malax.energies import Energies, core_density, hartree_energy, total_free_energy, xc_energy
from malax.energies.core import core_coefficients, form_factor, radial_transform
from malax.energies.sphere import KINETIC, GSphere, interpolate, refined_grid
from malax.errors import FileError, InputError
from malax.grid import Grid
from malax.io.upf import RADIAL_CUTOFF, Pseudopotential, read_upf
from malax.units import BOHR, COULOMB

SHIPPED = Path(energies.__file__).resolve().parents[1] / "data" / "Al.pbe-nc.UPF"
CELL = np.array([[4.1, 0.0, 0.0], [1.3, 3.9, 0.0], [-0.9, 1.1, 4.6]])


def gaussian_core(element: str = "Al", z_valence: float = 3.0, electrons: float = 2.0) -> Pseudopotential:
    """Core charge ``electrons`` of a Gaussian exp(-r^2 / w^2), w = 0.5 A: its transform is known."""
    w = 0.5
    r = 1e-4 * np.exp(np.arange(901) * 0.0125)
    core = electrons * np.exp(-((r / w) ** 2)) / (math.pi**1.5 * w**3)
    return Pseudopotential(element, z_valence, "PBE", "NC", r, 0.0125 * r, core, "", f"{element}.UPF")


def smooth(grid: Grid, electrons: float, seed: int = 0) -> np.ndarray:
    """A positive density of the longest waves, with so many electrons."""
    rng = np.random.default_rng(seed)
    scaled = np.stack(np.meshgrid(*[np.arange(n) / n for n in grid.shape], indexing="ij"), axis=-1)
    field = np.ones(grid.shape)
    for _ in range(4):
        field += 0.2 * np.cos(2 * np.pi * (scaled @ rng.integers(-1, 2, 3) + rng.random()))
    return field * electrons / (field.sum() * grid.point_volume)


def waves_of(grid: Grid, *coefficients: tuple[tuple[int, int, int], float]) -> np.ndarray:
    scaled = np.stack(np.meshgrid(*[np.arange(n) / n for n in grid.shape], indexing="ij"), axis=-1)
    return sum(a * np.cos(2 * np.pi * (scaled @ np.array(m) + 0.1)) for m, a in coefficients)


# ---- Hartree -----------------------------------------------------------------------------------


@pytest.mark.parametrize("wave", [(1, 0, 0), (0, -1, 2), (2, 1, 0), (1, 1, -1)])
def test_hartree_energy_of_one_wave(wave):
    """n = n0 + a cos(G r + phi): E_H = pi e^2 V a^2 / G^2."""
    grid = Grid(CELL, (9, 8, 10))
    a = 0.07
    g2 = ((np.array(wave) @ grid.reciprocal) ** 2).sum()
    expected = math.pi * COULOMB * grid.volume * a**2 / g2
    assert hartree_energy(0.3 + waves_of(grid, (wave, a)), grid) == pytest.approx(expected, rel=1e-12)


def test_hartree_is_cut_to_the_sphere():
    grid = Grid(CELL, (9, 8, 10))
    inner, outer = (1, 0, 0), (-2, 3, 1)
    size = {m: KINETIC * ((np.array(m) @ grid.reciprocal) ** 2).sum() for m in (inner, outer)}
    cutoff = 100.0
    assert size[inner] < cutoff < size[outer]
    both = waves_of(grid, (inner, 0.1), (outer, 0.1))
    expected = hartree_energy(waves_of(grid, (inner, 0.1)), grid)
    assert hartree_energy(both, grid, cutoff) == pytest.approx(expected, rel=1e-12)
    # a wave exactly on the sphere belongs to it
    assert hartree_energy(both, grid, size[inner]) == pytest.approx(expected, rel=1e-12)


def test_hartree_energy_of_gaussians():
    """Two Gaussian clouds far apart interact as point charges, but for what their width does to the mean.

    In Fourier space (1 - exp(-w^2 G^2 / 2)) / G^2 is short-ranged except at G = 0, where it is w^2 / 2.
    """
    box, w, charges = 12.0, 0.5, np.array([1.0, 2.0])
    atoms = Atoms("H2", positions=[[3, 3, 3], [8, 9, 7]], cell=np.eye(3) * box, pbc=True)
    grid = Grid(atoms.cell.array, (60, 60, 60))
    assert grid.largest_sphere * w**2 / 4 > 15  # the grid resolves the clouds
    cloud = {"H": gaussian_core("H", 1.0, 1.0)}
    one, two = (core_density(atoms[[i]], grid, cloud) * charges[i] for i in (0, 1))
    points = energies.ewald_energy(atoms, charges)
    alone = [energies.ewald_energy(atoms[[i]], [charges[i]]) for i in (0, 1)]
    mean = 2 * math.pi * COULOMB * w**2 / box**3
    interaction = hartree_energy(one + two, grid) - hartree_energy(one, grid) - hartree_energy(two, grid)
    assert interaction == pytest.approx(points - sum(alone) + mean * charges.prod(), abs=1e-7)
    own = COULOMB / (math.sqrt(2 * math.pi) * w) + mean / 2
    assert hartree_energy(one, grid) == pytest.approx(alone[0] + own, abs=1e-7)


def test_hartree_gradient():
    """dE/dn is the Hartree potential: sum over G of 4 pi n(G) / G^2."""
    grid = Grid(CELL, (7, 6, 8))
    n, change = smooth(grid, 9.0), smooth(grid, 1.0, seed=1)
    density = torch.tensor(n, requires_grad=True)
    energy = hartree_energy(density, grid)
    (potential,) = torch.autograd.grad(energy, density)
    slope = (hartree_energy(n + 0.1 * change, grid) - hartree_energy(n - 0.1 * change, grid)) / 0.2
    assert (potential.numpy() * change).sum() == pytest.approx(slope, rel=1e-9)
    assert (potential.numpy() * n).sum() == pytest.approx(2 * energy.item(), rel=1e-12)


@pytest.mark.parametrize("cutoff", [0.0, -5.0, math.nan, math.inf])
def test_unusable_cutoff(cutoff):
    with pytest.raises(InputError, match="ecutrho must be a positive energy in eV"):
        hartree_energy(np.ones((4, 4, 4)), Grid(CELL, (4, 4, 4)), cutoff)


def test_cutoff_beyond_the_grid():
    with pytest.raises(InputError, match=r"\(4, 4, 4\) is too coarse for ecutrho = 500 eV"):
        hartree_energy(np.ones((4, 4, 4)), Grid(CELL, (4, 4, 4)), 500.0)


# ---- core charge -------------------------------------------------------------------------------


def test_radial_transform_of_a_gaussian():
    g = np.linspace(0, 12, 50)
    expected = 2.0 * np.exp(-((0.5 * g) ** 2) / 4)
    np.testing.assert_allclose(radial_transform(gaussian_core(), g), expected, atol=1e-8)


@pytest.mark.parametrize("g_max", [3.0, 17.0, 40.0])
def test_form_factor_is_the_radial_transform(g_max):
    """The Chebyshev series reproduces the integral to rounding at every wave number."""
    al = read_upf(SHIPPED)
    g = np.append(np.random.default_rng(0).uniform(0, g_max, 200), [0.0, g_max])
    found = form_factor(al, torch.tensor(g), g_max).numpy()
    np.testing.assert_allclose(found, radial_transform(al, g), rtol=0, atol=1e-12)


def test_radial_mesh_ends_as_in_quantum_espresso():
    """With the first point beyond 10 bohr, an odd number of points, and 10.00 bohr is not beyond."""
    for step, n_file, n_used in ((0.01, 1200, 1001), (0.03, 400, 335), (0.04, 100, 99)):
        r = np.arange(n_file) * step * BOHR
        core = np.ones(n_file)
        pseudopotential = Pseudopotential(
            "X", 1.0, "PBE", "NC", r, np.full(n_file, step * BOHR), core, "", ""
        )
        # Simpson's rule is exact for r^2 over the whole of the mesh that is used
        end = r[n_used - 1]
        assert end <= RADIAL_CUTOFF + 2 * step * BOHR
        found = radial_transform(pseudopotential, np.zeros(1))[0]
        assert found == pytest.approx(4 * math.pi * end**3 / 3, rel=1e-12), step


@pytest.mark.parametrize("name", SYSTEMS)
def test_core_density_against_its_definition(name):
    """Sum over atoms and waves, written out; two species with a core charge and one without."""
    atoms = SYSTEMS[name]()
    grid = Grid(atoms.cell.array, GRIDS[name])
    pseudopotentials = {"Al": gaussian_core("Al"), "Be": gaussian_core("Be", 2.0, 0.7)}
    pseudopotentials["O"] = Pseudopotential("O", 6.0, "PBE", "NC", np.empty(0), np.empty(0), None, "", "O")
    found = core_density(atoms, grid, pseudopotentials)
    sphere = GSphere(grid)
    g_vectors = grid.g_vectors().numpy()[sphere.inside.numpy()]
    weights = sphere.weights.expand(sphere.inside.shape).numpy()[sphere.inside.numpy()]
    expected = np.zeros(grid.n_points)
    points = grid.points()
    for symbol, position in zip(atoms.symbols, atoms.positions, strict=True):
        factor = radial_transform(pseudopotentials[symbol], np.linalg.norm(g_vectors, axis=1)) * weights
        expected += np.cos((points - position) @ g_vectors.T) @ factor / grid.volume
    np.testing.assert_allclose(found.reshape(-1), expected, atol=1e-10)


def test_core_density_moves_with_the_atoms():
    atoms = SYSTEMS["orthogonal"]()
    grid = Grid(atoms.cell.array, (10, 12, 9))
    before = core_density(atoms, grid, {"Al": gaussian_core()})
    moved = atoms.copy()
    moved.positions += atoms.cell.array[0] * 3 / 10 - atoms.cell.array[2] / 9
    after = core_density(moved, grid, {"Al": gaussian_core()})
    np.testing.assert_allclose(after, np.roll(before, (3, -1), (0, 2)), atol=1e-12)
    assert before.sum() * grid.point_volume == pytest.approx(4 * 2.0, rel=1e-8)


def test_core_density_is_differentiable():
    atoms = SYSTEMS["triclinic"]()
    sphere = GSphere(Grid(atoms.cell.array, (8, 8, 8)))
    pseudopotentials = {"Be": gaussian_core("Be")}
    probe = torch.tensor(smooth(sphere.grid, 1.0))

    def overlap(positions: torch.Tensor) -> torch.Tensor:
        coefficients = core_coefficients(positions, ["Be"] * 3, sphere, pseudopotentials)
        return (sphere.field(coefficients) * probe).sum()

    positions = torch.tensor(atoms.positions, requires_grad=True)
    (gradient,) = torch.autograd.grad(overlap(positions), positions)
    change = torch.tensor(np.random.default_rng(0).normal(size=(3, 3)))
    with torch.no_grad():
        slope = (overlap(positions + 1e-4 * change) - overlap(positions - 1e-4 * change)) / 2e-4
    assert (gradient * change).sum().item() == pytest.approx(slope.item(), rel=1e-6)


def test_core_density_needs_its_own_cell():
    atoms = SYSTEMS["orthogonal"]()
    with pytest.raises(InputError, match="does not belong to the structure"):
        core_density(atoms, Grid(atoms.cell.array * 1.01, (4, 4, 4)), {"Al": gaussian_core()})
    with pytest.raises(InputError, match="no pseudopotential for Al"):
        core_density(atoms, Grid(atoms.cell.array, (4, 4, 4)), {})


# ---- interpolation -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "old, new", [((5, 6, 7), (8, 9, 14)), ((6, 6, 6), (6, 12, 7)), ((4, 5, 8), (4, 5, 8))]
)
def test_interpolation(old, new):
    """Exact for waves of the old grid; values on common points and the mean stay for any field."""
    coarse, fine = Grid(CELL, old), Grid(CELL, new)
    waves = (((1, -1, 1), 0.3), ((0, 2, -1), 0.2), ((-1, 1, 2), 0.1))
    found = interpolate(torch.tensor(waves_of(coarse, *waves)), new)
    np.testing.assert_allclose(found.numpy(), waves_of(fine, *waves), atol=1e-14)
    noise = np.random.default_rng(0).normal(size=old)
    found = interpolate(torch.tensor(noise), new).numpy()
    assert found.mean() == pytest.approx(noise.mean(), abs=1e-14)
    if all(n % o == 0 for n, o in zip(new, old, strict=True)):
        steps = tuple(slice(None, None, n // o) for n, o in zip(new, old, strict=True))
        np.testing.assert_allclose(found[steps], noise, atol=1e-14)


def test_interpolation_keeps_the_points():
    noise = np.random.default_rng(0).normal(size=(4, 5, 6))
    found = interpolate(torch.tensor(noise), (8, 15, 12)).numpy()
    np.testing.assert_allclose(found[::2, ::3, ::2], noise, atol=1e-14)


def test_refined_grid():
    grid = Grid(CELL, (12, 12, 12))
    largest = grid.largest_sphere * KINETIC
    assert refined_grid(grid, 0.99 * largest) is grid
    finer = refined_grid(grid, 3 * largest)
    assert finer.largest_sphere * KINETIC >= 3 * largest
    assert min(finer.shape) >= 12
    with pytest.raises(InputError, match="too coarse for ecutrho.*needs"):
        refined_grid(grid, 100 * largest)


# ---- total -------------------------------------------------------------------------------------


def example() -> tuple[Atoms, Grid, np.ndarray]:
    atoms = SYSTEMS["orthogonal"]()
    grid = Grid(atoms.cell.array, (15, 16, 14))
    return atoms, grid, smooth(grid, 12.0)


def test_total_is_the_sum_of_its_terms():
    atoms, grid, density = example()
    al = read_upf(SHIPPED)
    found = total_free_energy(atoms, density, 41.0, -0.25, {"Al": SHIPPED})
    core = core_density(atoms, grid, {"Al": al})
    exc, vxc_rho = xc_energy(density, core, grid, "PBE")
    assert found.hartree == pytest.approx(hartree_energy(density, grid), rel=1e-13)
    assert (found.xc, found.vxc_rho) == pytest.approx((exc, vxc_rho), rel=1e-12)
    assert found.ewald == pytest.approx(energies.ewald_energy(atoms, [3.0] * 4), rel=1e-14)
    assert (found.band, found.entropy_term) == (41.0, -0.25)
    parts = 41.0 - found.hartree + found.xc - found.vxc_rho + found.ewald - 0.25
    assert found.total_free == pytest.approx(parts, rel=1e-14)
    assert found.internal == pytest.approx(parts + 0.25, rel=1e-14)
    assert all(type(value) is float for value in found.as_dict().values())


def test_numpy_and_torch_give_the_same():
    atoms, _, density = example()
    al = {"Al": read_upf(SHIPPED)}
    plain = total_free_energy(atoms, density, 41.0, -0.25, al)
    tensors = total_free_energy(atoms, torch.tensor(density), torch.tensor(41.0), torch.tensor(-0.25), al)
    assert isinstance(tensors.total_free, torch.Tensor)
    assert tensors.as_dict() == pytest.approx(plain.as_dict(), rel=1e-14)
    single = total_free_energy(atoms, density.astype(np.float32), 41.0, -0.25, al)
    assert single.total_free == pytest.approx(plain.total_free, rel=1e-6)


def test_gradient_by_the_density():
    atoms, grid, n = example()
    al = {"Al": read_upf(SHIPPED)}
    density = torch.tensor(n, requires_grad=True)
    band = torch.tensor(41.0, dtype=torch.float64, requires_grad=True)
    found = total_free_energy(atoms, density, band, 0.0, al)
    gradient, by_band = torch.autograd.grad(found.total_free, (density, band))
    assert by_band == 1.0
    change = smooth(grid, 0.1, seed=3) - smooth(grid, 0.1, seed=4)
    up, down = (total_free_energy(atoms, n + s * change, 41.0, 0.0, al).total_free for s in (0.1, -0.1))
    assert (gradient.numpy() * change).sum() == pytest.approx((up - down) / 0.2, rel=1e-5)


def test_cutoff_beyond_the_grid_is_met_by_interpolation():
    """A density that the coarse grid holds exactly has the energy of the fine grid."""
    atoms, grid, _ = example()
    coarse = Grid(grid.cell, (8, 9, 8))
    al = {"Al": read_upf(SHIPPED)}
    cutoff = 0.9 * grid.largest_sphere * KINETIC
    assert cutoff > coarse.largest_sphere * KINETIC
    fine = total_free_energy(atoms, smooth(refined_grid(coarse, cutoff), 12.0), 0.0, 0.0, al, ecutrho=cutoff)
    found = total_free_energy(atoms, smooth(coarse, 12.0), 0.0, 0.0, al, ecutrho=cutoff)
    assert found.total_free == pytest.approx(fine.total_free, rel=1e-12)


def test_energies_that_cannot_be_had():
    found = Energies(band=3.0, entropy_term=-0.1)
    assert found.total_free is None and found.internal is None
    assert found.as_dict() == {
        "total_free": None,
        "band": 3.0,
        "entropy_term": -0.1,
        "hartree": None,
        "xc": None,
        "vxc_rho": None,
        "ewald": None,
    }
    assert Energies(**found.as_dict()) == found


def test_pseudopotential_of_another_functional():
    atoms, _, density = example()
    with pytest.warns(UserWarning, match="Al.pbe-nc.UPF was made for PBE, the energy is that of PZ"):
        total_free_energy(atoms, density, 0.0, 0.0, {"Al": SHIPPED}, xc="LDA")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"density": np.ones(20)}, r"shape \(nx, ny, nz\), got \(20,\)"),
        ({"density": np.full((8, 8, 8), np.nan)}, "not finite at 512 of 512"),
        ({"scale": BOHR**3}, "holds 1.778.* electrons.* pseudopotentials have 12: wrong cell, wrong unit"),
        ({"negative": True}, "the density is negative"),
        ({"band_energy": math.nan}, "band energy must be one finite number"),
        ({"entropy_term": "zero"}, "entropy term must be one number"),
        ({"pseudopotentials": {}}, "no pseudopotential for Al; there are: none"),
        ({"xc": "HSE"}, "'HSE' is not supported"),
        ({"ecutrho": 1e6}, "too coarse for ecutrho"),
        ({"pbc": False}, "periodic in all three directions"),
    ],
)
def test_unusable_input(change, message):
    atoms, grid, density = example()
    change = dict(change)
    density = change.pop("density", density) * change.pop("scale", 1.0)
    if change.pop("negative", False):
        density = density + waves_of(grid, ((1, 1, 0), 0.4))
    atoms.pbc = change.pop("pbc", True)
    arguments = {"band_energy": 0.0, "entropy_term": 0.0, "pseudopotentials": {"Al": SHIPPED}} | change
    with pytest.raises(InputError, match=message):
        total_free_energy(atoms, density, **arguments)


def test_pseudopotential_that_is_not_there(tmp_path):
    atoms, _, density = example()
    with pytest.raises(FileError, match="Al.UPF: No such file"):
        total_free_energy(atoms, density, 0.0, 0.0, {"Al": tmp_path / "Al.UPF"})
