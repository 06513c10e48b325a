"""Models and snapshots of MALA, in files made here after the published layout of its formats."""

from __future__ import annotations

import io
import json
import pickle
import sys
import types
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from fakes import ENERGY_GRID, UPF, make_atoms, make_snapshot
from torch import nn

import malax
from malax import observables
from malax.descriptors import bispectrum
from malax.errors import FileError, InputError
from malax.grid import Grid
from malax.interfaces import mala
from malax.io.mala_files import read_scaler
from malax.model_file import read_model

pytestmark = pytest.mark.filterwarnings("ignore::malax.checks.ModelDomainWarning")

SHAPE = (9, 8, 10)
HIDDEN = 11
N_ENERGIES = 27
FEATURES = 14  # twojmax 4


class DataScaler:
    """The attributes of MALA's class; pickled under MALA's name."""

    def __init__(self, kind: str, data: torch.Tensor) -> None:
        self.use_horovod = False
        self.typestring = kind
        self.scale_standard, self.scale_normal = "standard" in kind, "normal" in kind
        self.feature_wise, self.cantransform = "feature-wise" in kind, True
        self.means, self.stds = data.mean(0, keepdim=True), data.std(0, keepdim=True)
        self.maxs, self.mins = data.max(0).values, data.min(0).values
        self.total_mean, self.total_std = data.mean(), data.std()
        self.total_max, self.total_min = data.max(), data.min()
        self.total_data_count = len(data)

    def scaled(self, x: torch.Tensor) -> torch.Tensor:
        if self.scale_standard:
            shift, scale = (self.means, self.stds) if self.feature_wise else (self.total_mean, self.total_std)
        elif self.scale_normal:
            low, high = (self.mins, self.maxs) if self.feature_wise else (self.total_min, self.total_max)
            shift, scale = low, high - low
        else:
            return x
        return (x - shift) / scale

    def unscaled(self, x: torch.Tensor) -> torch.Tensor:
        zero, one = self.scaled(torch.zeros_like(x)), self.scaled(torch.ones_like(x))
        return (x - zero) / (one - zero)

    def as_json(self) -> bytes:
        data = {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in vars(self).items()}
        data["scale_minmax"], data["use_ddp"] = data.pop("scale_normal"), data.pop("use_horovod")
        return json.dumps(data).encode()


