// Dense layers of a block of rows, in registers: ROWS rows times a panel of outputs at a time.
//
// A `Product` says what a word of weights and of inputs is, and how they are multiplied: one number of single or
// double precision, or two of half the bits. Inputs of a layer lie in rows of `width` words.
#pragma once

#include "formulas/network_types.h"
#include "formulas/unroll.h"
#include "simd.h"
#include "simd_exp.h"

#include "formulas/activations.h"

MALAX_NAMESPACE_BEGIN

// two sums per row and the two vectors of weights stay in registers, and one is left for the input
constexpr int NETWORK_TOGETHER = VECTOR_REGISTERS == 32 ? 12 : 6;
static_assert(NETWORK_ROWS % NETWORK_TOGETHER == 0, "a block is whole groups of rows");

template <class T>
struct Numbers {
    typedef T Word;
    typedef typename Simd<T>::type R;
    static constexpr int per_word = 1;
    static inline __attribute__((always_inline)) R add(R sum, R weights, T input) {
        return fused(weights, input - R(), sum);
    }
    static inline __attribute__((always_inline)) void store(R value, T *row, int64_t first) {
        *reinterpret_cast<R *>(row + first) = value;
    }
};

// Outputs of ROWS rows and VECTORS vectors of a layer, from output `first` on; they are stored as `Stored` has it.
template <class Product, class Stored, int VECTORS, int ACTIVATION>
void network_panel(const NetworkLayer<typename Product::Word> &layer, int64_t first,
                   const typename Product::Word *in, typename Product::Word *out, int64_t width) {
    typedef typename Product::Word T;
    typedef typename Product::R R;
    constexpr int ROWS = NETWORK_TOGETHER, LANES = Simd<T>::lanes;
    const int64_t words = (layer.n_in + Product::per_word - 1) / Product::per_word;
    const R *w = reinterpret_cast<const R *>(layer.weights + first * words);
    const R *b = reinterpret_cast<const R *>(layer.biases + first);
    R sums[ROWS][VECTORS], done[ROWS][VECTORS];
    unrolled<0, ROWS>([&](auto row) MALAX_INLINE_LAMBDA {
        unrolled<0, VECTORS>([&](auto v) MALAX_INLINE_LAMBDA { sums[row.value][v.value] = b[v.value]; });
    });
    // rows in threes: one pointer, and two multiples of the stride that a load's address can hold
    const T *x[ROWS / 3];
    unrolled<0, ROWS / 3>([&](auto g) MALAX_INLINE_LAMBDA { x[g.value] = in + 3 * g.value * width; });
    for (int64_t k = 0; k < words; ++k, w += VECTORS) {
        R now[VECTORS];
        unrolled<0, VECTORS>([&](auto v) MALAX_INLINE_LAMBDA { now[v.value] = w[v.value]; });
        unrolled<0, ROWS>([&](auto row) MALAX_INLINE_LAMBDA {
            const T here = x[row.value / 3][row.value % 3 * width];
            unrolled<0, VECTORS>([&](auto v) MALAX_INLINE_LAMBDA {
                sums[row.value][v.value] = Product::add(sums[row.value][v.value], now[v.value], here);
            });
        });
        unrolled<0, ROWS / 3>([&](auto g) MALAX_INLINE_LAMBDA { ++x[g.value]; });
    }
    unrolled<0, ROWS>([&](auto row) MALAX_INLINE_LAMBDA {
        unrolled<0, VECTORS>([&](auto v) MALAX_INLINE_LAMBDA { done[row.value][v.value] = sums[row.value][v.value]; });
    });
    // in a loop of its own: the sums would not stay in registers beside what it needs
    for (int row = 0; row < ROWS; ++row) {
        for (int v = 0; v < VECTORS; ++v) {
            Stored::store(activated<ACTIVATION, T>(done[row][v]), out + row * width, first + v * LANES);
        }
    }
}

// A layer of `rows` rows, whole groups of them.
template <class Product, class Stored, class T>
void network_layer(const NetworkLayer<T> &layer, int64_t rows, const T *in, T *out, int64_t width) {
    constexpr int LANES = Simd<T>::lanes;
    as_constant<0, ACTIVATIONS>(layer.activation, [&](auto activation) MALAX_INLINE_LAMBDA {
        constexpr int ACTIVATION = decltype(activation)::value;
        // a panel's weights are used for all rows while they are in the first-level cache
        for (int64_t first = 0; first < layer.n_out; first += 2 * LANES) {
            for (int64_t row = 0; row < rows; row += NETWORK_TOGETHER) {
                const T *x = in + row * width;
                T *y = out + row * width;
                if (layer.n_out - first > LANES) {
                    network_panel<Product, Stored, 2, ACTIVATION>(layer, first, x, y, width);
                } else {
                    network_panel<Product, Stored, 1, ACTIVATION>(layer, first, x, y, width);
                }
            }
        }
    });
}

// All layers of a block. The first multiplies numbers; the others `Product`s, and the last stores numbers again.
template <class Product, class T>
void network_layers(const NetworkBlock<T> &block) {
    T *now = block.scratch, *next = block.scratch + NETWORK_ROWS * block.width;
    const int64_t n_in = block.layers[0].n_in, width = block.width;
    const int64_t rows = (block.n_rows + NETWORK_TOGETHER - 1) / NETWORK_TOGETHER * NETWORK_TOGETHER;
    for (int64_t row = 0; row < rows; ++row) {
        const T *x = block.in + row * block.in_stride;
        T *y = now + row * width;
        for (int64_t k = 0; k < n_in; ++k) y[k] = row < block.n_rows ? (x[k] - block.mean[k]) / block.scale[k] : T(0);
    }
    for (int64_t l = 0; l < block.n_layers; ++l) {
        const NetworkLayer<T> &layer = block.layers[l];
        const bool first = l == 0, last = l == block.n_layers - 1;
        if (first && last) network_layer<Numbers<T>, Numbers<T>>(layer, rows, now, next, width);
        if (first && !last) network_layer<Numbers<T>, Product>(layer, rows, now, next, width);
        if (!first && !last) network_layer<Product, Product>(layer, rows, now, next, width);
        if (!first && last) network_layer<Product, Numbers<T>>(layer, rows, now, next, width);
        T *done = next;
        next = now;
        now = done;
    }
    const int64_t n_out = block.layers[block.n_layers - 1].n_out;
    for (int64_t row = 0; row < block.n_rows; ++row) {
        __builtin_memcpy(block.out + row * n_out, now + row * width, n_out * sizeof(T));
    }
}

MALAX_NAMESPACE_END
