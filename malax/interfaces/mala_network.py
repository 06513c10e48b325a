"""MALA's feed-forward network with its scalers, so that raw descriptors give the LDOS in 1/(eV A^3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from malax.errors import FileError, InputError
from malax.io.mala_files import Scaler
from malax.network import NetworkConfig

_ACTIVATIONS = ("ReLU", "LeakyReLU", "Sigmoid", "Tanh", "GELU", "SiLU", "ELU", "Softplus", "CELU", "SELU")
"""Of torch.nn, without settings: what a params.json can name."""


class MalaNetworkConfig(NetworkConfig):
    """What a network of MALA looks like."""

    activations: tuple[str | None, ...]
    """After each layer the name in torch.nn, or None."""
    negative: Literal["zero_out_negative", "absolute_values"] | None
    """What becomes of a negative LDOS."""
    activation: str = "as MALA's"  # type: ignore[assignment]

    @classmethod
    def from_params(
        cls, network: Mapping[str, Any], targets: Mapping[str, Any], where: str
    ) -> MalaNetworkConfig:
        """From the sections of a params.json. InputError, by name, for what is no feed-forward network."""
        kind = str(network.get("nn_type", "feed-forward")).replace("_", "-")
        if kind != "feed-forward":
            raise InputError(f"{where}: its network is of type {kind!r}; malax reads feed-forward ones")
        try:
            sizes = [int(n) for n in network["layer_sizes"]]
            after = _activations(network, len(sizes) - 1)
        except (KeyError, TypeError, ValueError) as error:
            raise FileError(f"{where}: params.json does not say its layers: {error!r}") from error
        for name in after:
            if name is not None and name not in _ACTIVATIONS:
                raise InputError(f"{where}: activation {name!r}; known are {', '.join(_ACTIVATIONS)}")
        negative = targets.get("restrict_targets")
        if negative not in (None, "zero_out_negative", "absolute_values"):
            raise InputError(f"{where}: restrict_targets {negative!r} is not known")
        names = sorted({name for name in after if name is not None})
        return cls(
            hidden=tuple(sizes[1:-1]),
            activation=", ".join(names) or "linear",
            activations=tuple(after),
            negative=negative,
        )


def _activations(network: Mapping[str, Any], n_layers: int) -> list[str | None]:
    """Names after each layer, by the rules of the MALA that wrote the file.

    Up to 1.2 one entry stands for all layers, the last included, and a list has one for each. Newer files say
    whether the last is included; there a single name (no list) stands for all, and a short list ends early.
    """
    given = network["layer_activations"]
    newer = "layer_activations_include_output_layer" in network
    if isinstance(given, str):
        found: list[str | None] = [given] * n_layers
    elif len(given) == 1 and not newer:
        found = [given[0]] * n_layers
    else:
        if not newer and len(given) < n_layers:
            raise ValueError(f"{len(given)} activations for {n_layers} layers")
        found = [*given, *[None] * n_layers][:n_layers]
    if newer and not network["layer_activations_include_output_layer"]:
        found[-1] = None
    return found


class MalaNetwork(nn.Module):
    """``ldos = restrict(layers((features - shift) / scale) * scale' + shift')``.

    Parameters
    ----------
    state : weights by MALA's names, ``layers.<i>.weight`` and ``.bias``, activations counted
    inputs, outputs : scalers of features and LDOS

    Raises
    ------
    FileError
        weights or scalers that do not fit the configuration.
    """

    shift_in: Tensor
    scale_in: Tensor
    shift_out: Tensor
    scale_out: Tensor

    def __init__(
        self,
        config: MalaNetworkConfig,
        state: Mapping[str, Tensor],
        inputs: Scaler,
        outputs: Scaler,
        where: str,
    ) -> None:
        super().__init__()
        self.config = config
        weights = [value for name, value in state.items() if name.endswith(".weight")]
        if not weights or any(value.ndim != 2 for value in weights):
            raise FileError(f"{where}: network.pth holds no linear layers")
        widths = [weights[0].shape[1], *config.hidden, weights[-1].shape[0]]
        self.layers = nn.ModuleList()
        for n_in, n_out, name in zip(widths[:-1], widths[1:], config.activations, strict=True):
            self.layers.append(nn.Linear(n_in, n_out))
            if name is not None:
                self.layers.append(getattr(nn, name)())
        try:
            self.load_state_dict(dict(state))
        except RuntimeError as error:
            raise FileError(
                f"{where}: network.pth does not fit params.json: {' '.join(str(error).split())[:160]}"
            ) from error
        for name, value, width in (
            ("shift_in", inputs.shift, widths[0]),
            ("scale_in", inputs.scale, widths[0]),
            ("shift_out", outputs.shift, widths[-1]),
            ("scale_out", outputs.scale, widths[-1]),
        ):
            if value.numel() not in (1, width):
                raise FileError(f"{where}: a scaler of {value.numel()} numbers for {width} features")
            self.register_buffer(name, value.to(torch.float32))

    @property
    def n_features(self) -> int:
        """Number of features per point, F."""
        return int(self.layers[0].in_features)  # type: ignore[arg-type]

    @property
    def n_energies(self) -> int:
        """Number of energies of the LDOS, E."""
        linear = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
        return linear[-1].out_features

    def forward(self, features: Tensor) -> Tensor:
        """LDOS (P, E) in 1/(eV A^3) from raw features (P, F)."""
        out = (features.to(torch.float32) - self.shift_in) / self.scale_in
        for layer in self.layers:
            out = layer(out)
        out = out * self.scale_out + self.shift_out
        if self.config.negative == "zero_out_negative":
            return out.clamp(min=0.0)
        return out.abs() if self.config.negative == "absolute_values" else out