@pytest.fixture
def as_mala(monkeypatch):
    """`DataScaler` under the name that it has in MALA's pickles."""
    module = types.ModuleType("mala.datahandling.data_scaler")
    for name in ("mala", "mala.datahandling"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(DataScaler, "__module__", module.__name__)
    module.DataScaler = DataScaler
    return module


def pickled(value: object, module: types.ModuleType) -> bytes:
    content = pickle.dumps(value, protocol=4)
    del sys.modules[module.__name__]  # reading must not need MALA
    sys.modules.pop("mala"), sys.modules.pop("mala.datahandling")
    return content


def summary(atoms, **changes) -> dict:
    """X.info.json."""
    return {
        "fermi_energy_dft": 7.9,
        "temperature": 1000.0,
        "number_of_electrons_exact": 3.0 * len(atoms),
        "band_energy_dft_calculation": 40.0,
        "total_energy_dft_calculation": -230.0,
        "grid_dimensions": list(SHAPE),
        "electrons_per_atom": 3.0,
        "ecutrho": 60.0,
        "entropy_contribution_dft_calculation": -0.01,
        "voxel": {"array": (atoms.cell.array / np.array(SHAPE)[:, None]).tolist()},
        "atoms": {
            "numbers": atoms.numbers.tolist(),
            "positions": atoms.positions.tolist(),
            "cell": atoms.cell.array.tolist(),
            "pbc": [True] * 3,
        },
        **changes,
    }


def parameters(network: dict | None = None, targets: dict | None = None, descriptors: dict | None = None):
    """X.params.json: what malax needs of it."""
    return {
        "network": {
            "nn_type": "feed-forward",
            "layer_sizes": [FEATURES, HIDDEN, N_ENERGIES],
            "layer_activations": ["LeakyReLU"],
            **(network or {}),
        },
        "targets": {
            "target_type": "LDOS",
            "ldos_gridsize": N_ENERGIES,
            "ldos_gridspacing_ev": float(ENERGY_GRID[1] - ENERGY_GRID[0]),
            "ldos_gridoffset_ev": float(ENERGY_GRID[0]),
            "restrict_targets": "zero_out_negative",
            **(targets or {}),
        },
        "descriptors": {
            "descriptor_type": "Bispectrum",
            "bispectrum_twojmax": 4,
            "bispectrum_cutoff": 3.5,
            "bispectrum_switchflag": 1,
            **(descriptors or {}),
        },
    }


def network(activations: list[nn.Module | None]) -> nn.ModuleDict:
    """As MALA builds it: a list called layers, activations among them."""
    torch.manual_seed(5)
    layers = nn.ModuleList()
    widths = [FEATURES, HIDDEN, N_ENERGIES]
    for n_in, n_out, activation in zip(widths[:-1], widths[1:], activations, strict=True):
        layers.append(nn.Linear(n_in, n_out))
        if activation is not None:
            layers.append(activation)
    with torch.no_grad():  # an LDOS of about the right size
        linear = [layer for layer in layers if isinstance(layer, nn.Linear)][-1]
        linear.weight *= 0.3
        linear.bias.fill_(0.5)
    return nn.ModuleDict({"layers": layers})


def weights(model: nn.Module) -> bytes:
    file = io.BytesIO()
    torch.save(model.state_dict(), file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def archive(path: Path, files: dict[str, bytes | dict]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, content in files.items():
            file.writestr(
                f"Al_model.v2.{name}", json.dumps(content) if isinstance(content, dict) else content
            )
    return path


@pytest.fixture
def raw() -> np.ndarray:
    """Descriptors of the training structure."""
    return bispectrum(make_atoms(0), grid=SHAPE, twojmax=4, cutoff=3.5)


def ldos_like(n: int) -> torch.Tensor:
    step = 0.05 / (1 + np.exp(-(ENERGY_GRID + 2.0) / 0.5))
    noise = 1 + 0.2 * torch.rand(n, N_ENERGIES, generator=torch.Generator().manual_seed(2))
    return (torch.from_numpy(step) * noise).float()


def expected(model: nn.ModuleDict, raw: np.ndarray, scaler_in: DataScaler, scaler_out: DataScaler):
    """What MALA computes: scaled, through all layers, unscaled, negatives to zero."""
    x = scaler_in.scaled(torch.from_numpy(raw).reshape(-1, FEATURES))
    for layer in model["layers"]:
        x = layer(x)
    return scaler_out.unscaled(x).clamp(min=0).detach().numpy().reshape(*SHAPE, -1)


@pytest.mark.parametrize(
    "kind", ["standard", "normal", "feature-wise-standard", "feature-wise-normal", "None"]
)
def test_model_predicts_what_mala_does(kind, raw, tmp_path, as_mala):
    scaler_in = DataScaler(kind, torch.from_numpy(raw).reshape(-1, FEATURES))
    scaler_out = DataScaler(kind if kind != "None" else "normal", ldos_like(300))
    scaler_in.cantransform = kind != "None"
    model = network([nn.LeakyReLU(), nn.LeakyReLU()])
    wanted = expected(model, raw, scaler_in, scaler_out)
    path = archive(
        tmp_path / "Al_model.v2.zip",
        {
            "params.json": parameters(),
            "network.pth": weights(model),
            "iscaler.json": scaler_in.as_json(),
            "oscaler.pkl": pickled(scaler_out, as_mala),
            "info.json": summary(make_atoms(0)),
        },
    )
    result = mala.load_model(path).predict(make_atoms(0), grid=SHAPE, ldos=True)
    assert any("no pseudopotentials" in concern for concern in result.warnings)
    np.testing.assert_allclose(result.ldos, wanted, rtol=0, atol=1e-5 * wanted.max())
    assert result.temperature == 1000.0 and result.energies.total_free is None
    assert any("not unbroadened" in note for note in result.notes)
    # MALA's integration: the same weights, nothing corrected
    grid = Grid(make_atoms(0).cell.array, SHAPE)
    found = observables.from_ldos(wanted, ENERGY_GRID, grid.volume, 1000.0, 12.0, unbroaden=False)
    assert result.energies.band / 4 == pytest.approx(found.band_energy / 4, abs=1e-4)


@pytest.fixture
def files(raw, as_mala) -> dict[str, bytes | dict]:
    """A model whose activations are none after the last layer, as newer MALA has it."""
    scaler_in = DataScaler("feature-wise-standard", torch.from_numpy(raw).reshape(-1, FEATURES))
    scaler_out = DataScaler("normal", ldos_like(300))
    newer = {"layer_activations": "ReLU", "layer_activations_include_output_layer": False}
    return {
        "params.json": parameters(newer),
        "network.pth": weights(network([nn.ReLU(), None])),
        "oscaler.json": scaler_out.as_json(),
        "iscaler.pkl": pickled(scaler_in, as_mala),
        "info.json": summary(make_atoms(0)),
    }


def test_with_pseudopotentials_and_sigma(files, tmp_path):
    path = archive(tmp_path / "m.zip", files)
    plain = mala.load_model(path, {"Al": UPF})
    result = plain.predict(make_atoms(0), grid=SHAPE)
    assert result.energies.total_free is not None and plain.info.xc == "PBE"
    assert plain.info.ecutrho == pytest.approx(60 * 13.605693122994)
    corrected = mala.load_model(path, {"Al": UPF}, sigma=0.2)
    other = corrected.predict(make_atoms(0), grid=SHAPE)
    assert not other.notes or not any("unbroadened" in note for note in other.notes)
    assert abs(other.energies.band - result.energies.band) > 1e-5
    assert corrected.predict(make_atoms(0), grid=SHAPE, temperature=900.0).temperature == 900.0
    with pytest.raises(InputError, match="another program cannot be saved"):
        plain.save(tmp_path / "m.malax")
    assert not (tmp_path / "m.malax").exists()
    assert result.provenance["model_sha256"] == plain.hash


def test_files_side_by_side_and_info_of_another_calculation(files, tmp_path):
    del files["info.json"]
    for name, content in files.items():
        data = json.dumps(content).encode() if isinstance(content, dict) else content
        (tmp_path / f"be.x.{name}").write_bytes(data)
    with pytest.raises(InputError, match=r"no info\.json"):
        mala.load_model(tmp_path / "be.x.params.json")
    (tmp_path / "other.info.json").write_text(json.dumps(summary(make_atoms(1), temperature=500.0)))
    model = mala.load_model(tmp_path / "be.x.params.json", info=tmp_path / "other.info.json")
    assert model.info.training_temperatures == (500.0,)


def test_pickles_run_no_code(files, tmp_path):
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (open, (str(ran), "w"))

    evil = pickle.dumps(Evil(), protocol=2)
    for name in ("iscaler.pkl", "network.pth"):
        with pytest.raises(FileError, match=f"{name} is not read"):
            mala.load_model(archive(tmp_path / "m.zip", {**files, name: evil}))
    # one level down, in the bytes of a tensor's storage
    inner = pickle.dumps(Evil(), protocol=2)

    class Storage:
        def __reduce__(self):
            return (torch.storage._load_from_bytes, (inner,))

    with pytest.raises(FileError, match="iscaler"):
        mala.load_model(archive(tmp_path / "m.zip", {**files, "iscaler.pkl": pickle.dumps(Storage(), 4)}))
    saved = io.BytesIO()
    torch.save({"layers.0.weight": Evil()}, saved)
    with pytest.raises(FileError, match="network.pth is not read"):
        mala.load_model(archive(tmp_path / "m.zip", {**files, "network.pth": saved.getvalue()}))
    assert not ran.exists()


@pytest.mark.parametrize(
    "section, changes, message",
    [
        ("network", {"nn_type": "lstm"}, "of type 'lstm'"),
        ("network", {"layer_activations": "PReLU"}, "activation 'PReLU'"),
        ("network", {"layer_sizes": [FEATURES, 7, N_ENERGIES]}, "does not fit params.json"),
        ("targets", {"target_type": "Density"}, "it predicts Density"),
        ("targets", {"ldos_gridsize": [5, 22]}, "in several pieces"),
        ("targets", {"ldos_gridsize": 30}, "energy grid need 14 to 30"),
        ("targets", {"restrict_targets": "whatever"}, "restrict_targets 'whatever'"),
        ("descriptors", {"descriptor_type": "ACE"}, "descriptors are 'ACE'"),
        ("descriptors", {"bispectrum_element_weights": [1.0, 0.5]}, "2 element weights for Al"),
        ("descriptors", {"bispectrum_twojmax": 6}, "needs? 30 to 27|need 30 to 27"),
    ],
)
def test_models_are_refused_by_name(files, tmp_path, section, changes, message):
    files["params.json"][section].update(changes)
    with pytest.raises((InputError, FileError), match=message):
        mala.load_model(archive(tmp_path / "m.zip", files))


def test_broken_models(files, tmp_path):
    with pytest.raises(FileError, match="not a model of MALA"):
        mala.load_model(tmp_path / "nope.zip")
    (tmp_path / "text.zip").write_text("x")
    with pytest.raises(FileError, match="not a model of MALA"):
        mala.load_model(tmp_path / "text.zip")
    for name in ("params.json", "network.pth", "iscaler.pkl"):
        rest = {k: v for k, v in files.items() if k != name}
        with pytest.raises(FileError, match=name.split(".")[0]):
            mala.load_model(archive(tmp_path / "m.zip", rest))
    with pytest.raises(FileError, match="network.pth is not read"):
        mala.load_model(archive(tmp_path / "m.zip", {**files, "network.pth": files["network.pth"][:500]}))
    with pytest.raises(FileError, match=r"info\.json .* lacks something"):
        mala.load_model(archive(tmp_path / "m.zip", {**files, "info.json": {"temperature": 3}}))
    with pytest.raises(InputError, match="12 electrons, the model was trained with 8"):
        wrong = {**files, "info.json": summary(make_atoms(0), number_of_electrons_exact=8.0)}
        mala.load_model(archive(tmp_path / "m.zip", wrong), {"Al": UPF})
    with pytest.raises(FileError, match="it was never fitted"):
        read_scaler(json.dumps({"scale_standard": True, "cantransform": False}).encode(), "x.iscaler.json")
    with pytest.raises(FileError, match="not a malax model"):
        read_model(archive(tmp_path / "m.zip", files))


# snapshots


def write_openpmd(path: Path, name: str, array: np.ndarray) -> None:
    """As openpmd-api lays it out."""
    with h5py.File(path, "w") as file:
        file.attrs.update(openPMD="1.1.0", basePath="/data/%T/", meshesPath="meshes/", is_mala_data=1)
        mesh = file.create_group(f"data/0/meshes/{name}")
        mesh.attrs["axisLabels"] = ["x", "y", "z"]
        for i in range(array.shape[-1]):
            component = mesh.create_dataset(str(i), data=array[..., i])
            component.attrs["unitSI"] = 1.0


def test_descriptors_with_and_without_coordinates(raw, tmp_path):
    atoms = make_atoms(0)
    points = Grid(atoms.cell.array, SHAPE).points().reshape(*SHAPE, 3)
    np.save(tmp_path / "a.in.npy", raw)
    np.save(tmp_path / "b.in.npy", np.concatenate([points, raw], axis=-1).astype(np.float32))
    write_openpmd(tmp_path / "c.in.h5", "Bispectrum", np.concatenate([points, raw], axis=-1))
    for name in ("a.in.npy", "b.in.npy", "c.in.h5"):
        np.testing.assert_allclose(mala.read_descriptors(tmp_path / name), raw, rtol=1e-6)
    # 8 features of twojmax 3 are 5 and 3 more: no coordinates
    np.save(tmp_path / "d.in.npy", raw[..., :8])
    assert mala.read_descriptors(tmp_path / "d.in.npy").shape[-1] == 8


def test_snapshot(tmp_path):
    atoms = make_atoms(0)
    dft = make_snapshot(tmp_path / "dft.h5", 0, shape=SHAPE)
    ldos = dft.read_ldos().reshape(*SHAPE, -1)
    np.save(tmp_path / "s0.out.npy", ldos)
    info = summary(atoms, fermi_energy_dft=dft.fermi_level, temperature=dft.temperature)
    (tmp_path / "s0.info.json").write_text(json.dumps(info))
    axis = (float(ENERGY_GRID[0]), float(ENERGY_GRID[1] - ENERGY_GRID[0]))
    options = {"energies": axis, "sigma": dft.sigma, "pseudopotentials": {"Al": UPF}}
    made = mala.read_snapshot(tmp_path / "s0", tmp_path / "s0.h5", **options)
    np.testing.assert_allclose(made.dos, dft.dos, rtol=1e-3)
    np.testing.assert_allclose(made.atoms.positions, atoms.positions, atol=1e-9)
    assert made.energies == {"total_free": -230.0, "band": 40.0, "entropy_term": -0.01}
    assert malax.load(tmp_path / "s0.h5").name == "s0"
    # the same as openPMD, and in another unit
    (tmp_path / "s0.out.npy").unlink()
    write_openpmd(tmp_path / "s0.out.h5", "LDOS", ldos)
    again = mala.read_snapshot(tmp_path / "s0", tmp_path / "again.h5", **options)
    np.testing.assert_array_equal(again.dos, made.dos)
    np.save(tmp_path / "bohr.npy", ldos * 0.529177210903**3)
    np.testing.assert_allclose(mala.read_ldos(tmp_path / "bohr.npy", "1/(eV*Bohr^3)"), ldos, rtol=1e-6)


def test_snapshots_are_refused(tmp_path):
    options = {"energies": (-5.0, 0.5), "sigma": 0.5, "pseudopotentials": {"Al": UPF}}
    with pytest.raises(FileError, match=r"there is no .*s0\.out\.npy or \.out\.h5"):
        mala.read_snapshot(tmp_path / "s0", tmp_path / "s0.h5", **options)
    np.save(tmp_path / "s0.out.npy", np.ones((3, 3, 3, 27)))
    (tmp_path / "s0.info.json").write_text(json.dumps(summary(make_atoms(0))))
    with pytest.raises(FileError, match=r"LDOS on \(3, 3, 3\) points, the calculation has \(9, 8, 10\)"):
        mala.read_snapshot(tmp_path / "s0", tmp_path / "s0.h5", **options)
    with pytest.raises(InputError, match="LDOS unit"):
        mala.read_ldos(tmp_path / "s0.out.npy", "1/Ha")
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object))
    with pytest.raises(FileError, match="allow_pickle"):
        mala.read_ldos(tmp_path / "o.npy")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["data"] = 1.0
    with pytest.raises(FileError, match="not an openPMD series"):
        mala.read_descriptors(tmp_path / "x.h5")
    (tmp_path / "s1.out").write_text("Program PWSCF")
    with pytest.raises(FileError, match="not the output of pw.x"):
        mala.read_info(tmp_path / "s1.out")
