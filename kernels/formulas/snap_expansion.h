// The expansion of the neighbours' density on the 3-sphere, at one point or at one point per lane.
//
// R is a real number or a SIMD vector of them, T its scalar type. Complex numbers are pairs (re, im) in
// consecutive R. All j are doubled: layer j is the (j+1) x (j+1) matrix of spin j/2, element (mb, ma).
//
// The polynomial (a* - b* x)^(j-mb) (b + a x)^mb, whose coefficient of x^ma is an element of U up to its norm
// (D. A. Varshalovich et al., Quantum Theory of Angular Momentum (1988), section 4.8), gives
//     U_j[mb, ma] = (a*)^p (-b*)^q P(|a|^2 - |b|^2),   p = j - mb - ma,  q = ma - mb,
// with negative powers meaning powers of the conjugate and P a real (Jacobi) polynomial of degree
// n = (j - |p| - |q|) / 2. So the sums over neighbours are those of w (a*)^p (-b*)^q T_n, with Chebyshev's
// polynomials T_n common to all p and q, and P follows from them once per point. The lower half of U,
// 2 mb <= j or p + q >= 0, is enough.
#pragma once

#include "common.h"
#include "snap_types.h"
#include "unroll.h"

MALAX_NAMESPACE_BEGIN

// Powers of the rotations of N neighbours k, side by side: w (a*)^i in first[i][re, im][k], (-b*)^i in
// second[i][re, im][k], T_(n+1)(|a|^2 - |b|^2) in chebyshev[n][k].
template <int N, class R>
struct SnapPowers {
    R *first, *second, *chebyshev;

    MALAX_HD SnapPowers(int twojmax, R *memory)
        : first(memory), second(first + 2 * N * (twojmax + 1)), chebyshev(second + 2 * N * (twojmax + 1)) {}
};

// power[i] = power[i-1] (xr + i xi) for i >= 1, of neighbour k
template <int J, int N, class R>
MALAX_HD void snap_powers_of(int twojmax, R xr, R xi, int k, R *power) {
    R re = power[k], im = power[N + k];
    const int n = J > 0 ? J : twojmax;
#pragma GCC unroll 14
    for (int i = 1; i <= n; ++i) {
        const R next = fused(re, xr, -(im * xi));
        im = fused(re, xi, im * xr);
        re = next;
        power[2 * N * i + k] = re;
        power[2 * N * i + N + k] = im;
    }
}

// v: (ar, ai, br, bi, weight) of neighbour k
template <int J, int N, class R>
MALAX_HD void snap_powers(int twojmax, const R *v, int k, const SnapPowers<N, R> &p) {
    const R zero = v[4] - v[4], one = zero + 1;
    p.first[k] = v[4];
    p.first[N + k] = zero;
    p.second[k] = one;
    p.second[N + k] = zero;
    snap_powers_of<J, N>(twojmax, v[0], -v[1], k, p.first);
    snap_powers_of<J, N>(twojmax, -v[2], v[3], k, p.second);
    const R t = fused(v[0], v[0], v[1] * v[1]) - fused(v[2], v[2], v[3] * v[3]), twice = t + t;
    R before = one, now = t;
    for (int n = 0; n < twojmax / 2; ++n) {
        p.chebyshev[n * N + k] = now;
        const R next = fused(twice, now, -before);
        before = now;
        now = next;
    }
}

// sum[n][c] += sum over N neighbours of values[c][k] T_n, for n = 0 .. ORDERS - 1 and C values each
template <int N, int C, int ORDERS, class R>
MALAX_HD void snap_add_orders(const R (&values)[C][N], const R *chebyshev, R *sum, int stride) {
#pragma GCC unroll 8
    for (int n = 0; n < ORDERS; ++n, sum += stride) {
        R total[C];
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) total[c] = sum[c];
#pragma GCC unroll 4
        for (int k = 0; k < N; ++k) {
#pragma GCC unroll 4
            for (int c = 0; c < C; ++c) {
                total[c] = n == 0 ? total[c] + values[c][k] : fused(values[c][k], chebyshev[(n - 1) * N + k], total[c]);
            }
        }
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) sum[c] = total[c];
    }
}

