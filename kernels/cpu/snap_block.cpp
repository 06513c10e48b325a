// The bispectrum of one block of points, one point per lane. Compiled once per ISA level; see common.h
// for what that forbids.
#include "formulas/snap.h"

#include "simd.h"

MALAX_NAMESPACE_BEGIN

namespace {

// One neighbour of all points of the block: geometry in double (differences of coordinates lose digits),
// the rest in T.
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

template <class T>
inline void snap_block(const SnapBlock<T> &block) {
    constexpr int W = Simd<T>::lanes;
    typedef typename Simd<T>::type R;
    const SnapTablesView<T> &t = *block.tables;
    const int row_size = 2 * (t.twojmax + 2);
    R *total = reinterpret_cast<R *>(block.scratch);
    R *row = total + 2 * t.n_elements;
    R *next = row + row_size;
    R *scaled = next + row_size;
    const R zero = {};
    for (int i = 0; i < 2 * t.n_elements; ++i) total[i] = zero;
    for (int64_t n = 0; n < block.n_neighbours; ++n) {
        alignas(64) T q[5 * W];
        rotations<T, W>(block.points, block.images + 4 * int64_t(block.neighbours[n]), *block.constants, q);
        const R *v = reinterpret_cast<const R *>(q);
        snap_add_neighbour(t.twojmax, t.layer, v[0], v[1], v[2], v[3], v[4], total, row, next);
    }
    snap_finish_totals(t, total);
    R *out = reinterpret_cast<R *>(block.out);
    for (int i = 0; i < t.n_features; ++i) {
        const SnapTriple &triple = t.triples[i];
        R b = snap_component(t, triple, total, scaled);
        if (block.constants->bzero) b -= T(triple.bzero);
        out[triple.feature] = b;
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
