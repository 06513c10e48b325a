"""The LDOS reduction against NumPy at every ISA level, and how the library is found and refused."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import references

from malax import kernels, library
from malax.errors import InputError, MissingPeerError


@pytest.fixture(params=library.build_info()["isa_levels"])
def isa(request, monkeypatch):
    monkeypatch.setenv("MALAX_ISA", request.param)
    return request.param


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (5, 7, 2), (128, 8, 1), (300, 201, 5), (129, 31, 0), (0, 9, 3)], ids=str
)
def test_moments_equal_numpy(shape, dtype, isa):
    n_points, n_energies, n_weights = shape
    rng = np.random.default_rng(7)
    ldos = rng.normal(size=(n_points, n_energies)).astype(dtype)
    weights = rng.normal(size=(n_weights, n_energies))
    values, sums = kernels.ldos_moments(ldos, weights)
    assert values.dtype == sums.dtype == np.float64
    np.testing.assert_allclose(values, ldos.astype(float) @ weights.T, rtol=1e-12, atol=1e-12)
    # the promised order of summation, to the last bit
    assert np.array_equal(sums, references.ldos_sums(ldos))


def test_moments_do_not_depend_on_threads():
    rng = np.random.default_rng(3)
    ldos, weights = rng.random((70_000, 5), dtype=np.float32), rng.normal(size=(2, 5))
    one = kernels.ldos_moments(ldos, weights, threads=1)
    for threads in (2, 5):
        assert all(map(np.array_equal, kernels.ldos_moments(ldos, weights, threads=threads), one))


def test_moments_of_a_view():
    ldos = np.random.default_rng(5).random((40, 30))
    weights = np.random.default_rng(6).random((30, 3))
    values, sums = kernels.ldos_moments(ldos[::2, ::-1], weights.T)
    np.testing.assert_allclose(values, ldos[::2, ::-1] @ weights, rtol=1e-13)
    np.testing.assert_allclose(sums, ldos[::2, ::-1].sum(axis=0), rtol=1e-13)


@pytest.mark.parametrize(
    ("ldos", "weights", "message"),
    [
        (np.zeros((3, 4), int), np.zeros((1, 4)), "of float32 or float64"),
        (np.zeros(4), np.zeros((1, 4)), "must be .points, energies."),
        (np.zeros((3, 4)), np.zeros((1, 5)), "weights must have shape"),
        (np.zeros((3, 4)), np.full((1, 4), np.inf), "weights holds NaN or infinity"),
        (np.array([[0, 1.0], [0, np.nan]]), np.zeros((1, 2)), "ldos holds NaN or infinity at energy index 1"),
        (
            np.array([[np.inf, 1.0], [-np.inf, 1.0]]),
            np.zeros((0, 2)),
            "ldos holds NaN or infinity at energy index 0",
        ),
    ],
)
def test_moments_refuse(ldos, weights, message):
    with pytest.raises(InputError, match=message):
        kernels.ldos_moments(ldos, weights)


# ---- the library -----------------------------------------------------------------------------------


def test_build_info():
    info = library.build_info()
    assert info["isa"] in info["isa_levels"] and info["isa_levels"][-1] == "baseline"
    assert info["compiler"] and isinstance(info["openmp"], bool)
    assert (info["cuda_devices"] == 0) or info["cuda"]


def test_unknown_isa_level(monkeypatch):
    monkeypatch.setenv("MALAX_ISA", "v9")
    for call in (library.build_info, lambda: kernels.ldos_moments(np.zeros((1, 1)), np.zeros((1, 1)))):
        with pytest.raises(
            MissingPeerError, match="MALAX_ISA=v9 cannot be had: this build runs here with .*baseline"
        ):
            call()


def test_missing_library(monkeypatch):
    monkeypatch.setattr(library, "find_library", lambda name: None)
    with pytest.raises(MissingPeerError, match="libmalax_cpu.so is not built: pip install"):
        library.cpu_library.__wrapped__()


def test_library_of_another_version_or_no_library(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "ABI_VERSION", -1)
    with pytest.raises(MissingPeerError, match="build it again"):
        library.cpu_library.__wrapped__()
    (tmp_path / "libmalax_cpu.so").write_text("not a library")
    monkeypatch.setattr(library, "find_library", lambda name: tmp_path / name)
    with pytest.raises(MissingPeerError, match="cannot load .*libmalax_cpu.so"):
        library.cpu_library.__wrapped__()


def test_library_path_variable(monkeypatch, tmp_path):
    (tmp_path / "libsomething.so").touch()
    assert library.find_library("libsomething.so") is None
    monkeypatch.setenv("MALAX_LIBRARY_PATH", f"/nowhere{os.pathsep}{tmp_path}")
    assert library.find_library("libsomething.so") == tmp_path / "libsomething.so"


def test_denormal_numbers_survive_the_library():
    # -ffast-math at link time would set flush-to-zero for the whole process
    code = "from malax import library; library.build_info(); print(float('5e-324') * 1 > 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
