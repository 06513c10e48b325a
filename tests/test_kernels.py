"""The native bispectrum against its definition, at every ISA level that runs here."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import references
from ase import Atoms
from scipy.spatial.transform import Rotation
from systems import GRIDS, SYSTEMS

from malax import kernels, library
from malax.errors import InputError
from malax.grid import Grid

LEVELS = library.build_info()["isa_levels"]
SETTINGS = {
    "twojmax": 4,
    "cutoff": 4.2,
    "rfac0": 0.99363,
    "rmin0": 0.0,
    "switchflag": True,
    "bzeroflag": False,
}
TOLERANCE = {"float64": 1e-12, "float32": 2e-5}
"""Of each feature's maximum."""


@pytest.fixture(params=LEVELS)
def isa(request, monkeypatch):
    monkeypatch.setenv("MALAX_ISA", request.param)
    assert library.build_info()["isa"] == request.param
    return request.param


def weights_of(atoms: Atoms) -> tuple[np.ndarray, np.ndarray]:
    """Types by order of appearance, and a weight for each: unequal, one negative."""
    elements = list(dict.fromkeys(atoms.get_chemical_symbols()))
    types = np.array([elements.index(symbol) for symbol in atoms.get_chemical_symbols()])
    return types, np.array([1.0, 0.6, -0.8])[: len(elements)]


def native(atoms: Atoms, points, dtype="float64", threads=1, **settings) -> np.ndarray:
    types, weights = weights_of(atoms)
    arguments = {**SETTINGS, **settings, "weights": weights, "dtype": dtype, "threads": threads}
    return kernels.bispectrum(atoms.positions, types, atoms.cell.array, atoms.pbc, points, **arguments)


def slow(atoms: Atoms, points, **settings) -> np.ndarray:
    types, weights = weights_of(atoms)
    arguments = (atoms.positions, weights[types], atoms.cell.array, atoms.pbc)
    return np.array(
        [references.bispectrum(*arguments, point, **{**SETTINGS, **settings}) for point in points]
    )


def assert_equal(found: np.ndarray, wanted: np.ndarray, dtype: str = "float64") -> None:
    error = np.abs(found - wanted).max(axis=0) / np.abs(wanted).max(axis=0)
    assert found.shape == wanted.shape and error.max() < TOLERANCE[dtype], error.max()


def some_points(name: str, count: int = 5) -> np.ndarray:
    grid = Grid(SYSTEMS[name]().cell.array, GRIDS[name])
    return grid.positions(np.linspace(0, grid.n_points - 1, count).astype(int))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", SYSTEMS)
def test_bispectrum_equals_definition(name, dtype, isa):
    points = some_points(name)
    assert_equal(native(SYSTEMS[name](), points, dtype), slow(SYSTEMS[name](), points), dtype)


@pytest.mark.parametrize(
    "settings",
    [
        {"twojmax": 2},
        {"twojmax": 5},
        {"rmin0": 1.9},
        {"rfac0": 0.7},
        {"rfac0": 1.3},
        {"switchflag": False},
        {"bzeroflag": True},
        {"cutoff": 7.5, "twojmax": 3},
    ],
    ids=str,
)
def test_bispectrum_settings(settings, isa):
    atoms, points = SYSTEMS["three_species"](), some_points("three_species", 3)
    assert_equal(native(atoms, points, **settings), slow(atoms, points, **settings))


@pytest.mark.parametrize("pbc", list(product([False, True], repeat=3)), ids=str)
def test_each_direction_may_be_open(pbc):
    atoms, points = SYSTEMS["triclinic"](), some_points("triclinic", 4)
    atoms.pbc = pbc
    assert_equal(native(atoms, points), slow(atoms, points))


