"""Derivatives of the native bispectrum: against torch's of its definition, finite differences, identities."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import pytest
import references
import references_adjoint
import torch
from ase import Atoms
from systems import SYSTEMS

from malax import kernels, library
from malax.errors import InputError
from malax.kernels_adjoint import BispectrumGradient, bispectrum_adjoint, bispectrum_jvp

LEVELS = library.build_info()["isa_levels"]
SETTINGS = {
    "twojmax": 4,
    "cutoff": 4.2,
    "rfac0": 0.99363,
    "rmin0": 0.0,
    "switchflag": True,
    "bzeroflag": False,
}
VARIANTS = [
    {"twojmax": 3, "rmin0": 1.9},
    {"twojmax": 3, "rfac0": 0.7},
    {"twojmax": 3, "rfac0": 1.3},
    {"twojmax": 3, "switchflag": False},
    {"twojmax": 3, "bzeroflag": True},
    {"twojmax": 2, "cutoff": 6.5},
]
TOLERANCE = {"float64": 1e-11, "float32": 2e-5}
"""Of the largest derivative."""


@pytest.fixture(params=LEVELS)
def isa(request, monkeypatch):
    monkeypatch.setenv("MALAX_ISA", request.param)
    assert library.build_info()["isa"] == request.param
    return request.param


class Problem:
    """A structure with points, dE/dB there, and a displacement of everything; all drawn from one seed."""

    def __init__(self, atoms: Atoms, n_points: int = 5, points=None, **settings) -> None:
        rng = np.random.default_rng(7)
        elements = list(dict.fromkeys(atoms.get_chemical_symbols()))
        types = np.array([elements.index(symbol) for symbol in atoms.get_chemical_symbols()])
        weights = np.array([1.0, 0.6, -0.8])[: len(elements)]
        points = rng.random((n_points, 3)) @ atoms.cell.array if points is None else np.asarray(points)
        self.settings = {**SETTINGS, **settings}
        self.atom_weights = weights[types]
        self.snap = {**self.settings, "weights": weights}
        self.structure = [atoms.positions, types, atoms.cell.array, atoms.pbc, points]
        shape = (len(points), kernels.bispectrum_size(self.settings["twojmax"]))
        self.gradient = rng.normal(size=shape)
        self.change = BispectrumGradient(
            rng.normal(size=atoms.positions.shape), rng.normal(size=(3, 3)), rng.normal(size=points.shape)
        )

    def bispectrum(self, step: float = 0.0, change: BispectrumGradient | None = None) -> np.ndarray:
        """With everything displaced by ``step`` times the change, in double."""
        move = self.change if change is None else change
        x, types, h, pbc, p = self.structure
        strain = np.eye(3) + step * move.strain
        moved = ((x + step * move.positions) @ strain, types, h @ strain, pbc)
        return kernels.bispectrum(*moved, (p + step * move.points) @ strain, **self.snap, threads=1)

    def adjoint(self, dtype: str = "float64", threads: int = 1) -> BispectrumGradient:
        return bispectrum_adjoint(*self.structure, self.gradient.astype(dtype), threads=threads, **self.snap)

    def jvp(self, dtype: str = "float64", threads: int = 1) -> np.ndarray:
        x, strain, p = self.change
        changes = {"positions_change": x, "strain": strain, "points_change": p}
        return bispectrum_jvp(*self.structure, **changes, dtype=dtype, threads=threads, **self.snap)

    def reference(self) -> tuple[BispectrumGradient, np.ndarray]:
        """Adjoint and forward-mode product by torch's derivatives of the definition."""
        x, _, h, pbc, p = self.structure

        def features(positions, strain, points):
            moved = (array + array @ strain for array in (positions, torch.from_numpy(h), points))
            return references_adjoint.bispectrum(*moved, self.atom_weights, pbc, **self.settings)

        at = tuple(torch.from_numpy(array) for array in (x, np.zeros((3, 3)), p))
        _, gradient = torch.autograd.functional.vjp(features, at, torch.from_numpy(self.gradient))
        _, jvp = torch.autograd.functional.jvp(features, at, tuple(map(torch.from_numpy, self.change)))
        return BispectrumGradient(*(g.numpy() for g in gradient)), jvp.numpy()


