// A network of dense layers as the inner loops see it.
#pragma once

#include <cstdint>

namespace malax {

enum Activation { IDENTITY = 0, RELU = 1, LEAKY_RELU = 2, SILU = 3, GELU = 4, TANH = 5, ACTIVATIONS = 6 };

constexpr double LEAKY_SLOPE = 0.01;  // of LEAKY_RELU below zero

// Rows that go through all layers together: their activations stay in the second-level cache. A multiple of the
// rows that any ISA level keeps in registers.
constexpr int64_t NETWORK_ROWS = 96;

// Outputs are computed in panels of two SIMD vectors; the last may be one. Weights lie in the order of use: panel
// after panel, input after input, the panel's outputs side by side (zeros behind the last).
template <class T>
struct NetworkLayer {
    int64_t n_in, n_out;
    int activation;
    const T *weights;
    const T *biases;  // padded with zeros like the weights
};

// At most NETWORK_ROWS rows. What a row gets does not depend on the other rows.
template <class T>
struct NetworkBlock {
    int64_t n_rows, n_layers;
    const NetworkLayer<T> *layers;
    const T *mean, *scale;  // of the inputs: (x - mean) / scale enters the first layer
    int64_t in_stride;      // values from one row of `in` to the next
    const T *in;
    T *scratch;  // 2 * NETWORK_ROWS * width, aligned
    int64_t width;
    T *out;  // (n_rows, outputs of the last layer)
};

}  // namespace malax