// The class |p|, |q| of N neighbours. Where both are positive it has the sums of two signs, (p, q) and, of
// (p, -q) and (-p, q), the one in the lower half (for p = q the first).
template <int N, int ORDERS, class R>
MALAX_HD void snap_add_class(int p, int q, const SnapPowers<N, R> &powers, R *sum) {
    const R *a = powers.first + 2 * N * p, *b = powers.second + 2 * N * q;
    if (p > 0 && q > 0) {
        R values[4][N];
#pragma GCC unroll 4
        for (int k = 0; k < N; ++k) {
            const R rr = a[k] * b[k], ii = a[N + k] * b[N + k], ri = a[k] * b[N + k], ir = a[N + k] * b[k];
            values[0][k] = rr - ii;
            values[1][k] = ri + ir;
            values[2][k] = rr + ii;
            values[3][k] = p >= q ? ir - ri : ri - ir;
        }
        snap_add_orders<N, 4, ORDERS>(values, powers.chebyshev, sum, 4);
    } else if (p + q > 0) {
        R values[2][N];
#pragma GCC unroll 4
        for (int k = 0; k < N; ++k) {
            values[0][k] = p > 0 ? a[k] : powers.first[k] * b[k];
            values[1][k] = p > 0 ? a[N + k] : powers.first[k] * b[N + k];
        }
        snap_add_orders<N, 2, ORDERS>(values, powers.chebyshev, sum, 2);
    } else {
        R values[1][N];
#pragma GCC unroll 4
        for (int k = 0; k < N; ++k) values[0][k] = a[k];
        snap_add_orders<N, 1, ORDERS>(values, powers.chebyshev, sum, 2);
    }
}

// Adds N neighbours to the sums. J is twojmax, or 0 if that is known only when the program runs.
template <int J, int N, class R>
MALAX_HD void snap_add_neighbours(int twojmax, const int32_t *classes, const SnapPowers<N, R> &powers, R *sums) {
    if constexpr (J > 0) {
        unrolled<0, J + 1>([&](auto p) MALAX_INLINE_LAMBDA {
            constexpr int P = decltype(p)::value;
            unrolled<0, J + 1 - P>([&](auto q) MALAX_INLINE_LAMBDA {
                constexpr int Q = decltype(q)::value;
                snap_add_class<N, (J - P - Q) / 2 + 1>(P, Q, powers, sums + classes[P * (J + 1) + Q]);
            });
        });
    } else {
        for (int p = 0; p <= twojmax; ++p) {
            for (int q = 0; q <= twojmax - p; ++q) {
                R *sum = sums + classes[p * (twojmax + 1) + q];
                as_constant<1, SNAP_LARGEST / 2 + 2>((twojmax - p - q) / 2 + 1, [&](auto n) MALAX_INLINE_LAMBDA {
                    snap_add_class<N, decltype(n)::value>(p, q, powers, sum);
                });
            }
        }
    }
}

// re, im of sum_i radial[i] sums[i stride], i = 0 .. n
template <class R, class T>
MALAX_HD void snap_element(const R *sums, int stride, const T *radial, int n, R *element) {
    R re = sums[0] * radial[0], im = sums[1] * radial[0];
    for (int i = 1; i <= n; ++i) {
        re = fused(sums[i * stride], radial[i], re);
        im = fused(sums[i * stride + 1], radial[i], im);
    }
    element[0] = re;
    element[1] = im;
}

// From the sums over neighbours to the layers of U, with the point's own contribution (`own` on the diagonal).
// Of a row's elements m = ma - j/2 and -m the sum and the difference are kept.
template <class R, class T>
MALAX_HD void snap_layers(const SnapTablesView<T> &t, const R *sums, R *layers, int own = 1) {
    for (int i = 0; i < t.n_elements; ++i) {
        const SnapElement &e = t.elements[i];
        R plus[2], minus[2], *x = layers + e.target;
        if (e.kind == SNAP_MIRRORED) {
            snap_element(sums + e.second, e.second_stride, t.radial + e.second_radial, e.n, minus);
            plus[0] = e.odd ? -minus[0] : minus[0];
            plus[1] = e.odd ? minus[1] : -minus[1];
        } else {
            snap_element(sums + e.first, e.first_stride, t.radial + e.first_radial, e.n, plus);
            if (e.kind == SNAP_SINGLE) {
                x[0] = plus[0] + T(own * e.diagonal);
                x[1] = plus[1];
                continue;
            }
            snap_element(sums + e.second, e.second_stride, t.radial + e.second_radial, e.n, minus);
            minus[0] += T(own * e.diagonal);
        }
        x[0] = plus[0] + minus[0];
        x[1] = plus[1] + minus[1];
        x[2] = plus[0] - minus[0];
        x[3] = plus[1] - minus[1];
    }
}

MALAX_NAMESPACE_END