@cache
def problem(name: str) -> Problem:
    return Problem(SYSTEMS[name]())


@cache
def reference(name: str) -> tuple[BispectrumGradient, np.ndarray]:
    return problem(name).reference()


def assert_equal(found: BispectrumGradient, wanted: BispectrumGradient, tolerance: float) -> None:
    for f, w in zip(found, wanted, strict=True):
        assert f.dtype == np.float64
        assert_close(f, w, tolerance)


def assert_close(found: np.ndarray, wanted: np.ndarray, tolerance: float) -> None:
    error = np.abs(found - wanted).max() / np.abs(wanted).max()
    assert found.shape == wanted.shape and error < tolerance, error


def product_with(gradient: BispectrumGradient, change: BispectrumGradient) -> float:
    return sum(float((g * c).sum()) for g, c in zip(gradient, change, strict=True))


# ---- against the definition and finite differences -------------------------------------------------


@pytest.mark.parametrize("name", ["triclinic", "three_species"])
def test_reference_equals_definition(name):
    case = problem(name)
    x, _, h, pbc, p = case.structure
    tensors = (torch.from_numpy(array) for array in (x, h, p))
    found = references_adjoint.bispectrum(*tensors, case.atom_weights, pbc, **case.settings)
    wanted = [references.bispectrum(x, case.atom_weights, h, pbc, point, **case.settings) for point in p]
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", SYSTEMS)
def test_derivatives_equal_reference(name, dtype, isa):
    gradient, jvp = reference(name)
    assert_equal(problem(name).adjoint(dtype), gradient, TOLERANCE[dtype])
    assert_close(problem(name).jvp(dtype), jvp, TOLERANCE[dtype])


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_settings(settings, isa):
    case = Problem(SYSTEMS["three_species"](), n_points=3, **settings)
    gradient, jvp = case.reference()
    assert_equal(case.adjoint(), gradient, 1e-11)
    assert_close(case.jvp(), jvp, 1e-11)


@pytest.mark.parametrize("pbc", list(product([False, True], repeat=3)), ids=str)
def test_each_direction_may_be_open(pbc):
    atoms = SYSTEMS["triclinic"]()
    atoms.pbc = pbc
    case = Problem(atoms, n_points=3, twojmax=3)
    gradient, jvp = case.reference()
    assert_equal(case.adjoint(), gradient, 1e-11)
    assert_close(case.jvp(), jvp, 1e-11)


@pytest.mark.parametrize("name", SYSTEMS)
def test_finite_differences_of_each_argument(name):
    # a short step: the second derivative jumps where a neighbour enters the cutoff
    case, h = Problem(SYSTEMS[name](), n_points=3, twojmax=6), 1e-6
    gradient, zero = case.adjoint(), BispectrumGradient(*(np.zeros_like(c) for c in case.change))
    for field in zero._fields:
        for direction in np.eye(3):
            # one random number per atom or point, along x, then y, then z
            change = zero._replace(**{field: getattr(case.change, field)[:, :1] * direction})
            slopes = (case.bispectrum(h, change) - case.bispectrum(-h, change)) / (2 * h)
            error = abs((case.gradient * slopes).sum() - product_with(gradient, change))
            assert error < 2e-7 * np.abs(getattr(gradient, field)).max(), (field, direction)


# ---- identities ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("twojmax", range(2, 15))
def test_adjoint_identity(twojmax, dtype):
    case = Problem(SYSTEMS["three_species"](), n_points=6, twojmax=twojmax)
    terms = case.gradient * case.jvp(dtype)
    difference = terms.sum() - product_with(case.adjoint(dtype), case.change)
    assert abs(difference) < {"float64": 1e-12, "float32": 1e-5}[dtype] * np.abs(terms).sum()


@pytest.mark.parametrize("name", SYSTEMS)
def test_translations_and_rotations_cost_nothing(name, isa):
    # atoms and points moved together change nothing; nor does a rotation of all, so the strain is symmetric
    found = Problem(SYSTEMS[name](), n_points=40).adjoint()
    scale = np.abs(found.positions).max() + np.abs(found.points).max()
    assert np.abs(found.positions.sum(axis=0) + found.points.sum(axis=0)).max() < 1e-11 * scale
    assert np.abs(found.strain - found.strain.T).max() < 1e-11 * np.abs(found.strain).max()


