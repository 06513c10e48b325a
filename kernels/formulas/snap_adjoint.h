// The derivative of the bispectrum with respect to the neighbours' positions, and what their change makes of it: at one
// point, or at one point per lane. R, T, complex numbers, layers and sums over neighbours as in snap_expansion.h; what
// leads from dE/dB to Y = dE/dU is in snap_transpose.h.
//
// Row mb of layer j of U holds, up to norms, the coefficients of x^(j-ma) y^ma in
//     (conj(a) x - conj(b) y)^(j-mb) (b x + a y)^mb.
// The rotation X = (Re a, Im a, Re b, Im b) is a unit vector of R^4. Moving it along one of
//     T1 = (i a -> -i a, b ->  i b),    T2 = (a -> -b, b -> a),    T3 = (a -> i b, b -> i a),
// which are orthonormal and orthogonal to X, turns x and y in every row, so that U changes by
//     D1 = i (x d/dx - y d/dy),         D2 = x d/dy - y d/dx,      D3 = i (x d/dy + y d/dx),
// which connect only neighbouring elements of one row and, as U is unitary, are antisymmetric. So
//     dE/dX = sum_k T_k Re(conj(Y) D_k U) = -sum_k T_k Re(conj(D_k Y) U):
// D_k is applied to Y, once per point instead of once per neighbour. D1 multiplies (a*)^p (-b*)^q by i (p - q).
#pragma once

#include "common.h"
#include "snap_adjoint_types.h"
#include "snap_expansion.h"
#include "snap_rotation.h"

MALAX_NAMESPACE_BEGIN

// ---- rows of U --------------------------------------------------------------------------------------------

// A row of the layers, x, as v[ma][re, im]: of the pairs c+ + c-, c+ - c- the sum and the difference, times `factor`
// (1/2 gives c+ and c-; 1, of derivatives with respect to the pair, those with respect to c+ and c-).
template <class R, class T>
MALAX_HD void snap_unpack_row(int j, const R *x, T factor, R *v) {
    const int middle = j / 2;
    if (j % 2 == 0) {
        v[2 * middle] = x[0];
        v[2 * middle + 1] = x[1];
        x += 2;
    }
    for (int m = 0; m < (j + 1) / 2; ++m, x += 4) {
        R *plus = v + 2 * ((j + 2) / 2 + m), *minus = v + 2 * (j - (j + 2) / 2 - m);
        for (int i = 0; i < 2; ++i) {
            plus[i] = (x[i] + x[i + 2]) * factor;
            minus[i] = (x[i] - x[i + 2]) * factor;
        }
    }
}

// Element i of a row of the layers (pairs side by side): which ma it has in the row.
MALAX_HD int snap_place(int j, int i) {
    if (j % 2 == 0) return i == 0 ? j / 2 : (i & 1) ? j / 2 + (i + 1) / 2 : j / 2 - i / 2;
    return (i & 1) == 0 ? (j + 1) / 2 + i / 2 : (j - 1) / 2 - i / 2;
}

// D2 and D3 connect the elements ma and ma + 1 by ladder[ma].
template <class T>
MALAX_HD void snap_ladder(int j, T *ladder) {
    for (int ma = 0; ma < j; ++ma) ladder[ma] = T(__builtin_sqrt(double((ma + 1) * (j - ma))));
}

// Element ma of D_k v, k = 2 or 3, for a row v[ma][re, im].
template <int K, class R, class T>
MALAX_HD void snap_turned(int j, int ma, const T *ladder, const R *v, R *out) {
    R below[2], above[2];
    for (int i = 0; i < 2; ++i) {
        below[i] = ma > 0 ? v[2 * ma - 2 + i] * ladder[ma - 1] : v[i] - v[i];
        above[i] = ma < j ? v[2 * ma + 2 + i] * ladder[ma] : v[i] - v[i];
    }
    out[0] = K == 2 ? above[0] - below[0] : -(above[1] + below[1]);
    out[1] = K == 2 ? above[1] - below[1] : above[0] + below[0];
}

// slopes: dE/d(layers) -> Y (k = 0) or -D_k Y, as snap_layers_transposed reads them
template <int K, class R, class T>
MALAX_HD void snap_turned_slopes(const SnapTablesView<T> &t, const R *slopes, R *out) {
    T ladder[SNAP_LARGEST];
    R v[2 * (SNAP_LARGEST + 1)];
    for (int j = 0; j <= t.twojmax; ++j) {
        if (K > 0) snap_ladder(j, ladder);
        for (int row = 0; row <= j / 2; ++row) {
            snap_unpack_row(j, slopes, T(1), v);
            for (int i = 0; i <= j; ++i) {
                const int ma = snap_place(j, i);
                if (K == 0) {
                    out[2 * i] = v[2 * ma];
                    out[2 * i + 1] = v[2 * ma + 1];
                } else {
                    R turned[2];
                    snap_turned<K>(j, ma, ladder, v, turned);
                    out[2 * i] = -turned[0];
                    out[2 * i + 1] = -turned[1];
                }
            }
            slopes += 2 * (j + 1);
            out += 2 * (j + 1);
        }
    }
}