def test_open_directions_need_no_cell_vectors():
    points = [[0.3, 0.1, 0.9]]
    molecule = Atoms("Al3", positions=[[0, 0, 0.2], [2, 0, 0], [0, 2.5, 1]])
    wire = Atoms(
        "Al", positions=[[0, 0, 0.2]], cell=[[0, 0, 0], [1, 1, 2.5], [0, 0, 0]], pbc=[False, True, False]
    )
    in_box = Atoms(wire, cell=[[9, 0, 0], [1, 1, 2.5], [0, 9, 0]])
    assert_equal(native(molecule, points), slow(Atoms(molecule, cell=np.eye(3)), points))
    assert_equal(native(wire, points), slow(in_box, points))


def test_cutoff_longer_than_the_cell_equals_a_supercell():
    atoms, points = SYSTEMS["one_atom"](), some_points("one_atom")
    assert_equal(native(atoms, points, cutoff=9.0), native(atoms.repeat((3, 2, 4)), points, cutoff=9.0))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("twojmax", range(2, 15))
def test_no_neighbours(twojmax, dtype):
    atoms = Atoms("Al", positions=[[0, 0, 0]], cell=np.eye(3) * 30, pbc=True)
    alone = native(atoms, [[15, 15, 15]], dtype, twojmax=twojmax)[0]
    # only the point's own contribution: j + 1 for each component
    sizes = [
        j + 1
        for j1 in range(twojmax + 1)
        for j2 in range(j1 + 1)
        for j in range(j1 - j2, min(twojmax, j1 + j2) + 1, 2)
        if j >= j1
    ]
    np.testing.assert_allclose(alone, sizes, rtol=TOLERANCE[dtype] / 5)
    np.testing.assert_allclose(
        native(atoms, [[15, 15, 15]], dtype, twojmax=twojmax, bzeroflag=True), 0, atol=6e-5
    )


def test_an_atom_on_the_point_does_not_count():
    atoms = SYSTEMS["on_grid_point"]()
    alone = Atoms("Al", positions=atoms.positions[1:], cell=atoms.cell, pbc=True)
    points = [[0, 0, 0], [0, 4.0, -4.0], [1e-11, 0, 0]]
    on_it, without = native(atoms, points, cutoff=3.9), native(alone, points, cutoff=3.9)
    np.testing.assert_allclose(on_it, without, rtol=1e-12)
    # beside it, it does
    assert np.abs(native(atoms, [[1e-6, 0, 0]], cutoff=3.9) / without[0] - 1).min() > 0.01


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_parts_equal_the_whole_bit_for_bit(dtype, isa):
    atoms = SYSTEMS["triclinic"]()
    points = Grid(atoms.cell.array, (7, 11, 5)).points()
    whole = native(atoms, points, dtype)
    order = np.random.default_rng(0).permutation(len(points))
    assert np.array_equal(native(atoms, points[order], dtype), whole[order])
    for start, stop in ((0, 1), (3, 20), (100, 385), (384, 385)):
        assert np.array_equal(native(atoms, points[start:stop], dtype), whole[start:stop])
    assert native(atoms, points[:0], dtype).shape == (0, whole.shape[1])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_threads_change_nothing(dtype):
    atoms = SYSTEMS["orthogonal"]()
    points = Grid(atoms.cell.array, (12, 11, 10)).points()
    one = native(atoms, points, dtype)
    for threads in (2, 3, 7):
        assert np.array_equal(native(atoms, points, dtype, threads=threads), one)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_points_far_from_each_other(dtype, isa):
    # they share a block, and so neighbours that are far outside the cutoff of some of them
    rng = np.random.default_rng(3)
    positions, points = rng.normal(0, 1.5, (8, 3)), rng.normal(0, 1.0, (4, 3))
    positions[4:] += 1e6
    points[2:] += 1e6
    atoms = Atoms("Al8", positions=positions, cell=np.eye(3))
    found = native(atoms, points, dtype, twojmax=14)
    assert np.isfinite(found).all()
    assert np.array_equal(found[:2], native(atoms[:4], points[:2], dtype, twojmax=14))


