"""The network: shapes, scaling inside, description round trip, bad input."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from malax.errors import InputError
from malax.network import LDOSNetwork, NetworkConfig

ACTIVATIONS = ["leaky_relu", "relu", "gelu", "silu", "tanh"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_is_described_and_rebuilt(activation: str) -> None:
    network = LDOSNetwork(7, [5, 6], 11, activation, generator=seeded())
    assert network(torch.zeros(3, 7)).shape == (3, 11)
    twin = LDOSNetwork.from_config(network.config, network.n_features, network.n_energies)
    twin.load_state_dict(network.state_dict())
    x = torch.randn(4, 7, generator=seeded(1))
    assert torch.equal(network(x), twin(x))


def test_scalers_are_part_of_the_network() -> None:
    network = LDOSNetwork(3, [], 2, generator=seeded())
    mean, scale, ldos = (
        torch.tensor([1.0, -2.0, 30.0]),
        torch.tensor([0.5, 2.0, 7.0]),
        torch.tensor([0.1, 4.0]),
    )
    network.set_scalers(mean, scale, ldos)
    x = torch.randn(6, 3, generator=seeded(1))
    (layer,) = network.linear_layers
    expected = (((x - mean) / scale) @ layer.weight.T + layer.bias) * ldos
    assert torch.allclose(network(x), expected, rtol=1e-6)
    assert {"feature_mean", "feature_scale", "ldos_scale"} <= set(network.state_dict())


@pytest.mark.parametrize("non_negative", [False, True])
def test_training_starts_at_the_mean_ldos(non_negative: bool) -> None:
    network = LDOSNetwork(3, [4], 2, non_negative=non_negative, generator=seeded())
    network.linear_layers[-1].weight.data.zero_()
    mean = torch.tensor([0.03, 0.5])
    network.set_scalers(torch.zeros(3), torch.ones(3), torch.tensor([0.1, 0.2]), ldos_mean=mean)
    assert torch.allclose(network(torch.randn(5, 3)), mean.expand(5, 2), rtol=1e-5)


def test_non_negative_output() -> None:
    x = 100 * torch.randn(50, 3, generator=seeded(1))
    plain = LDOSNetwork(3, [8], 4, generator=seeded())
    positive = LDOSNetwork(3, [8], 4, non_negative=True, generator=seeded())
    assert plain(x).min() < 0
    assert positive(x).min() >= 0
    # the same weights: where the LDOS is large the softplus changes nothing
    large = plain(x) > 3
    assert large.any() and torch.allclose(positive(x)[large], plain(x)[large], rtol=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_initial_variance_survives_depth(activation: str) -> None:
    network = LDOSNetwork(64, [256] * 4, 64, activation, generator=seeded())
    out = network(torch.randn(256, 64, generator=seeded(1)))
    assert 0.2 < out.std().item() < 3


def test_generator_decides_the_weights() -> None:
    a, b, c = (LDOSNetwork(4, [8], 3, generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(a.linear_layers[0].weight, b.linear_layers[0].weight)
    assert not torch.equal(a.linear_layers[0].weight, c.linear_layers[0].weight)


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="unknown activation 'swish'"):
        LDOSNetwork(3, [4], 2, "swish")
    with pytest.raises(InputError, match="at least one node"):
        LDOSNetwork(3, [0], 2)
    network = LDOSNetwork(3, [4], 2)
    ones = torch.ones
    with pytest.raises(InputError, match=r"feature_mean must have shape \(3,\), got \(4,\)"):
        network.set_scalers(ones(4), ones(3), ones(2))
    with pytest.raises(InputError, match="ldos_scale must be finite, and positive"):
        network.set_scalers(ones(3), ones(3), torch.tensor([1.0, 0.0]))
    with pytest.raises(ValidationError):
        NetworkConfig(hidden=(0,))
    with pytest.raises(ValidationError):
        NetworkConfig(hiden=(3,))  # type: ignore[call-arg]