// layers += D_k of other layers
template <int K, class R, class T>
MALAX_HD void snap_add_turned(const SnapTablesView<T> &t, const R *other, R *layers) {
    T ladder[SNAP_LARGEST];
    R v[2 * (SNAP_LARGEST + 1)], turned[2 * (SNAP_LARGEST + 1)];
    for (int j = 0; j <= t.twojmax; ++j) {
        snap_ladder(j, ladder);
        for (int row = 0; row <= j / 2; ++row) {
            snap_unpack_row(j, other, T(0.5), v);
            for (int ma = 0; ma <= j; ++ma) snap_turned<K>(j, ma, ladder, v, turned + 2 * ma);
            for (int i = 0; i <= j; ++i) {
                const R *c = turned + 2 * snap_place(j, i);
                const bool single = j % 2 == 0 && i == 0, first = (i & 1) == (j % 2 == 0);
                const R *partner = single ? c : turned + 2 * (j - snap_place(j, i));
                for (int k = 0; k < 2; ++k) {
                    layers[2 * i + k] += single ? c[k] : first ? c[k] + partner[k] : partner[k] - c[k];
                }
            }
            other += 2 * (j + 1);
            layers += 2 * (j + 1);
        }
    }
}

// ---- sums over U of each neighbour ------------------------------------------------------------------------

constexpr int SNAP_TURNS = 3;  // Y, -D2 Y, -D3 Y

// Of N neighbours and the values v T_n, n = 0 .. ORDERS - 1, of one p and q: sums[k] += those of slopes times value,
// with Y, D1, D2, D3. turn: what D1 multiplies v by, without i. slopes: SNAP_TURNS sets, `set` apart.
template <int N, int ORDERS, class R, class T>
MALAX_HD void snap_contract(const R *vr, const R *vi, T turn, const R *slopes, int stride, int set, const R *chebyshev,
                            R (&sums)[4][N]) {
#pragma GCC unroll 3
    for (int s = 0; s < SNAP_TURNS; ++s) {
        R re[N], im[N];
        const R *g = slopes + s * set;
#pragma GCC unroll 8
        for (int n = 0; n < ORDERS; ++n, g += stride) {
            const R gr = g[0], gi = g[1];
#pragma GCC unroll 4
            for (int k = 0; k < N; ++k) {
                re[k] = n == 0 ? gr : fused(gr, chebyshev[(n - 1) * N + k], re[k]);
                im[k] = n == 0 ? gi : fused(gi, chebyshev[(n - 1) * N + k], im[k]);
            }
        }
#pragma GCC unroll 4
        for (int k = 0; k < N; ++k) {
            R &sum = sums[s == 0 ? 0 : s + 1][k];
            sum = fused(vr[k], re[k], fused(vi[k], im[k], sum));
            if (s == 0) sums[1][k] = fused(fused(vr[k], im[k], -(vi[k] * re[k])), turn, sums[1][k]);
        }
    }
}

// The same for all values of the class |p|, |q|; powers of weight 1.
template <int N, int ORDERS, class T, class R>
MALAX_HD void snap_contract_class(int p, int q, const SnapPowers<N, R> &powers, const R *slopes, int set,
                                  R (&sums)[4][N]) {
    const R *a = powers.first + 2 * N * p, *b = powers.second + 2 * N * q;
    if (p == 0 || q == 0) {
        const R *v = p > 0 ? a : b;
        snap_contract<N, ORDERS>(v, v + N, T(p - q), slopes, 2, set, powers.chebyshev, sums);
        return;
    }
    R vr[N], vi[N], wr[N], wi[N];
#pragma GCC unroll 4
    for (int k = 0; k < N; ++k) {
        const R rr = a[k] * b[k], ii = a[N + k] * b[N + k], ri = a[k] * b[N + k], ir = a[N + k] * b[k];
        vr[k] = rr - ii;
        vi[k] = ri + ir;
        wr[k] = rr + ii;
        wi[k] = p >= q ? ir - ri : ri - ir;
    }
    snap_contract<N, ORDERS>(vr, vi, T(p - q), slopes, 4, set, powers.chebyshev, sums);
    snap_contract<N, ORDERS>(wr, wi, T(p >= q ? p + q : -p - q), slopes + 2, 4, set, powers.chebyshev, sums);
}

// The four sums of N neighbours over all of U; slopes: (SNAP_TURNS, expansion_size).
template <int N, class R, class T>
MALAX_HD void snap_contract_neighbours(const SnapTablesView<T> &t, const SnapPowers<N, R> &powers, const R *slopes,
                                       R (&sums)[4][N]) {
    // classes with as many orders one after the other: the branches can be foreseen
    unrolled<1, SNAP_LARGEST / 2 + 2>([&](auto orders) MALAX_INLINE_LAMBDA {
        constexpr int ORDERS = decltype(orders)::value;
        const int most = t.twojmax - 2 * (ORDERS - 1);
        for (int sum = most; sum >= 0 && sum > most - 2; --sum) {
            for (int p = 0; p <= sum; ++p) {
                const int q = sum - p;
                snap_contract_class<N, ORDERS, T>(p, q, powers, slopes + t.classes[p * (t.twojmax + 1) + q],
                                                  t.expansion_size, sums);
            }
        }
    });
}