def test_images_move_with_their_atom():
    # the derivatives of the copies in a supercell add up to the atom's
    atoms, cutoff = SYSTEMS["one_atom"](), 8.0
    case = Problem(atoms, cutoff=cutoff)
    one, many = case.adjoint(), Problem(atoms.repeat((2, 3, 2)), points=case.structure[4], cutoff=cutoff)
    many.gradient = case.gradient
    found = many.adjoint()
    np.testing.assert_allclose(found.positions.sum(axis=0), one.positions[0], rtol=1e-10)
    np.testing.assert_allclose(found.strain, one.strain, rtol=1e-9, atol=1e-10 * np.abs(one.strain).max())


# ---- order, threads, memory layout -----------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_threads_change_nothing(dtype, isa):
    # more blocks than are held at a time (32 per thread)
    case = Problem(SYSTEMS["orthogonal"](), n_points=1100, twojmax=2)
    one, jvp = case.adjoint(dtype), case.jvp(dtype)
    for threads in (2, 3, 7):
        for found, wanted in zip(case.adjoint(dtype, threads), one, strict=True):
            assert np.array_equal(found, wanted)
        assert np.array_equal(case.jvp(dtype, threads), jvp)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_order_and_number_of_points(dtype, isa):
    case = Problem(SYSTEMS["triclinic"](), n_points=77)
    whole, jvp = case.adjoint(dtype), case.jvp(dtype)
    order = np.random.default_rng(0).permutation(77)[:50]
    rest = np.setdiff1d(np.arange(77), order)
    parts = []
    for part in (order, rest):
        some = Problem(SYSTEMS["triclinic"](), points=case.structure[4][part])
        some.gradient = case.gradient[part]
        some.change = case.change._replace(points=case.change.points[part])
        parts.append(some.adjoint(dtype))
        # what belongs to a point does not depend on the others
        assert np.array_equal(parts[-1].points, whole.points[part])
        assert np.array_equal(some.jvp(dtype), jvp[part])
    for field in ("positions", "strain"):
        found, wanted = sum(getattr(part, field) for part in parts), getattr(whole, field)
        assert_close(found, wanted, {"float64": 1e-12, "float32": 1e-5}[dtype])


def test_non_contiguous_arrays_are_read_as_they_are():
    case = problem("triclinic")
    wanted, jvp = case.adjoint(), case.jvp()
    other = Problem(SYSTEMS["triclinic"]())
    x, types, h, pbc, p = case.structure
    wide = np.zeros((len(p), 6))
    wide[:, ::2] = p
    other.structure = [np.repeat(x, 2, axis=0)[::2], types, np.asfortranarray(h), pbc, wide[:, ::2]]
    other.gradient = np.asfortranarray(case.gradient)
    other.change = BispectrumGradient(*(np.asfortranarray(change) for change in case.change))
    for found, array in zip(other.adjoint(), wanted, strict=True):
        assert np.array_equal(found, array)
    assert np.array_equal(other.jvp(), jvp)


def test_no_points():
    case = Problem(SYSTEMS["three_species"](), n_points=0)
    found = case.adjoint()
    assert found.points.shape == (0, 3) and not found.positions.any() and not found.strain.any()
    assert case.jvp().shape == case.gradient.shape


# ---- edges -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_no_neighbours(dtype):
    case = Problem(Atoms("Al", cell=np.eye(3) * 30, pbc=True), points=[[15, 15, 15], [12.0, 15, 15]])
    assert not any(part.any() for part in case.adjoint(dtype)) and not case.jvp(dtype).any()


