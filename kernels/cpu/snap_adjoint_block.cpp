// Derivatives of the bispectrum of one block of points, one point per lane. Compiled once per ISA level; see
// common.h for what that forbids.
#include "snap_stages.h"

MALAX_NAMESPACE_BEGIN

namespace {

// U at all points. memory: room for the sums and the powers.
template <class T>
inline void expand(const SnapPoints<T> &block, typename Simd<T>::type *memory,
                   typename Simd<T>::type *layers) {
    constexpr int W = Simd<T>::lanes;
    typedef typename Simd<T>::type R;
    const SnapTablesView<T> &t = *block.tables;
    for (int i = 0; i < t.expansion_size; ++i) memory[i] = R{};
    const SnapPowers<GROUP, R> powers(t.twojmax, memory + t.expansion_size);
    for (int64_t first = 0; first < block.n_neighbours; first += GROUP) {
        for (int k = 0; k < GROUP; ++k) {
            Pairs<T, W> pairs = {};
            if (first + k < block.n_neighbours) pairs.set(block, first + k);
            snap_powers<0>(t.twojmax, reinterpret_cast<const R *>(pairs.q), k, powers);
        }
        add_neighbours(t.twojmax, t.classes, powers, memory);
    }
    snap_layers(t, memory, layers);
}

template <int W>
inline double sum_of_lanes(double *x) {
    for (int half = W / 2; half > 0; half /= 2) {
        for (int l = 0; l < half; ++l) x[l] += x[l + half];
    }
    return x[0];
}

// Sums over the block that are kept per lane until its end.
template <int W>
struct LaneSums {
    alignas(64) double force[3][W], virial[9][W];
};

// From the four sums of one neighbour to its gradient: to the image, the points and the strain.
template <class T, int W>
inline void add_gradient(const Pairs<T, W> &pairs, const SnapConstants &constants, const T *sums, double *image_out,
                         LaneSums<W> &lanes) {
    alignas(64) double g[3][W];
    for (int l = 0; l < W; ++l) {
        T gradient[3];
        snap_gradient<T>(pairs.slope(l, constants), pairs.q[0][l], pairs.q[1][l], pairs.q[2][l], pairs.q[3][l],
                         sums[l], sums[W + l], sums[2 * W + l], sums[3 * W + l], gradient);
        for (int k = 0; k < 3; ++k) g[k][l] = double(gradient[k]);
    }
    for (int k = 0; k < 3; ++k) {
        for (int l = 0; l < W; ++l) lanes.force[k][l] -= g[k][l];
        for (int i = 0; i < 3; ++i) {
            for (int l = 0; l < W; ++l) {
                lanes.virial[3 * i + k][l] = fused(pairs.d[i][l], g[k][l], lanes.virial[3 * i + k][l]);
            }
        }
    }
    for (int k = 0; k < 3; ++k) image_out[k] = sum_of_lanes<W>(g[k]);
}

// dE/dB -> dE/d(layers of U), added to slopes.
template <class T, int J, int H>
MALAX_NOINLINE void slopes_of_layers(const SnapTablesView<T> &t, const typename Simd<T>::type *beta,
                                     const typename Simd<T>::type *layers, typename Simd<T>::type *memory,
                                     typename Simd<T>::type *slopes) {
    typedef typename Simd<T>::type R;
    const int size = (t.twojmax + 1) * 2 * H;
    R *rows = memory, *row_slopes = rows + 8 * t.n_rows, *f = row_slopes + 8 * t.n_rows, *h = f + size;
    snap_squares_transposed(t, beta, layers, slopes);
    for (int i = 0; i < t.n_bases; ++i) {
        const T *c = t.sphere + int64_t(i) * t.sphere_size;
        sphere(t, c, layers, rows);
        for (int k = 0; k < 4; ++k) {
            R *g = row_slopes + 2 * k * t.n_rows;
            if ((t.bases[i].points >> k & 1) == 0) {
                for (int n = 0; n < 2 * t.n_rows; ++n) g[n] = R{};
                continue;
            }
            Angles<J, H>::functions(t, rows + 2 * k * t.n_rows, f);
            for (int n = 0; n < size; ++n) h[n] = R{};
            Angles<J, H>::products_transposed(*t.couplings, beta, f, h);
            Angles<J, H>::functions_transposed(t, h, g);
        }
        sphere_transposed(t, c, row_slopes, slopes);
    }
}

// dE/d(layers) -> dE/d(sums over neighbours) of Y, -D2 Y, -D3 Y. layers: room for as many values.
template <class T>
MALAX_NOINLINE void turned_slopes(const SnapTablesView<T> &t, const typename Simd<T>::type *slopes,
                                  typename Simd<T>::type *layers, typename Simd<T>::type *out) {
    typedef typename Simd<T>::type R;
    for (int i = 0; i < SNAP_TURNS * t.expansion_size; ++i) out[i] = R{};
    snap_turned_slopes<0>(t, slopes, layers);
    snap_layers_transposed(t, layers, out);
    snap_turned_slopes<2>(t, slopes, layers);
    snap_layers_transposed(t, layers, out + t.expansion_size);
    snap_turned_slopes<3>(t, slopes, layers);
    snap_layers_transposed(t, layers, out + 2 * t.expansion_size);
}

template <class T>
inline void neighbours_adjoint(const SnapAdjointBlock<T> &block, const typename Simd<T>::type *slopes,
                               typename Simd<T>::type *memory) {
    constexpr int W = Simd<T>::lanes;
    typedef typename Simd<T>::type R;
    const SnapTablesView<T> &t = *block.tables;
    const SnapPowers<GROUP, R> powers(t.twojmax, memory);
    LaneSums<W> lanes = {};
    Pairs<T, W> pairs[GROUP] = {};
    for (int64_t first = 0; first < block.n_neighbours; first += GROUP) {
        const int count = int(block.n_neighbours - first < GROUP ? block.n_neighbours - first : GROUP);
        for (int k = 0; k < GROUP; ++k) {
            if (k < count) pairs[k].set(block, first + k);
            const R *q = reinterpret_cast<const R *>(pairs[k].q);
            const R v[5] = {q[0], q[1], q[2], q[3], R{} + 1};
            snap_powers<0>(t.twojmax, v, k, powers);
        }
        R sums[4][GROUP] = {};
        contract(t, powers, slopes, sums);
        for (int k = 0; k < count; ++k) {
            const R own[4] = {sums[0][k], sums[1][k], sums[2][k], sums[3][k]};
            add_gradient<T, W>(pairs[k], *block.constants, reinterpret_cast<const T *>(own),
                               block.neighbours_out + 3 * (first + k), lanes);
        }
    }
    for (int k = 0; k < 3; ++k) {
        for (int l = 0; l < W; ++l) block.points_out[k * W + l] = lanes.force[k][l];
    }
    for (int k = 0; k < 9; ++k) block.strain_out[k] = sum_of_lanes<W>(lanes.virial[k]);
}

template <class T, int J, int H>
inline void snap_adjoint(const SnapAdjointBlock<T> &block) {
    typedef typename Simd<T>::type R;
    const SnapTablesView<T> &t = *block.tables;
    const R *gradient = reinterpret_cast<const R *>(block.gradient);
    R *layers = reinterpret_cast<R *>(block.scratch), *slopes = layers + t.layers_size;
    R *beta = slopes + t.layers_size, *memory = beta + t.n_features;
    for (int i = 0; i < t.n_features; ++i) beta[i] = gradient[i] * t.scale[i];
    for (int i = 0; i < t.layers_size; ++i) slopes[i] = R{};
    expand(block, memory, layers);
    slopes_of_layers<T, J, H>(t, beta, layers, memory, slopes);
    turned_slopes(t, slopes, layers, memory);
    neighbours_adjoint(block, memory, memory + SNAP_TURNS * t.expansion_size);
}

// What one neighbour's change makes of its U, at all points: (4, lanes).
template <class T, int W>
inline void steps(const SnapJvpBlock<T> &block, int32_t image, const Pairs<T, W> &pairs, T *out) {
    const double *moved = block.atoms_change ? block.atoms_change + 3 * int64_t(block.atoms[image]) : nullptr;
    for (int l = 0; l < W; ++l) {
        T change[3];
        for (int k = 0; k < 3; ++k) {
            double c = (moved ? moved[k] : 0.0) - block.points_change[k * W + l];
            for (int i = 0; i < 3; ++i) c = fused(pairs.d[i][l], block.strain[3 * i + k], c);
            change[k] = T(c);
        }
        const SnapStep<T> step = snap_step<T>(pairs.slope(l, *block.constants), pairs.q[0][l], pairs.q[1][l],
                                              pairs.q[2][l], pairs.q[3][l], change[0], change[1], change[2]);
        out[l] = step.weight;
        out[W + l] = step.s1;
        out[2 * W + l] = step.s2;
        out[3 * W + l] = step.s3;
    }
}

// U and its change at all points. memory: room for SNAP_CHANGES sums over neighbours and the powers.
template <class T>
inline void expand_change(const SnapJvpBlock<T> &block, typename Simd<T>::type *memory, typename Simd<T>::type *layers,
                          typename Simd<T>::type *changes) {
    constexpr int W = Simd<T>::lanes;
    typedef typename Simd<T>::type R;
    const SnapTablesView<T> &t = *block.tables;
    const int size = t.expansion_size;
    for (int i = 0; i < SNAP_CHANGES * size; ++i) memory[i] = R{};
    const SnapPowers<GROUP, R> powers(t.twojmax, memory + SNAP_CHANGES * size);
    for (int64_t first = 0; first < block.n_neighbours; first += GROUP) {
        alignas(64) T q[GROUP][(4 + SNAP_CHANGES) * W] = {};
        for (int k = 0; k < GROUP && first + k < block.n_neighbours; ++k) {
            Pairs<T, W> pairs;
            pairs.set(block, first + k);
            for (int i = 0; i < 5 * W; ++i) q[k][i] = pairs.q[i / W][i % W];
            steps(block, block.neighbours[first + k], pairs, q[k] + 5 * W);
        }
        for (int i = 0; i < SNAP_CHANGES; ++i) {
            for (int k = 0; k < GROUP; ++k) {
                const R *all = reinterpret_cast<const R *>(q[k]);
                const R v[5] = {all[0], all[1], all[2], all[3], all[4 + i]};
                snap_powers<0>(t.twojmax, v, k, powers);
            }
            add_neighbours(t.twojmax, t.classes, powers, memory + i * size);
        }
    }
    snap_add_turned_sums<R, T>(t, memory + 2 * size, memory + size);
    snap_layers(t, memory + size, changes, 0);
    snap_layers(t, memory + 3 * size, layers, 0);
    snap_add_turned<2>(t, layers, changes);
    snap_layers(t, memory + 4 * size, layers, 0);
    snap_add_turned<3>(t, layers, changes);
    snap_layers(t, memory, layers);
}

template <class T, int J, int H>
inline void snap_jvp(const SnapJvpBlock<T> &block) {
    typedef typename Simd<T>::type R;
    const SnapTablesView<T> &t = *block.tables;
    const int size = (t.twojmax + 1) * 2 * H;
    R *layers = reinterpret_cast<R *>(block.scratch), *changes = layers + t.layers_size;
    R *memory = changes + t.layers_size, *out = reinterpret_cast<R *>(block.out);
    expand_change(block, memory, layers, changes);
    R *rows = memory, *row_changes = rows + 8 * t.n_rows, *f = row_changes + 8 * t.n_rows, *df = f + size;
    for (int i = 0; i < t.n_features; ++i) out[i] = R{};
    snap_squares_change(t, layers, changes, out);
    for (int i = 0; i < t.n_bases; ++i) {
        const T *c = t.sphere + int64_t(i) * t.sphere_size;
        sphere(t, c, layers, rows);
        sphere(t, c, changes, row_changes);
        for (int k = 0; k < 4; ++k) {
            if ((t.bases[i].points >> k & 1) == 0) continue;
            Angles<J, H>::functions(t, rows + 2 * k * t.n_rows, f);
            Angles<J, H>::functions(t, row_changes + 2 * k * t.n_rows, df);
            Angles<J, H>::products_change(*t.couplings, f, df, out);
        }
    }
    for (int i = 0; i < t.n_features; ++i) out[i] = out[i] * t.scale[i];
}

// work(J, H) as constants for these tables
template <class T, class F>
inline void with_constants(const SnapTablesView<T> &t, const F &work) {
    switch (t.twojmax) {
        case 8: return work(Constant<8>(), Constant<snap_half_angles(8)>());
#ifndef MALAX_FEW_CONSTANTS
        case 6: return work(Constant<6>(), Constant<snap_half_angles(6)>());
        case 10: return work(Constant<10>(), Constant<snap_half_angles(10)>());
        case 12: return work(Constant<0>(), Constant<snap_half_angles(12)>());  // its own code would be too long
#endif
    }
    switch (t.n_angles / 2) {
        case snap_half_angles(2): return work(Constant<0>(), Constant<snap_half_angles(2)>());
        case snap_half_angles(7): return work(Constant<0>(), Constant<snap_half_angles(7)>());
        case snap_half_angles(11): return work(Constant<0>(), Constant<snap_half_angles(11)>());
    }
}

template <class T>
inline void adjoint_of(const SnapAdjointBlock<T> &block) {
    with_constants(*block.tables,
                   [&](auto j, auto h) { snap_adjoint<T, decltype(j)::value, decltype(h)::value>(block); });
}

template <class T>
inline void jvp_of(const SnapJvpBlock<T> &block) {
    with_constants(*block.tables, [&](auto j, auto h) { snap_jvp<T, decltype(j)::value, decltype(h)::value>(block); });
}

}  // namespace

void snap_adjoint_block_f32(const SnapAdjointBlock<float> &block);
void snap_adjoint_block_f64(const SnapAdjointBlock<double> &block);
void snap_jvp_block_f32(const SnapJvpBlock<float> &block);
void snap_jvp_block_f64(const SnapJvpBlock<double> &block);

void snap_adjoint_block_f32(const SnapAdjointBlock<float> &block) { adjoint_of(block); }
void snap_adjoint_block_f64(const SnapAdjointBlock<double> &block) { adjoint_of(block); }
void snap_jvp_block_f32(const SnapJvpBlock<float> &block) { jvp_of(block); }
void snap_jvp_block_f64(const SnapJvpBlock<double> &block) { jvp_of(block); }

MALAX_NAMESPACE_END
