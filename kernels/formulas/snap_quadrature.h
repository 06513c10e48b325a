// The bispectrum from the layers of U, at one point or at one point per lane.
//
// With the functions f_j(g) = sum over mb, ma of U_j[mb, ma] conj(D_j[mb, ma](g)) on SU(2), which are real, and
// the integral of three D (Varshalovich et al., section 4.11.1), B_{j1 j2 j} = (j + 1) times the mean of
// f_j1 f_j2 f_j over the group. In Euler angles D_j[mb, ma] = exp(i (ma - j/2) alpha) d(beta)
// exp(i (mb - j/2) gamma), so the mean is exact for these polynomials with a rule on the sphere (beta, alpha)
// that integrates spherical harmonics of degree 3 twojmax / 2 (V. I. Lebedev and D. N. Laikov, Doklady
// Mathematics 59, 477 (1999)) times equidistant gamma, more than 3 twojmax / 2 of them. The weights are
// in the functions, as their cube roots.
#pragma once

#include "common.h"
#include "snap_types.h"
#include "unroll.h"

MALAX_NAMESPACE_BEGIN

// One row's sums over ma at the points (beta, +-alpha), (pi - beta, +-alpha): g[point][re, im], `next` from one point
// to the next. x: the row's elements, c: its coefficients.
template <int PAIRS, bool EVEN, class R, class T>
MALAX_HD void snap_sphere_row(const R *x, const T *c, T sign, int next, R *g) {
    R sr = x[0] - x[0], si = sr;           // sum over m of s cos(m alpha) (c+ + c-)
    R dr = sr, di = sr;                    // t cos (c+ - c-)
    R er = sr, ei = sr, fr = sr, fi = sr;  // s sin (c+ - c-), t sin (c+ + c-)
    if (EVEN) {
        sr = x[0] * c[0];
        si = x[1] * c[0];
        x += 2;
        c += 1;
    }
#pragma GCC unroll 8
    for (int m = 0; m < PAIRS; ++m, x += 4, c += 4) {
        sr = fused(x[0], c[0], sr);
        si = fused(x[1], c[0], si);
        dr = fused(x[2], c[1], dr);
        di = fused(x[3], c[1], di);
        er = fused(x[2], c[2], er);
        ei = fused(x[3], c[2], ei);
        fr = fused(x[0], c[3], fr);
        fi = fused(x[1], c[3], fi);
    }
    const R ur = sr + dr, ui = si + di, vr = er + fr, vi = ei + fi;
    const R wr = (sr - dr) * sign, wi = (si - di) * sign, zr = (er - fr) * sign, zi = (ei - fi) * sign;
    g[0] = ur + vi;
    g[1] = ui - vr;
    g[next] = ur - vi;
    g[next + 1] = ui + vr;
    g[2 * next] = wr + zi;
    g[2 * next + 1] = wi - zr;
    g[3 * next] = wr - zi;
    g[3 * next + 1] = wi + zr;
}

// The same for all rows of all layers: rows[point][row][re, im].
template <int J, class R, class T>
MALAX_HD void snap_sphere(const SnapTablesView<T> &t, const T *c, const R *layers, R *rows) {
    const T *sign = t.signs;
    for_constants<(J > 0 ? J + 1 : 0), SNAP_LARGEST + 1>(t.twojmax + 1, [&](auto j) MALAX_INLINE_LAMBDA {
        constexpr int L = decltype(j)::value, PAIRS = (L + 1) / 2;
        constexpr bool EVEN = L % 2 == 0;
#pragma GCC unroll 8
        for (int i = 0; i <= L / 2; ++i) {
            snap_sphere_row<PAIRS, EVEN>(layers, c, *sign, 2 * t.n_rows, rows);
            layers += 2 * (L + 1);
            c += EVEN + 4 * PAIRS;
            sign += 1;
            rows += 2;
        }
    });
}

// One f_j at one point of the sphere and gamma_l, -gamma_l for l = 0 .. H - 1: f[2 H], from N rows g[row][re, im].
// At most G of the H angles are summed at a time: they have to stay in registers.
template <int N, int H, int G, class R, class T>
MALAX_HD void snap_function(const T *cosines, const T *sines, const R *g, R *f) {
#pragma GCC unroll 16
    for (int first = 0; first < H; first += G) {
        R even[G], odd[G];
#pragma GCC unroll 8
        for (int i = 0; i < N; ++i) {
            const R re = g[2 * i], im = g[2 * i + 1];
            const T *cosine = cosines + 2 * H * i + first, *sine = sines + 2 * H * i + first;
#pragma GCC unroll 16
            for (int l = 0; l < G; ++l) {
                if (first + l >= H) continue;
                even[l] = i == 0 ? re * cosine[l] : fused(re, cosine[l], even[l]);
                odd[l] = i == 0 ? im * sine[l] : fused(im, sine[l], odd[l]);
            }
        }
#pragma GCC unroll 16
        for (int l = 0; l < G; ++l) {
            if (first + l >= H) continue;
            f[first + l] = even[l] - odd[l];
            f[2 * H - 1 - first - l] = even[l] + odd[l];
        }
    }
}

