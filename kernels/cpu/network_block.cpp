// Dense layers of a block of rows, in registers: ROWS rows times a panel of outputs at a time. Compiled once per ISA
// level; see common.h for what that forbids.
#include "formulas/network_types.h"
#include "formulas/unroll.h"
#include "simd.h"
#include "simd_exp.h"

#include "formulas/activations.h"

MALAX_NAMESPACE_BEGIN

namespace {

// two sums per row and the two vectors of weights stay in registers, and one is left for the input
constexpr int ROWS = VECTOR_REGISTERS == 32 ? 12 : 6;
static_assert(NETWORK_ROWS % ROWS == 0, "a block is whole groups of rows");

// Outputs of ROWS rows and VECTORS vectors of a layer.
template <class T, int VECTORS, int ACTIVATION>
void panel(int64_t n_in, const T *weights, const T *biases, const T *in, T *out, int64_t width) {
    typedef typename Simd<T>::type R;
    const R *w = reinterpret_cast<const R *>(weights), *b = reinterpret_cast<const R *>(biases);
    R sums[ROWS][VECTORS];
    unrolled<0, ROWS>([&](auto row) MALAX_INLINE_LAMBDA {
        unrolled<0, VECTORS>([&](auto v) MALAX_INLINE_LAMBDA { sums[row.value][v.value] = b[v.value]; });
    });
    // rows in threes: one pointer, and two multiples of the stride that a load's address can hold
    const T *x[ROWS / 3];
    unrolled<0, ROWS / 3>([&](auto g) MALAX_INLINE_LAMBDA { x[g.value] = in + 3 * g.value * width; });
    for (int64_t k = 0; k < n_in; ++k, w += VECTORS) {
        R now[VECTORS];
        unrolled<0, VECTORS>([&](auto v) MALAX_INLINE_LAMBDA { now[v.value] = w[v.value]; });
        unrolled<0, ROWS>([&](auto row) MALAX_INLINE_LAMBDA {
            const R here = x[row.value / 3][row.value % 3 * width] - R();
            unrolled<0, VECTORS>([&](auto v) MALAX_INLINE_LAMBDA {
                sums[row.value][v.value] = fused(now[v.value], here, sums[row.value][v.value]);
            });
        });
        unrolled<0, ROWS / 3>([&](auto g) MALAX_INLINE_LAMBDA { ++x[g.value]; });
    }
    unrolled<0, ROWS>([&](auto row) MALAX_INLINE_LAMBDA {
        R *y = reinterpret_cast<R *>(out + row.value * width);
        unrolled<0, VECTORS>([&](auto v) MALAX_INLINE_LAMBDA { y[v.value] = sums[row.value][v.value]; });
    });
    if (ACTIVATION == IDENTITY) return;
    // in a loop of its own: the sums would not stay in registers beside what it needs
    for (int row = 0; row < ROWS; ++row) {
        R *y = reinterpret_cast<R *>(out + row * width);
        for (int v = 0; v < VECTORS; ++v) y[v] = activated<ACTIVATION, T>(y[v]);
    }
}

template <class T, int ACTIVATION>
void layer_rows(const NetworkLayer<T> &layer, int64_t n_rows, const T *in, T *out, int64_t width) {
    constexpr int LANES = Simd<T>::lanes;
    // a panel's weights are used for all rows while they are in the first-level cache
    for (int64_t first = 0; first < layer.n_out; first += 2 * LANES) {
        const T *weights = layer.weights + first * layer.n_in, *biases = layer.biases + first;
        const bool whole = layer.n_out - first > LANES;
        for (int64_t row = 0; row < n_rows; row += ROWS) {
            const T *x = in + row * width;
            T *y = out + row * width + first;
            if (whole) {
                panel<T, 2, ACTIVATION>(layer.n_in, weights, biases, x, y, width);
            } else {
                panel<T, 1, ACTIVATION>(layer.n_in, weights, biases, x, y, width);
            }
        }
    }
}

template <class T>
void network_block(const NetworkBlock<T> &block) {
    T *now = block.scratch, *next = block.scratch + NETWORK_ROWS * block.width;
    const int64_t n_in = block.layers[0].n_in;
    const int64_t rows = (block.n_rows + ROWS - 1) / ROWS * ROWS;
    for (int64_t row = 0; row < rows; ++row) {
        const T *x = block.in + row * block.in_stride;
        T *y = now + row * block.width;
        for (int64_t k = 0; k < n_in; ++k) y[k] = row < block.n_rows ? (x[k] - block.mean[k]) / block.scale[k] : T(0);
    }
    for (int64_t l = 0; l < block.n_layers; ++l) {
        const NetworkLayer<T> &layer = block.layers[l];
        as_constant<0, ACTIVATIONS>(layer.activation, [&](auto activation) MALAX_INLINE_LAMBDA {
            layer_rows<T, decltype(activation)::value>(layer, rows, now, next, block.width);
        });
        T *done = next;
        next = now;
        now = done;
    }
    const int64_t n_out = block.layers[block.n_layers - 1].n_out;
    for (int64_t row = 0; row < block.n_rows; ++row) {
        __builtin_memcpy(block.out + row * n_out, now + row * block.width, n_out * sizeof(T));
    }
}

}  // namespace

void network_block_f32(const NetworkBlock<float> &);
void network_block_f64(const NetworkBlock<double> &);

void network_block_f32(const NetworkBlock<float> &block) { network_block(block); }
void network_block_f64(const NetworkBlock<double> &block) { network_block(block); }

MALAX_NAMESPACE_END
