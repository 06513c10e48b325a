// The bispectrum of one block of points, one point per lane. Compiled once per ISA level; see common.h
// for what that forbids.
#include "simd.h"

#include "formulas/snap_expansion.h"
#include "formulas/snap_quadrature.h"
#include "formulas/snap_rotation.h"

MALAX_NAMESPACE_BEGIN

namespace {

// One neighbour of all points of the block: geometry in double (differences of coordinates lose digits),
// the rest in T. q: (ar, ai, br, bi, weight) of all lanes.
template <class T, int W>
inline void rotations(const double *points, const double *image, const SnapConstants &constants, T *q) {
    double dx[W], dy[W], dz[W], theta[W], fade[W], inverse_r[W], weight[W];
    const double x = image[0], y = image[1], z = image[2], w = image[3];
    for (int l = 0; l < W; ++l) {
        dx[l] = x - points[l];
        dy[l] = y - points[W + l];
        dz[l] = z - points[2 * W + l];
        const SnapDistance d = snap_distance(dx[l], dy[l], dz[l], w, constants);
        theta[l] = d.theta;
        fade[l] = d.fade;
        inverse_r[l] = d.inverse_r;
        weight[l] = d.weight;
    }
    for (int l = 0; l < W; ++l) {
        const SnapRotation<T> r = snap_rotation<T>(T(dx[l]), T(dy[l]), T(dz[l]), T(theta[l]), T(fade[l]),
                                                   T(inverse_r[l]), T(weight[l]));
        q[l] = r.ar;
        q[W + l] = r.ai;
        q[2 * W + l] = r.br;
        q[3 * W + l] = r.bi;
        q[4 * W + l] = r.weight;
    }
}

// The stages are functions of their own: as one, compilers take minutes.
template <int J, int N, class R>
MALAX_NOINLINE void add_neighbours(int twojmax, const int32_t *classes, const SnapPowers<N, R> &powers, R *sums) {
    snap_add_neighbours<J, N>(twojmax, classes, powers, sums);
}

template <int J, class T, class R>
MALAX_NOINLINE void sphere(const SnapTablesView<T> &t, const T *c, const R *layers, R *rows) {
    snap_sphere<J>(t, c, layers, rows);
}

template <int J, int H, class T, class R>
MALAX_NOINLINE void functions(const SnapTablesView<T> &t, const R *rows, R *f) {
    snap_functions<J, H, VECTOR_REGISTERS >= 32 ? H : (H + 1) / 2>(t, rows, f);
}

template <int J, int H, class R>
MALAX_NOINLINE void products(const SnapCouplings &couplings, const R *f, R *out) {
    snap_products<J, 2 * H, VECTOR_REGISTERS >= 32 ? 2 * H : H>(couplings, f, out);
}

// The sums over neighbours. Where N does not divide their number, rotations of weight zero fill up.
template <class T, int J, int N>
inline void expand(const SnapBlock<T> &block, typename Simd<T>::type *sums) {
    constexpr int W = Simd<T>::lanes;
    typedef typename Simd<T>::type R;
    const SnapTablesView<T> &t = *block.tables;
    for (int i = 0; i < t.expansion_size; ++i) sums[i] = R{};
    const SnapPowers<N, R> powers(t.twojmax, sums + t.expansion_size);
    for (int64_t first = 0; first < block.n_neighbours; first += N) {
        for (int k = 0; k < N; ++k) {
            alignas(64) T q[5 * W] = {};
            if (first + k < block.n_neighbours) {
                const double *image = block.images + 4 * int64_t(block.neighbours[first + k]);
                rotations<T, W>(block.points, image, *block.constants, q);
            }
            snap_powers<J, N>(t.twojmax, reinterpret_cast<const R *>(q), k, powers);
        }
        add_neighbours<J>(t.twojmax, t.classes, powers, sums);
    }
}

// All components / (j + 1) from the layers of U. H: half the number of angles gamma.
template <class T, int J, int H>
inline void components(const SnapTablesView<T> &t, const typename Simd<T>::type *layers,
                       typename Simd<T>::type *memory, typename Simd<T>::type *out) {
    typedef typename Simd<T>::type R;
    R *rows = memory, *f = rows + 8 * t.n_rows;
    for (int i = 0; i < t.n_features; ++i) out[i] = R{};
    snap_squares(t, layers, out);
    for (int i = 0; i < t.n_bases; ++i) {
        sphere<J>(t, t.sphere + int64_t(i) * t.sphere_size, layers, rows);
        for (int k = 0; k < 4; ++k) {
            if ((t.bases[i].points >> k & 1) == 0) continue;
            functions<J, H>(t, rows + 2 * k * t.n_rows, f);
            products<J, H>(*t.couplings, f, out);
        }
    }
}

// J: twojmax, or 0 if there is no code for just this one.
template <class T, int J, int H>
MALAX_NOINLINE void snap_block(const SnapBlock<T> &block) {
    typedef typename Simd<T>::type R;
    const SnapTablesView<T> &t = *block.tables;
    R *layers = reinterpret_cast<R *>(block.scratch), *memory = layers + t.layers_size;
    R *out = reinterpret_cast<R *>(block.out);
    const double start = block.clock ? block.clock() : 0;
    expand<T, J, VECTOR_REGISTERS >= 32 ? SNAP_NEIGHBOURS : SNAP_NEIGHBOURS / 2>(block, memory);
    snap_layers(t, memory, layers);
    const double middle = block.clock ? block.clock() : 0;
    components<T, J, H>(t, layers, memory, out);
    for (int i = 0; i < t.n_features; ++i) {
        const T scale = t.scale[i];
        out[i] = block.constants->bzero ? (out[i] - 1) * scale : out[i] * scale;
    }
    if (!block.clock) return;
    block.seconds[0] += middle - start;
    block.seconds[1] += block.clock() - middle;
}

template <class T>
inline void snap_block(const SnapBlock<T> &block) {
    switch (block.tables->twojmax) {
        case 8: return snap_block<T, 8, snap_half_angles(8)>(block);
#ifndef MALAX_FEW_CONSTANTS
        case 6: return snap_block<T, 6, snap_half_angles(6)>(block);
        case 10: return snap_block<T, 10, snap_half_angles(10)>(block);
        case 12: return snap_block<T, 12, snap_half_angles(12)>(block);
#endif
    }
    switch (block.tables->n_angles / 2) {
        case snap_half_angles(2): return snap_block<T, 0, snap_half_angles(2)>(block);
        case snap_half_angles(7): return snap_block<T, 0, snap_half_angles(7)>(block);
        case snap_half_angles(11): return snap_block<T, 0, snap_half_angles(11)>(block);
    }
}

}  // namespace

// named here so that isa.cpp sees them
extern const int lanes_f32, lanes_f64;
const int lanes_f32 = Simd<float>::lanes;
const int lanes_f64 = Simd<double>::lanes;

void snap_block_f32(const SnapBlock<float> &block);
void snap_block_f64(const SnapBlock<double> &block);

void snap_block_f32(const SnapBlock<float> &block) { snap_block(block); }
void snap_block_f64(const SnapBlock<double> &block) { snap_block(block); }

MALAX_NAMESPACE_END
