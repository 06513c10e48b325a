"""The kernel for dense layers against plain loops, at every ISA level."""

from __future__ import annotations

import numpy as np
import pytest
import references
import torch

from malax import library
from malax.errors import InputError
from malax.kernels_network import ACTIVATIONS, DenseLayers

# one number; less than a vector; one vector and a bit; whole panels; several panels with a single vector last
WIDTHS = [(1, 1), (3, 5), (14, 17, 9), (64, 32, 64), (91, 40, 56, 23)]


@pytest.fixture(params=library.build_info()["isa_levels"])
def isa(request, monkeypatch):
    monkeypatch.setenv("MALAX_ISA", request.param)
    return request.param


def layers(widths, seed=0):
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=(b, a)) / np.sqrt(a) for a, b in zip(widths, widths[1:], strict=False)]
    return (
        weights,
        [rng.normal(size=b) for b in widths[1:]],
        rng.normal(size=widths[0]),
        rng.random(widths[0]) + 0.5,
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 3e-6), ("float64", 1e-14)])
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_equals_plain_loops(activation, widths, dtype, tolerance, isa):
    weights, biases, mean, scale = layers(widths)
    names = [activation] * (len(weights) - 1) + ["identity"]
    rows = np.random.default_rng(1).normal(scale=3.0, size=(29, widths[0])).astype(dtype)
    network = DenseLayers(weights, biases, names, mean, scale, dtype)
    wanted = references.dense_layers(rows.astype(float), weights, biases, names, mean, scale)
    found = network(rows)
    assert found.dtype == dtype and found.shape == (29, widths[-1])
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * max(1.0, np.abs(wanted).max()))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2.5e-7), ("float64", 5e-16)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_over_their_whole_range(activation, dtype, tolerance, isa):
    """Relative to the larger of 1 and the value; where exp over- and underflows, too."""
    x = np.concatenate(
        [np.linspace(-12, 12, 4001), [-1e30, -1e4, -800, -90, -1e-20, -0.0, 0.0, 90, 800, 1e4, 1e30]]
    )
    x = x.astype(dtype)
    found = DenseLayers([[[1.0]]], [[0.0]], [activation], dtype=dtype)(x[:, None])[:, 0]
    wanted = np.array([references.ACTIVATIONS[activation](float(value)) for value in x])
    assert np.abs((found - wanted) / np.maximum(1, np.abs(wanted))).max() < tolerance


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_row_depends_on_no_other_row_and_no_thread(dtype, isa):
    weights, biases, mean, scale = layers((14, 33, 40))
    network = DenseLayers(weights, biases, ["silu", "tanh"], mean, scale, dtype)
    rows = np.random.default_rng(2).normal(size=(300, 14)).astype(dtype)
    whole = network(rows, threads=1)
    for threads in (2, 3, 7):
        assert np.array_equal(network(rows, threads=threads), whole)
    for some in (slice(0, 1), slice(95, 97), slice(191, 300)):
        assert np.array_equal(network(rows[some]), whole[some])


@pytest.mark.skipif(not library.build_info()["bfloat16"], reason="no products of bfloat16 here")
@pytest.mark.parametrize("widths", [(5, 7), (14, 17, 9), (64, 33, 31, 64), (91, 40, 56, 23)], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bfloat16_rounds_weights_and_inputs_of_all_layers_but_the_first(activation, widths):
    weights, biases, mean, scale = layers(widths)
    names = [activation] * len(weights)
    rows = np.random.default_rng(1).normal(size=(29, widths[0])).astype(np.float32)
    found = DenseLayers(weights, biases, names, mean, scale, bfloat16=True)(rows)
    wanted = (rows - mean) / scale
    for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
        x, w = (wanted, w) if i == 0 else (bfloat16(wanted), bfloat16(w))
        wanted = references.dense_layers(x, [w], [b], [activation], 0.0, 1.0)
    # an input on the edge between two numbers may be rounded to either
    assert np.mean(np.abs(found - wanted) < 1e-5 * np.abs(wanted).max()) > 0.8
    np.testing.assert_allclose(found, wanted, rtol=0, atol=4e-3 * np.abs(wanted).max())
    whole = DenseLayers(weights, biases, names, mean, scale, bfloat16=True)
    assert np.array_equal(whole(rows[7:8]), found[7:8])


def bfloat16(x):
    return torch.from_numpy(np.asarray(x, dtype=np.float32)).bfloat16().double().numpy()


def test_views_and_no_rows():
    weights, biases, mean, scale = layers((6, 5))
    network = DenseLayers(weights, biases, ["relu"], mean, scale, "float64")
    rows = np.random.default_rng(3).normal(size=(12, 14))
    for view in (
        rows[:, 2:8],
        rows[::3, :6],
        rows[::-1, :6],
        rows[:, 11:5:-1],
        np.asfortranarray(rows[:, :6]),
    ):
        assert np.array_equal(network(view), network(np.ascontiguousarray(view)))
    assert network(rows[:0, :6]).shape == (0, 5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_is_not_a_number_stays_none(activation, isa):
    weights, biases, _, _ = layers((3, 20, 4))
    rows = np.ones((30, 3), dtype=np.float32)
    rows[17, 1] = np.nan
    found = DenseLayers(weights, biases, [activation, "identity"])(rows)
    assert np.isnan(found[17]).all() and np.isfinite(np.delete(found, 17, axis=0)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": [], "biases": [], "activations": []}, "one or more layers are needed, got 0, 0 and 0"),
        ({"activations": ["silu"]}, "got 2, 2 and 1"),
        ({"weights": [np.ones((4, 3)), np.ones((2, 5))]}, "layer 1 takes 5 inputs, but gets 4"),
        ({"biases": [np.ones(4), np.ones(3)]}, "biases of layer 1 must have shape"),
        ({"weights": [np.ones((4, 3)), np.full((2, 4), np.nan)]}, "weights of layer 1 holds NaN"),
        ({"activations": ["silu", "sin"]}, "unknown activation 'sin': one of identity, relu"),
        ({"mean": np.ones(4)}, "mean must have shape"),
        ({"dtype": "float64", "bfloat16": True}, "bfloat16 goes with float32"),
        ({"dtype": "float16"}, "dtype must be float32 or float64"),
    ],
)
def test_refuses(change, message):
    good = {"weights": [np.ones((4, 3)), np.ones((2, 4))], "biases": [np.ones(4), np.ones(2)]}
    with pytest.raises(InputError, match=message):
        DenseLayers(**{**good, "activations": ["silu", "identity"], **change})


@pytest.mark.parametrize("rows", [np.ones((2, 3)), np.ones((2, 4), np.float32), np.ones(3, np.float32)])
def test_refuses_rows(rows):
    with pytest.raises(InputError, match="takes .points, 3. of float32, got shape"):
        DenseLayers([np.ones((4, 3))], [np.ones(4)], ["relu"])(rows)