def test_many_points_are_cut_by_tasks():
    # above the size where the order of the points is found by several threads
    atoms = SYSTEMS["one_atom"]()
    points = Grid(atoms.cell.array, (36, 35, 34)).points()
    settings = {"twojmax": 2, "cutoff": 3.0, "dtype": "float32"}
    both = native(atoms, points, threads=2, **settings)
    sample = np.random.default_rng(1).choice(len(points), 200, replace=False)
    assert np.array_equal(native(atoms, points[sample], **settings), both[sample])
    assert_equal(both[sample[:10]], slow(atoms, points[sample[:10]], twojmax=2, cutoff=3.0), "float32")


def test_non_contiguous_arrays_are_read_as_they_are():
    atoms, points = SYSTEMS["triclinic"](), some_points("triclinic")
    wanted = native(atoms, points)
    types, weights = weights_of(atoms)
    cell = np.asfortranarray(atoms.cell.array)
    positions = np.repeat(atoms.positions, 2, axis=0)[::2]
    assert not cell.flags.c_contiguous and not positions.flags.c_contiguous
    wide = np.zeros((len(points), 6))
    wide[:, ::2] = points
    found = kernels.bispectrum(
        positions,
        types.astype(np.int64),
        cell,
        [True] * 3,
        wide[:, ::2],
        **SETTINGS,
        weights=weights,
        threads=1,
    )
    assert np.array_equal(found, wanted)
    # and a transposed cell is another cell
    other = kernels.bispectrum(positions, types, cell.T, [True] * 3, points, **SETTINGS, weights=weights)
    assert np.abs(other - wanted).max() > 1


def test_out_is_written_to():
    atoms, points = SYSTEMS["orthogonal"](), some_points("orthogonal")
    types, weights = weights_of(atoms)
    arguments = (atoms.positions, types, atoms.cell.array, atoms.pbc, points)
    out = np.full((len(points), 14), np.nan)
    assert kernels.bispectrum(*arguments, **SETTINGS, weights=weights, out=out) is out
    assert np.array_equal(out, native(atoms, points))
    wide = np.zeros((2 * len(points), 20))
    rows = wide[1::2, 3:17]
    assert kernels.bispectrum(*arguments, **SETTINGS, weights=weights, out=rows) is rows
    assert (
        np.array_equal(rows, out) and not wide[::2].any() and not wide[:, :3].any() and not wide[:, 17:].any()
    )
    for bad in (out[:, ::2], out[1:], out.astype("float32"), np.empty((14, len(points))).T, out.tolist()):
        with pytest.raises(InputError, match="out must be"):
            kernels.bispectrum(*arguments, **SETTINGS, weights=weights, out=bad)
    out.flags.writeable = False
    with pytest.raises(InputError, match="writeable"):
        kernels.bispectrum(*arguments, **SETTINGS, weights=weights, out=out)


def test_where_atoms_and_points_are_wrapped_does_not_matter():
    atoms, points = SYSTEMS["triclinic"](), some_points("triclinic")
    moved = atoms.copy()
    moved.positions += np.array([[3, -2, 0], [0, 0, 7], [-1, 0, 1]]) @ atoms.cell.array
    shift = np.array([-4, 2, 1]) @ atoms.cell.array
    assert_equal(native(moved, points + shift), native(atoms, points))


@pytest.mark.parametrize("inversion", [1, -1])
@pytest.mark.parametrize("seed", range(3))
def test_invariant_under_rotation_and_inversion(seed, inversion):
    turn = inversion * Rotation.random(random_state=seed).as_matrix()
    atoms, points = SYSTEMS["three_species"](), some_points("three_species")
    turned = Atoms(atoms.symbols, positions=atoms.positions @ turn, cell=atoms.cell.array @ turn, pbc=True)
    assert_equal(native(turned, points @ turn), native(atoms, points))