// The sums of D1 v from those of v, added to `out`.
template <class R, class T>
MALAX_HD void snap_add_turned_sums(const SnapTablesView<T> &t, const R *sums, R *out) {
    for (int p = 0; p <= t.twojmax; ++p) {
        for (int q = 0; p + q <= t.twojmax; ++q) {
            const int at = t.classes[p * (t.twojmax + 1) + q], values = p > 0 && q > 0 ? 4 : 2;
            for (int i = at; i < at + values * ((t.twojmax - p - q) / 2 + 1); i += 2) {
                const T turn = T((i - at) % values == 0 ? p - q : p >= q ? p + q : -p - q);
                out[i] = fused(sums[i + 1], -turn, out[i]);
                out[i + 1] = fused(sums[i], turn, out[i + 1]);
            }
        }
    }
}

// ---- geometry ---------------------------------------------------------------------------------------------

// How the rotation and the weight of a neighbour change with its distance vector d.
// X = (cosine, -k dz, k dy, -k dx) with k = sine / r and the sign that makes sine >= 0.
template <class T>
struct SnapSlope {
    T nx, ny, nz;               // d / r
    T k;
    T cosine_slope;             // d(cosine)/dr
    T stretch;                  // r dk/dr
    T weight, weight_slope;     // with the switching function; zero outside the cutoff
};

template <class T>
MALAX_HD SnapSlope<T> snap_slope(T dx, T dy, T dz, T theta, T fade, T inverse_r, T weight, T theta_scale,
                                 T fade_scale) {
    const T sin = sin_poly(theta), cos = cos_poly(theta), switching = cos_poly(fade);
    const T sine = sin < 0 ? -sin : sin, cosine = sin < 0 ? -cos : cos;
    SnapSlope<T> s;
    s.nx = dx * inverse_r;
    s.ny = dy * inverse_r;
    s.nz = dz * inverse_r;
    s.k = sine * inverse_r;
    s.cosine_slope = -sine * theta_scale;
    s.stretch = fused(cosine, theta_scale, -s.k);
    s.weight = weight * switching * switching;
    s.weight_slope = T(-2) * weight * switching * sin_poly(fade) * fade_scale;
    return s;
}

template <class T>
MALAX_HD T snap_dot(T ax, T ay, T az, T bx, T by, T bz) {
    return fused(ax, bx, fused(ay, by, az * bz));
}

// dE/dd of a neighbour with rotation q (ar, ai, br, bi) and sums over its U of weight 1: `density` with Y and
// s1, s2, s3 with D1, D2, D3.
template <class T>
MALAX_HD void snap_gradient(const SnapSlope<T> &s, T ar, T ai, T br, T bi, T density, T s1, T s2, T s3, T *gradient) {
    // dE/dX, and from it the derivative with respect to the vector k d
    const T gar = snap_dot(s1, s2, s3, ai, -br, -bi), gai = snap_dot(s1, s2, s3, -ar, -bi, br);
    const T gbr = snap_dot(s1, s2, s3, -bi, ar, -ai), gbi = snap_dot(s1, s2, s3, br, ai, ar);
    const T px = -gbi, py = gbr, pz = -gai;
    const T radial = fused(gar, s.cosine_slope, s.stretch * snap_dot(px, py, pz, s.nx, s.ny, s.nz));
    const T along = fused(s.weight, radial, s.weight_slope * density), across = s.weight * s.k;
    gradient[0] = fused(across, px, along * s.nx);
    gradient[1] = fused(across, py, along * s.ny);
    gradient[2] = fused(across, pz, along * s.nz);
}

// ---- forward mode -----------------------------------------------------------------------------------------

// What the change (cx, cy, cz) of a neighbour's distance vector makes of its U: the change of the weight, and
// weight times the steps along T1, T2, T3.
template <class T>
struct SnapStep {
    T weight, s1, s2, s3;
};

template <class T>
MALAX_HD SnapStep<T> snap_step(const SnapSlope<T> &s, T ar, T ai, T br, T bi, T cx, T cy, T cz) {
    const T dr = snap_dot(s.nx, s.ny, s.nz, cx, cy, cz), bend = s.stretch * dr;
    const T dar = s.cosine_slope * dr, dai = -fused(s.k, cz, bend * s.nz);
    const T dbr = fused(s.k, cy, bend * s.ny), dbi = -fused(s.k, cx, bend * s.nx);
    SnapStep<T> step;
    step.weight = s.weight_slope * dr;
    step.s1 = s.weight * fused(ai, dar, snap_dot(-ar, -bi, br, dai, dbr, dbi));
    step.s2 = s.weight * fused(-br, dar, snap_dot(-bi, ar, ai, dai, dbr, dbi));
    step.s3 = s.weight * fused(-bi, dar, snap_dot(br, -ai, ar, dai, dbr, dbi));
    return step;
}

MALAX_NAMESPACE_END