def test_an_atom_on_the_point_has_no_derivative():
    atoms, points = SYSTEMS["on_grid_point"](), [[0, 0, 0], [0, 4.0, -4.0], [1e-11, 0, 0]]
    both = Problem(atoms, points=points, cutoff=3.9)
    other = Problem(atoms[1:], points=points, cutoff=3.9)
    found, wanted = both.adjoint(), other.adjoint()
    assert not found.positions[0].any()
    np.testing.assert_allclose(found.positions[1:], wanted.positions, rtol=1e-12)
    np.testing.assert_allclose(found.points, wanted.points, rtol=1e-12)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_neighbour_at_the_cutoff(dtype):
    # it fades out: the derivative goes to zero like its distance from the cutoff, and is zero beyond
    sizes = []
    for distance in (3.5 - 2e-3, 3.5 - 1e-3, 3.5 - 1e-12, 3.5, 3.5 + 1e-12):
        atoms = Atoms("Al", positions=[[distance, 0, 0]], cell=np.eye(3) * 20)
        case = Problem(atoms, points=[[0, 0, 0]], cutoff=3.5)
        sizes.append(np.abs(case.adjoint(dtype).positions).max())
    assert 1.9 < sizes[0] / sizes[1] < 2.1
    assert sizes[2] < {"float64": 1e-8, "float32": 1e-4}[dtype] * sizes[0]
    assert sizes[3] == sizes[4] == 0


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_points_far_from_each_other(dtype, isa):
    # they share a block, and so neighbours that are far outside the cutoff of some of them
    rng = np.random.default_rng(3)
    positions, points = rng.normal(0, 1.5, (8, 3)), rng.normal(0, 1.0, (4, 3))
    positions[4:] += 1e6
    points[2:] += 1e6
    atoms = Atoms("Al8", positions=positions, cell=np.eye(3))
    whole = Problem(atoms, points=points, twojmax=14)
    one = Problem(atoms[:4], points=points[:2], twojmax=14)
    one.gradient = whole.gradient[:2]
    one.change = whole.change._replace(positions=whole.change.positions[:4], points=whole.change.points[:2])
    found, wanted = whole.adjoint(dtype), one.adjoint(dtype)
    assert np.array_equal(found.points[:2], wanted.points)
    assert np.array_equal(found.positions[:4], wanted.positions)
    assert np.isfinite(found.strain).all() and np.isfinite(found.positions).all()
    assert np.array_equal(whole.jvp(dtype)[:2], one.jvp(dtype))


def test_bzero_does_not_matter():
    with_it = Problem(SYSTEMS["vacuum"](), bzeroflag=True)
    assert np.array_equal(with_it.adjoint().points, problem("vacuum").adjoint().points)
    assert np.array_equal(with_it.jvp(), problem("vacuum").jvp())


# ---- bad input -------------------------------------------------------------------------------------


def test_bad_gradients():
    case = problem("one_atom")
    for gradient, message in (
        (case.gradient[:-1], r"gradient must be \(5, 14\) \(points, features\)"),
        (case.gradient.astype(complex), "of float32 or float64, got .* complex128"),
        (np.full_like(case.gradient, np.nan), "gradient is not finite"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            bispectrum_adjoint(*case.structure, gradient, **case.snap)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions_change": np.zeros((2, 3))}, r"positions_change must have shape \(1, 3\), got \(2, 3\)"),
        ({"strain": np.zeros(6)}, r"strain must have shape \(3, 3\)"),
        ({"points_change": np.full((5, 3), np.inf)}, "points_change holds NaN or infinity"),
        ({"dtype": "float16"}, "dtype must be float32 or float64"),
    ],
    ids=str,
)
def test_bad_changes(change, message):
    case = problem("one_atom")
    with pytest.raises(InputError, match=message):
        bispectrum_jvp(*case.structure, **change, **case.snap)


def test_bad_structures():
    case = problem("one_atom")
    x, types, h, pbc, p = case.structure
    for structure, message in (
        ((x[:0], types[:0], h, pbc, p), "at least one atom"),
        ((x * np.nan, types, h, pbc, p), "positions holds NaN"),
        ((x, types, h[[0, 1, 1]], pbc, p), "cell is degenerate"),
        ((x, types + 5, h, pbc, p), "type is out of range"),
    ):
        with pytest.raises(InputError, match=message):
            bispectrum_adjoint(*structure, case.gradient, **case.snap)
        with pytest.raises(InputError, match=message):
            bispectrum_jvp(*structure, **case.snap)
    with pytest.raises(InputError, match="twojmax must be 2 to 14"):
        bispectrum_adjoint(*case.structure, case.gradient, **{**case.snap, "twojmax": 15})
