// What the derivatives of the bispectrum are made of, at a block of points: a neighbour's geometry, and the stages of
// the formulas as functions of their own (as one, compilers take minutes). Only for snap_adjoint_block.cpp.
#pragma once

#include "simd.h"

#include "formulas/snap_adjoint.h"
#include "formulas/snap_quadrature.h"
#include "formulas/snap_transpose.h"

MALAX_NAMESPACE_BEGIN

namespace {

// neighbours done at a time
constexpr int GROUP = VECTOR_REGISTERS >= 32 ? SNAP_NEIGHBOURS : SNAP_NEIGHBOURS / 2;

// One neighbour of all points of the block: differences and distances in double, the rest in T.
template <class T, int W>
struct Pairs {
    alignas(64) double d[3][W];
    alignas(64) T x[3][W], theta[W], fade[W], inverse_r[W], weight[W];
    alignas(64) T q[5][W];  // ar, ai, br, bi, weight with the switching function

    inline void set(const SnapPoints<T> &block, int64_t n) {
        const double *points = block.points, *image = block.images + 4 * int64_t(block.neighbours[n]);
        const SnapConstants &constants = *block.constants;
        const double x0 = image[0], y0 = image[1], z0 = image[2], w = image[3];
        for (int l = 0; l < W; ++l) {
            d[0][l] = x0 - points[l];
            d[1][l] = y0 - points[W + l];
            d[2][l] = z0 - points[2 * W + l];
            const SnapDistance s = snap_distance(d[0][l], d[1][l], d[2][l], w, constants);
            for (int k = 0; k < 3; ++k) x[k][l] = T(d[k][l]);
            theta[l] = T(s.theta);
            fade[l] = T(s.fade);
            inverse_r[l] = T(s.inverse_r);
            weight[l] = T(s.weight);
        }
        for (int l = 0; l < W; ++l) {
            const SnapRotation<T> r =
                snap_rotation<T>(x[0][l], x[1][l], x[2][l], theta[l], fade[l], inverse_r[l], weight[l]);
            q[0][l] = r.ar;
            q[1][l] = r.ai;
            q[2][l] = r.br;
            q[3][l] = r.bi;
            q[4][l] = r.weight;
        }
    }

    inline SnapSlope<T> slope(int l, const SnapConstants &c) const {
        return snap_slope<T>(x[0][l], x[1][l], x[2][l], theta[l], fade[l], inverse_r[l], weight[l], T(c.theta_scale),
                             T(c.fade_scale));
    }
};

template <int N, class R>
MALAX_NOINLINE void add_neighbours(int twojmax, const int32_t *classes, const SnapPowers<N, R> &powers, R *sums) {
    snap_add_neighbours<0, N>(twojmax, classes, powers, sums);
}

template <int N, class T, class R>
MALAX_NOINLINE void contract(const SnapTablesView<T> &t, const SnapPowers<N, R> &powers, const R *slopes,
                             R (&sums)[4][N]) {
    snap_contract_neighbours(t, powers, slopes, sums);
}

template <class T, class R>
MALAX_NOINLINE void sphere(const SnapTablesView<T> &t, const T *c, const R *layers, R *rows) {
    snap_sphere<0>(t, c, layers, rows);
}

template <class T, class R>
MALAX_NOINLINE void sphere_transposed(const SnapTablesView<T> &t, const T *c, const R *rows, R *slopes) {
    snap_sphere_transposed(t, c, rows, slopes);
}

// J: twojmax, or 0 if there is no code for just this one. H: half the number of angles gamma.
template <int J, int H>
struct Angles {
    static constexpr int SUMMED = VECTOR_REGISTERS >= 32 ? H : (H + 1) / 2;  // at a time

    template <class T, class R>
    static MALAX_NOINLINE void functions(const SnapTablesView<T> &t, const R *rows, R *f) {
        snap_functions<0, H, SUMMED>(t, rows, f);
    }

    template <class T, class R>
    static MALAX_NOINLINE void functions_transposed(const SnapTablesView<T> &t, const R *slopes, R *rows) {
        snap_functions_transposed<H, SUMMED>(t, slopes, rows);
    }

    // The products of P angles at a time: code for all would not fit into the caches.
    template <int P, class R>
    static MALAX_NOINLINE void part_transposed(const SnapCouplings &couplings, const R *beta, const R *f, R *h) {
        snap_products_transposed<J, 2 * H, P>(couplings, beta, f, h);
    }

    template <class R>
    static inline void products_transposed(const SnapCouplings &couplings, const R *beta, const R *f, R *h) {
        constexpr int REST = 2 * H % SUMMED;
        for (int at = 0; at + SUMMED <= 2 * H; at += SUMMED) part_transposed<SUMMED>(couplings, beta, f + at, h + at);
        if constexpr (REST > 0) part_transposed<REST>(couplings, beta, f + 2 * H - REST, h + 2 * H - REST);
    }

    template <int P, class R>
    static MALAX_NOINLINE void part_change(const SnapCouplings &couplings, const R *f, const R *df, R *out) {
        snap_products_change<J, 2 * H, P>(couplings, f, df, out);
    }

    template <class R>
    static inline void products_change(const SnapCouplings &couplings, const R *f, const R *df, R *out) {
        constexpr int REST = 2 * H % SUMMED;
        for (int at = 0; at + SUMMED <= 2 * H; at += SUMMED) part_change<SUMMED>(couplings, f + at, df + at, out);
        if constexpr (REST > 0) part_change<REST>(couplings, f + 2 * H - REST, df + 2 * H - REST, out);
    }
};

}  // namespace

MALAX_NAMESPACE_END