// All f_j at one point of the sphere: functions[j][2 H].
template <int J, int H, int G, class R, class T>
MALAX_HD void snap_functions(const SnapTablesView<T> &t, const R *rows, R *functions) {
    constexpr int LARGEST = (4 * H - 1) / 3;  // twojmax that has H angles
    for_constants<(J > 0 ? J + 1 : 0), LARGEST + 1>(t.twojmax + 1, [&](auto j) MALAX_INLINE_LAMBDA {
        constexpr int L = decltype(j)::value, N = L / 2 + 1;
        snap_function<N, H, G>(t.cosines + (L & 1) * H, t.sines + (L & 1) * H, rows, functions + 2 * H * L);
        rows += 2 * N;
    });
}

// sum over N angles of ab fc
template <int N, class R>
MALAX_HD R snap_integral(const R *ab, const R *fc) {
    R sum[4];
#pragma GCC unroll 32
    for (int l = 0; l < N; ++l) sum[l & 3] = l < 4 ? ab[l] * fc[l] : fused(ab[l], fc[l], sum[l & 3]);
    const R even = N > 2 ? sum[0] + sum[2] : sum[0], odd = N > 3 ? sum[1] + sum[3] : sum[1];
    return even + odd;
}

// out[feature] += sum over N angles of f_a f_b f_c. P of the products f_a f_b are held at a time.
template <int J, int N, int P, class R>
MALAX_HD void snap_products(const SnapCouplings &couplings, const R *functions, R *out) {
    const auto multiply = [&](int a, int b, int at, R *ab) MALAX_INLINE_LAMBDA {
#pragma GCC unroll 32
        for (int l = 0; l < P; ++l) ab[l] = functions[N * a + at + l] * functions[N * b + at + l];
    };
    if constexpr (J > 0) {
        unrolled<0, SnapCouplingsOf<J>::value.n_products>([&](auto i) MALAX_INLINE_LAMBDA {
            constexpr SnapProduct product = SnapCouplingsOf<J>::value.products[decltype(i)::value];
#pragma GCC unroll 4
            for (int at = 0; at < N; at += P) {
                R ab[P];
                multiply(product.a, product.b, at, ab);
                unrolled<product.first, product.last>([&](auto k) MALAX_INLINE_LAMBDA {
                    constexpr SnapThird third = SnapCouplingsOf<J>::value.thirds[decltype(k)::value];
                    out[third.feature] += snap_integral<P>(ab, functions + N * third.c + at);
                });
            }
        });
    } else {
        for (int i = 0; i < couplings.n_products; ++i) {
            const SnapProduct &product = couplings.products[i];
            for (int at = 0; at < N; at += P) {
                R ab[P];
                multiply(product.a, product.b, at, ab);
                for (int k = product.first; k < product.last; ++k) {
                    const SnapThird &third = couplings.thirds[k];
                    out[third.feature] += snap_integral<P>(ab, functions + N * third.c + at);
                }
            }
        }
    }
}

// Components with a layer 0, which is a constant function: B_{j 0 j} = U_0 sum |U_j|^2.
template <class R, class T>
MALAX_HD void snap_squares(const SnapTablesView<T> &t, const R *layers, R *out) {
    const R constant = layers[0], zero = constant - constant;
    const R *x = layers;
    for (int j = 0; j <= t.twojmax; ++j) {
        const bool even = j % 2 == 0;
        R sum = zero;
        for (int i = 0; i <= j / 2; ++i) {
            R row = zero;
            if (even) row = fused(x[0], x[0], x[1] * x[1]) * T(2);
            for (int k = even ? 2 : 0; k < 2 * (j + 1); ++k) row = fused(x[k], x[k], row);
            x += 2 * (j + 1);
            sum += even && i == 0 ? row * T(0.5) : row;  // all rows but the middle one have a mirror image
        }
        out[t.couplings->squares[j]] = constant * sum * T(1.0 / (j + 1));
    }
}

MALAX_NAMESPACE_END
