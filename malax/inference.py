"""Networks applied to tiles: features in; sums over the energies, the DOS or the LDOS out.

A prediction needs few numbers of each point's LDOS d = s (W h + b): its sums v = w d over the energies, and
what it adds to the DOS. Both are linear in the last hidden layer's activations h, so v = (w s W) h + w s b,
and the points' sum of d follows from the sum of h. The last layer, often the largest after the hidden ones,
is then applied to a handful of weights and to one sum instead of to every point; `ldos` applies it in full.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from malax import kernels
from malax.errors import InputError
from malax.kernels_network import DenseLayers
from malax.network import LDOSNetwork
from malax.precision import Precision

Layers = Callable[[np.ndarray], np.ndarray]

Reducer = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""From features (n, F) float32: sums over the energies (n, K) and over the points (E,), float64."""


_ROWS = 64
"""A multiple of the numbers in any vector."""


class Inference:
    """One network, ready for tiles. What a row gets depends neither on the other rows nor on their number.

    Parameters
    ----------
    network : a `LDOSNetwork` runs in malax's kernel; any other module from features to LDOS in torch
    rows : the largest tile; torch gets all of them padded to it, for its products of matrices of another
        shape may round otherwise
    precision : "bfloat16" rounds what is multiplied between hidden layers to it

    Raises
    ------
    InputError
        bfloat16 for a network of another program.
    MissingPeerError
        bfloat16 on a processor without products of such numbers.
    """

    def __init__(self, network: nn.Module, rows: int, precision: Precision = "float32") -> None:
        self._network, self._rows = network, rows
        self._own = isinstance(network, LDOSNetwork)
        if precision == "bfloat16" and not self._own:
            raise InputError("bfloat16 is for malax's own networks, not for those of other programs")
        if isinstance(network, LDOSNetwork):
            self._hidden = self._hidden_layers(network, precision)
            last = network.linear_layers[-1]
            self._scale = network.ldos_scale.double().numpy()
            self._weight = last.weight.detach().double().numpy()
            self._bias = last.bias.detach().double().numpy()
            self._last = DenseLayers([self._weight], [self._bias], ["identity"])

    def ldos(self, features: np.ndarray) -> np.ndarray:
        """LDOS (n, E) float32 in 1/(eV A^3) of features (n, F) float32."""
        if not self._own:
            return self._in_torch(self._network, features)
        out = self._last(self._hidden(features))
        network, n = self._network, len(out)
        assert isinstance(network, LDOSNetwork)
        # torch's softplus treats the last numbers of an array, those that fill no vector, in another way
        rows = np.zeros((-(-n // _ROWS) * _ROWS, out.shape[1]), dtype=np.float32)
        rows[:n] = out
        return network.output(torch.from_numpy(rows))[:n].numpy()

    def reducer(self, weights: np.ndarray) -> Reducer:
        """What gives each tile's sums over the energies with ``weights`` (K, E), and over the points.

        All of them are NaN where any number of the tile's LDOS is not finite: other ranks, which wait for the
        sums, have to hear of it.
        """
        network = self._network
        if not self._own or network.non_negative:
            return lambda features: _moments(self.ldos(features), weights)
        weights = weights * self._scale
        folded, constant = weights @ self._weight, weights @ self._bias

        def reduce(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            values, sums = _moments(self._hidden(features), folded)
            values += constant
            return values, self._scale * (self._weight @ sums + len(features) * self._bias)

        return reduce

    def _hidden_layers(self, network: LDOSNetwork, precision: Precision) -> Layers:
        """Activations (n, H) float32 of the last hidden layer; the scaled features where there is none."""
        mean, scale = network.feature_mean.numpy(), network.feature_scale.numpy()
        layers = network.linear_layers[:-1]
        if not layers:
            return lambda features: (features - mean) / scale
        weights = [layer.weight.detach().numpy() for layer in layers]
        biases = [layer.bias.detach().numpy() for layer in layers]
        names, half = [network.activation] * len(layers), precision == "bfloat16"
        return DenseLayers(weights, biases, names, mean, scale, bfloat16=half)

    @torch.inference_mode()
    def _in_torch(self, network: nn.Module, features: np.ndarray) -> np.ndarray:
        n = len(features)
        if n < self._rows:
            padded = np.empty((self._rows, features.shape[1]), dtype=np.float32)
            padded[:n], padded[n:] = features, features[-1]
            features = padded
        return network(torch.from_numpy(features))[:n].numpy()


def _moments(rows: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`malax.kernels.ldos_moments`; NaN if any of ``rows`` is not finite."""
    try:
        return kernels.ldos_moments(rows, weights)
    except InputError:
        if np.isfinite(rows).all():
            raise  # it is about something else
        return np.full((len(rows), len(weights)), np.nan), np.full(rows.shape[1], np.nan)