def test_neighbours_fade_out_at_the_cutoff():
    far = [native(Atoms("Al", positions=[[0, 0, r]]), [[0, 0, 0]])[0] for r in (4.2 - 1e-6, 4.2 + 1e-6)]
    np.testing.assert_allclose(*far, rtol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": [[0.0, 0.0, np.nan]]}, r"positions holds NaN .*\(0, 2\)"),
        ({"positions": np.zeros((0, 3)), "types": np.zeros(0, int)}, "at least one atom"),
        ({"positions": [0.0, 0.0, 0.0]}, "positions must have shape"),
        ({"positions": "none"}, "positions must be an array of numbers"),
        ({"types": [0.0]}, "types must be integers"),
        ({"types": [0, 0]}, "one integer per atom"),
        ({"types": [1]}, "type is out of range"),
        ({"types": [-1]}, "type is out of range"),
        ({"cell": np.zeros((3, 3))}, "degenerate"),
        ({"cell": [[1, 0, 0], [0, 1, 0], [1, 1, 1e-14]]}, "degenerate"),
        ({"cell": np.full((3, 3), np.inf)}, "cell holds NaN or infinity"),
        ({"cell": np.eye(2)}, "cell must have shape"),
        ({"pbc": [True]}, "pbc must be three flags"),
        ({"points": [[0.0, np.inf, 0.0]]}, "points holds NaN"),
        ({"points": [[0.0, 0.0]]}, "points must have shape"),
        ({"twojmax": 1}, "twojmax must be 2 to 14"),
        ({"twojmax": 15}, "twojmax must be 2 to 14"),
        ({"twojmax": 4.0}, "twojmax must be an integer"),
        ({"cutoff": 0.0}, "cutoff must be positive"),
        ({"cutoff": np.nan}, "cutoff must be positive"),
        ({"rfac0": -1.0}, "rfac0 must be positive"),
        ({"rmin0": 4.2}, "rmin0 must be"),
        ({"rmin0": np.nan}, "rmin0 must be"),
        ({"weights": []}, "at least one weight"),
        ({"weights": [np.nan]}, "weights holds NaN"),
        ({"dtype": "float16"}, "dtype must be float32 or float64"),
        ({"dtype": "nonsense"}, "dtype must be float32 or float64"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"threads": "two"}, "threads must be an integer"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bad_input_is_named(change, message):
    good = {
        "positions": np.zeros((1, 3)),
        "types": np.zeros(1, int),
        "cell": np.eye(3) * 5,
        "pbc": [True] * 3,
        "points": np.ones((1, 3)),
        "weights": [1.0],
        **SETTINGS,
    }
    kernels.bispectrum(**good)
    with pytest.raises(InputError, match=message):
        kernels.bispectrum(**{**good, **change})


def test_a_prepared_structure_gives_the_same() -> None:
    atoms = SYSTEMS["triclinic"]()
    types = np.zeros(len(atoms), int)
    settings = dict(
        twojmax=6, cutoff=4.2, rfac0=0.99363, rmin0=0.0, switchflag=True, bzeroflag=False, weights=[1.0]
    )
    structure = (atoms.positions, types, atoms.cell.array, atoms.pbc)
    prepared = kernels.Bispectrum(*structure, **settings)
    points = np.random.default_rng(3).uniform(-5, 15, (57, 3))
    for dtype in TOLERANCE:
        wanted = kernels.bispectrum(*structure, points, dtype=dtype, **settings)
        np.testing.assert_array_equal(prepared.at(points, dtype=dtype), wanted)
        np.testing.assert_array_equal(prepared.at(points[20:31], dtype=dtype, threads=2), wanted[20:31])
    seconds = prepared.stages(points)
    assert tuple(seconds) == kernels.Bispectrum.STAGES and all(s >= 0 for s in seconds.values())
    assert seconds["U"] > 0 and seconds["B"] > 0
    with pytest.raises(InputError, match="type is out of range"):
        kernels.Bispectrum(atoms.positions, types + 1, atoms.cell.array, atoms.pbc, **settings)
