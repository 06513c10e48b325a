"""A network's sums over tiles against its LDOS in torch; and what bfloat16 is allowed to change."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from malax import library
from malax.errors import InputError, MissingPeerError
from malax.inference import Inference
from malax.network import LDOSNetwork

N_FEATURES, N_ENERGIES = 14, 21


def network(hidden=(24, 19), **options):
    generator = torch.Generator().manual_seed(0)
    one = LDOSNetwork(N_FEATURES, hidden, N_ENERGIES, generator=generator, **options)
    rng = np.random.default_rng(1)
    # features far from zero with a small spread, as bispectrum components are
    mean, scale = 100 * rng.normal(size=N_FEATURES), 0.01 + rng.random(N_FEATURES)
    level = torch.from_numpy(rng.random(N_ENERGIES))
    one.set_scalers(torch.from_numpy(mean), torch.from_numpy(scale), 0.1 + level, level)
    return one.eval(), lambda n: (mean + scale * rng.normal(size=(n, N_FEATURES))).astype(np.float32)


def foreign():
    one, features = network()

    class Other(torch.nn.Module):
        def forward(self, x):
            return one(x)

    return Other(), features


CASES = {
    "silu": network,
    "gelu": lambda: network(activation="gelu"),
    "one hidden layer": lambda: network((8,)),
    "linear": lambda: network(()),
    "non-negative": lambda: network(non_negative=True),
    "of another program": foreign,
}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_network(case):
    one, features = CASES[case]()
    rows = features(70)
    weights = np.random.default_rng(2).normal(size=(5, N_ENERGIES))
    with torch.inference_mode():
        wanted = one.double()(torch.from_numpy(rows).double()).numpy()
        one.float()
    inference = Inference(one, 100)
    largest = np.abs(wanted).max()
    np.testing.assert_allclose(inference.ldos(rows), wanted, atol=3e-6 * largest)
    values, dos = inference.reducer(weights)(rows)
    assert values.dtype == dos.dtype == np.float64
    np.testing.assert_allclose(values, wanted @ weights.T, atol=2e-5 * largest)
    np.testing.assert_allclose(dos, wanted.sum(axis=0), atol=70 * 1e-6 * largest)


@pytest.mark.parametrize("case", CASES)
def test_a_row_does_not_depend_on_its_tile(case):
    one, features = CASES[case]()
    rows, inference = features(50), Inference(one, 50)
    reduce = inference.reducer(np.ones((1, N_ENERGIES)))
    whole, ldos = reduce(rows)[0], inference.ldos(rows)
    for some in (slice(0, 1), slice(7, 10), slice(20, 50)):
        assert np.array_equal(reduce(rows[some])[0], whole[some])
        assert np.array_equal(inference.ldos(rows[some]), ldos[some])


@pytest.mark.parametrize("case", CASES)
def test_an_ldos_that_is_not_finite_makes_the_sums_nan(case):
    """No rank may raise an error here alone: `malax.streaming.Chain.reduce` refuses on all of them."""
    one, features = CASES[case]()
    rows = features(9)
    rows[4, 2] = np.inf
    reduce = Inference(one, 9).reducer(np.ones((2, N_ENERGIES)))
    values, sums = reduce(rows)
    assert values.shape == (9, 2) and sums.shape == (N_ENERGIES,)
    assert np.isnan(values).all() and np.isnan(sums).all()


def test_other_mistakes_are_errors():
    one, features = foreign()
    with pytest.raises(InputError, match="weights"):
        Inference(one, 9).reducer(np.ones((2, N_ENERGIES + 1)))(features(9))


@pytest.mark.skipif(not library.build_info()["bfloat16"], reason="no products of bfloat16 here")
def test_bfloat16_is_near_but_not_the_same():
    one, features = network()
    rows = features(64)
    single, half = Inference(one, 64).ldos(rows), Inference(one, 64, "bfloat16").ldos(rows)
    error = np.abs(half - single).max() / np.abs(single).max()
    assert 1e-5 < error < 2e-2


def test_bfloat16_that_cannot_be_had_is_an_error(monkeypatch):
    with pytest.raises(InputError, match="not for those of other programs"):
        Inference(foreign()[0], 64, "bfloat16")
    monkeypatch.setenv("MALAX_ISA", "baseline")
    with pytest.raises(MissingPeerError, match="bfloat16 needs a processor with avx512_bf16"):
        Inference(network()[0], 64, "bfloat16")
