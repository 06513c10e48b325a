"""The network: the descriptors of a point in, the local density of states there out.

Scaling is part of the network (buffers, saved with the weights): raw features enter, LDOS in 1/(eV A^3)
leaves, and nothing outside has to know how either was normalised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal, get_args

import torch
from pydantic import Field
from torch import Tensor, nn

from malax.errors import InputError
from malax.settings import Settings

Activation = Literal["leaky_relu", "relu", "gelu", "silu", "tanh"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "leaky_relu": nn.LeakyReLU,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}

# Standard deviation of the weights is gain / sqrt(inputs). relu and its smooth relatives lose half of
# the variance, tanh compresses (He et al. 2015; torch.nn.init.calculate_gain).
_GAINS = {"leaky_relu": math.sqrt(2), "relu": math.sqrt(2), "gelu": math.sqrt(2), "silu": math.sqrt(2)}

# The non-negative output: softplus(x) differs from max(x, 0) by at most ln 2 / SHARPNESS of the LDOS scale.
_SHARPNESS = 10.0


class NetworkConfig(Settings):
    """What a network looks like; stands in the training configuration and in a model's header."""

    hidden: tuple[Annotated[int, Field(gt=0)], ...] = (256, 256, 256)
    """Widths of the hidden layers."""
    activation: Activation = "silu"
    """What stands between the layers."""
    non_negative: bool = False
    """Send the output through a softplus, so that no LDOS is negative."""


class LDOSNetwork(nn.Module):
    """A fully connected network from features to LDOS, with its scalers.

    ``ldos = ldos_scale * layers((features - feature_mean) / feature_scale)``

    Parameters
    ----------
    n_features : number of descriptors per point, F
    hidden : widths of the hidden layers; may be empty (a linear model)
    n_energies : number of energies of the LDOS, E
    activation : "leaky_relu", "relu", "gelu", "silu" or "tanh"
    non_negative : put a softplus on the scaled output
    generator : draws the initial weights; None uses torch's global generator

    Buffers
    -------
    feature_mean, feature_scale : (F,) in the unit of the features
    ldos_scale : (E,) in 1/(eV A^3)

    Attributes
    ----------
    mixed : compute the hidden layers in bfloat16, while training (`torch.nn.Module.training`) only

    Raises
    ------
    InputError
        for a layer without nodes or an unknown activation.
    """

    feature_mean: Tensor
    feature_scale: Tensor
    ldos_scale: Tensor

    def __init__(
        self,
        n_features: int,
        hidden: Sequence[int],
        n_energies: int,
        activation: str = "silu",
        non_negative: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if activation not in _ACTIVATIONS:
            raise InputError(
                f"unknown activation {activation!r}: one of {', '.join(get_args(Activation))} is needed"
            )
        widths = [n_features, *hidden, n_energies]
        if min(widths) < 1:
            raise InputError(f"every layer of a network needs at least one node, got the widths {widths}")
        self.activation = activation
        self.mixed = False
        self.non_negative = non_negative
        layers: list[nn.Module] = []
        for n_in, n_out in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Linear(n_in, n_out), _ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*layers[:-1])
        self.register_buffer("feature_mean", torch.zeros(n_features))
        self.register_buffer("feature_scale", torch.ones(n_features))
        self.register_buffer("ldos_scale", torch.ones(n_energies))
        self.reset_parameters(generator)

    @classmethod
    def from_config(
        cls, config: NetworkConfig, n_features: int, n_energies: int, generator: torch.Generator | None = None
    ) -> LDOSNetwork:
        """The network that ``config`` describes, for F features and E energies."""
        return cls(
            n_features, config.hidden, n_energies, config.activation, config.non_negative, generator=generator
        )

    @property
    def config(self) -> NetworkConfig:
        """The description from which ``from_config`` builds the same architecture."""
        hidden = tuple(layer.out_features for layer in self.linear_layers[:-1])
        return NetworkConfig(
            hidden=hidden,
            activation=self.activation,  # type: ignore[arg-type]
            non_negative=self.non_negative,
        )

    @property
    def linear_layers(self) -> list[nn.Linear]:
        """The linear layers in the order of the data."""
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    @property
    def n_features(self) -> int:
        """Number of features per point, F."""
        return self.feature_mean.numel()

    @property
    def n_energies(self) -> int:
        """Number of energies of the LDOS, E."""
        return self.ldos_scale.numel()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the initial weights: normal, of variance gain^2 / inputs; biases zero."""
        gain = _GAINS.get(self.activation, 5 / 3)
        for layer in self.linear_layers:
            # nothing is activated after the last layer, and small outputs are a better start than large ones
            factor = 1.0 if layer is self.linear_layers[-1] else gain
            nn.init.normal_(layer.weight, 0.0, factor / math.sqrt(layer.in_features), generator=generator)
            nn.init.zeros_(layer.bias)

    @torch.no_grad()
    def set_scalers(
        self, feature_mean: Tensor, feature_scale: Tensor, ldos_scale: Tensor, ldos_mean: Tensor | None = None
    ) -> None:
        """Set the scalers (shapes (F,), (F,), (E,)).

        With ``ldos_mean`` (E,), 1/(eV A^3), the bias of the last layer starts at the mean LDOS, which
        spares the optimiser from finding it.

        Raises
        ------
        InputError
            for a shape that is not the network's, or a scale that is not positive and finite.
        """
        for name, value in (
            ("feature_mean", feature_mean),
            ("feature_scale", feature_scale),
            ("ldos_scale", ldos_scale),
        ):
            buffer = getattr(self, name)
            value = torch.as_tensor(value).to(buffer)
            if value.shape != buffer.shape:
                raise InputError(f"{name} must have shape {tuple(buffer.shape)}, got {tuple(value.shape)}")
            if not torch.isfinite(value).all() or (name.endswith("scale") and not (value > 0).all()):
                raise InputError(f"{name} must be finite{', and positive' if 'scale' in name else ''}")
            buffer.copy_(value)
        if ldos_mean is not None:
            start = torch.as_tensor(ldos_mean).to(self.ldos_scale) / self.ldos_scale
            if self.non_negative:  # inverse of the softplus, away from its flat end
                x = (_SHARPNESS * start).clamp(min=1e-2)
                start = (x + torch.log(-torch.expm1(-x))) / _SHARPNESS
            self.linear_layers[-1].bias.copy_(start)

    def scaled(self, features: Tensor) -> Tensor:
        """LDOS in units of ``ldos_scale``, (P, E): what the training loss compares."""
        dtype = self.feature_mean.dtype
        x = (features.to(dtype) - self.feature_mean) / self.feature_scale
        if self.mixed and self.training:
            # the last layer stays in single precision: three digits of the LDOS are not enough for a loss
            with torch.autocast(x.device.type, torch.bfloat16):
                hidden = self.layers[:-1](x)
            out = self.layers[-1](hidden.to(dtype))
        else:
            out = self.layers(x)
        return self._final(out)

    def forward(self, features: Tensor) -> Tensor:
        """LDOS (P, E) in 1/(eV A^3) from raw features (P, F)."""
        return self.scaled(features) * self.ldos_scale

    def output(self, last: Tensor) -> Tensor:
        """LDOS (P, E) in 1/(eV A^3) from what the last layer gives."""
        return self._final(last) * self.ldos_scale

    def _final(self, last: Tensor) -> Tensor:
        return nn.functional.softplus(last, beta=_SHARPNESS) if self.non_negative else last
