// The bispectrum at one point, or at one point per lane: maths shared by host and device.
//
// R is a real number or a SIMD vector of them, T its scalar type. Complex numbers are pairs (re, im) in
// consecutive R. Formulae and conventions: A. P. Thompson et al., J. Comput. Phys. 285, 316 (2015);
// D. A. Varshalovich et al., Quantum Theory of Angular Momentum (1988), section 4.8 (recursion of U).
// All j are doubled: layer j holds the (j+1) x (j+1) matrix of spin j/2, element (mb, ma).
#pragma once

#include "common.h"
#include "snap_types.h"

MALAX_NAMESPACE_BEGIN

// sin and cos on [-pi/2, pi/2] by their Taylor series, to the last bits of T.
template <class T>
MALAX_HD T sin_poly(T x) {
    const T s = x * x;
    T p;
    if (sizeof(T) == 4) {
        p = T(-1.0 / 39916800);
    } else {
        p = T(1.0 / 51090942171709440000.0);
        p = T(-1.0 / 121645100408832000.0) + s * p;
        p = T(1.0 / 355687428096000.0) + s * p;
        p = T(-1.0 / 1307674368000.0) + s * p;
        p = T(1.0 / 6227020800.0) + s * p;
        p = T(-1.0 / 39916800.0) + s * p;
    }
    p = T(1.0 / 362880) + s * p;
    p = T(-1.0 / 5040) + s * p;
    p = T(1.0 / 120) + s * p;
    p = T(-1.0 / 6) + s * p;
    return x + x * s * p;
}

template <class T>
MALAX_HD T cos_poly(T x) {
    const T s = x * x;
    T p;
    if (sizeof(T) == 4) {
        p = T(1.0 / 479001600);
    } else {
        p = T(-1.0 / 1124000727777607680000.0);
        p = T(1.0 / 2432902008176640000.0) + s * p;
        p = T(-1.0 / 6402373705728000.0) + s * p;
        p = T(1.0 / 20922789888000.0) + s * p;
        p = T(-1.0 / 87178291200.0) + s * p;
        p = T(1.0 / 479001600.0) + s * p;
    }
    p = T(-1.0 / 3628800) + s * p;
    p = T(1.0 / 40320) + s * p;
    p = T(-1.0 / 720) + s * p;
    p = T(1.0 / 24) + s * p;
    p = T(-0.5) + s * p;
    return T(1) + s * p;
}

// Where a neighbour at distance (dx, dy, dz) stands, in double: the two angles and what multiplies them.
// Outside 1e-10 A < r < cutoff the weight is zero and everything else finite.
struct SnapDistance {
    double theta, fade, inverse_r, weight;
};

MALAX_HD SnapDistance snap_distance(double dx, double dy, double dz, double weight, const SnapConstants &c) {
    const double pi = 3.14159265358979323846;
    const double rsq = dx * dx + dy * dy + dz * dz;
    const bool inside = (rsq < c.cutoff_squared) & (rsq > 1e-20);
    const double r = __builtin_sqrt(inside ? rsq : c.cutoff_squared);
    const double above = r - c.rmin0;
    // modulo pi is enough: snap_rotation drops a common sign of sine and cosine. Adding and subtracting
    // 1.5 * 2^52 rounds to the nearest integer in any SIMD level.
    const double magic = 6755399441055744.0;
    const double turns = (above * c.theta_scale * (1 / pi) + magic) - magic;
    SnapDistance d;
    d.theta = above * c.theta_scale - turns * pi;
    d.fade = above > 0 ? above * c.fade_scale : 0.0;
    d.inverse_r = 1 / r;
    d.weight = inside ? weight : 0.0;
    return d;
}

// The rotation (a, b) of SU(2) for a neighbour, a = cos - i sin z/r, b = sin (y - i x)/r with the sign that
// makes sin >= 0, and its weight with the switching function (1 + cos 2 fade) / 2.
template <class T>
struct SnapRotation {
    T ar, ai, br, bi, weight;
};

template <class T>
MALAX_HD SnapRotation<T> snap_rotation(T dx, T dy, T dz, T theta, T fade, T inverse_r, T weight) {
    const T sine = sin_poly(theta), cosine = cos_poly(theta), switching = cos_poly(fade);
    const T k = (sine < 0 ? -sine : sine) * inverse_r;
    SnapRotation<T> q;
    q.ar = sine < 0 ? -cosine : cosine;
    q.ai = -k * dz;
    q.br = k * dy;
    q.bi = -k * dx;
    q.weight = weight * switching * switching;
    return q;
}

// Adds one neighbour to the lower half-planes (2 mb <= j) of all layers.
//
// What is built is U divided by sqrt(ma! (j-ma)! / (mb! (j-mb)!)): in these units the recursion
//     u_j[ma] = conj(a) u_{j-1}[ma] - conj(b) u_{j-1}[ma-1]          (one row mb, j > mb)
// has no coefficients, and a row needs only the same row of the layer before. Row mb + 1 starts from
// layer 2 mb + 1, where it is the mirror image of row mb. The weight enters with the first element.
// row and next hold 2 (twojmax + 2) values each.
template <class R>
MALAX_HD void snap_add_neighbour(int twojmax, const int32_t *layer, const R &ar, const R &ai, const R &br,
                                 const R &bi, const R &weight, R *total, R *row, R *next) {
    const R zero = weight - weight;
    row[0] = weight;
    row[1] = zero;
    for (int mb = 0; 2 * mb <= twojmax; ++mb) {
        for (int j = mb == 0 ? 0 : 2 * mb; j <= twojmax; ++j) {
            R *sum = total + 2 * (layer[j] + mb * (j + 1));
            if (j == 0) {
                sum[0] += weight;
                continue;
            }
            // in place from the top: the old row has j elements
            R ur = zero, ui = zero;
            for (int ma = j; ma >= 0; --ma) {
                R vr = zero, vi = zero;
                if (ma > 0) {
                    vr = row[2 * ma - 2];
                    vi = row[2 * ma - 1];
                }
                const R re = ar * ur + ai * ui - br * vr - bi * vi;
                const R im = ar * ui - ai * ur - br * vi + bi * vr;
                row[2 * ma] = re;
                row[2 * ma + 1] = im;
                sum[2 * ma] += re;
                sum[2 * ma + 1] += im;
                ur = vr;
                ui = vi;
            }
            if (j == 2 * mb + 1) {
                for (int ma = 0; ma <= j; ++ma) {
                    const bool odd = (ma + mb + 1) & 1;
                    const R re = row[2 * (j - ma)], im = row[2 * (j - ma) + 1];
                    next[2 * ma] = odd ? -re : re;
                    next[2 * ma + 1] = odd ? im : -im;
                }
            }
        }
        R *swap = row;
        row = next;
        next = swap;
    }
}

// From the sums over neighbours to U: back to its own units, the point's own contribution (weight 1 on the
// diagonal), and the upper half-plane u[j-mb, j-ma] = (-1)^(ma+mb) conj(u[mb, ma]).
template <class R, class T>
MALAX_HD void snap_finish_totals(const SnapTablesView<T> &t, R *total) {
    for (int j = 0; j <= t.twojmax; ++j) {
        const int n = (j + 1) * (j + 1);
        R *u = total + 2 * t.layer[j];
        const T *norm = t.norm + t.layer[j];
        for (int mb = 0; 2 * mb <= j; ++mb) {
            for (int ma = 0; ma <= j; ++ma) {
                const int i = mb * (j + 1) + ma;
                u[2 * i] = u[2 * i] * norm[i] + T(ma == mb);
                u[2 * i + 1] = u[2 * i + 1] * norm[i];
            }
        }
        for (int mb = 0; 2 * mb < j; ++mb) {
            for (int ma = 0; ma <= j; ++ma) {
                const int i = mb * (j + 1) + ma;
                const bool odd = (ma + mb) & 1;
                u[2 * (n - 1 - i)] = odd ? -u[2 * i] : u[2 * i];
                u[2 * (n - 1 - i) + 1] = odd ? u[2 * i + 1] : -u[2 * i + 1];
            }
        }
    }
}

// One term of the bispectrum has U_a x U_b -> U_c with indices ma1 + ma2 = ma + shift and mb1 + mb2 = mb + shift,
// shift = (ja + jb - jc) / 2. For one ma these are the pairs (low + k, ma + shift - low - k), k < n.
struct SnapColumn {
    int ma, low, n;
    int rows;  // rows mb < rows of U_c belong to the half-plane; of the middle row only 2 ma <= jc
};

MALAX_HD SnapColumn snap_column(const SnapTriple &t, int ma) {
    const int sum = ma + (t.ja + t.jb - t.jc) / 2;
    const int low = sum > t.jb ? sum - t.jb : 0, high = sum < t.ja ? sum : t.ja;
    const int rows = (t.jc & 1) ? (t.jc + 1) / 2 : t.jc / 2 + (2 * ma <= t.jc);
    return {ma, low, high - low + 1, rows};
}

// scaled[mb2, k] = C(ma1, ma2) u_b[mb2, ma2], in the order of ma1, for all rows mb2 that are met.
template <class R, class T>
MALAX_HD void snap_scale_rows(const SnapTriple &t, const SnapColumn &column, const T *cg, const R *ub, R *scaled) {
    const int shift = (t.ja + t.jb - t.jc) / 2, n = column.n;
    const int first = shift > t.ja ? shift - t.ja : 0;
    const int last = column.rows - 1 + shift < t.jb ? column.rows - 1 + shift : t.jb;
    for (int k = 0; k < n; ++k) {
        const int ma1 = column.low + k, ma2 = column.ma + shift - ma1;
        const T c = cg[ma1 * (t.jb + 1) + ma2];
        for (int mb2 = first; mb2 <= last; ++mb2) {
            const R *u = ub + 2 * (mb2 * (t.jb + 1) + ma2);
            scaled[2 * (mb2 * n + k)] = u[0] * c;
            scaled[2 * (mb2 * n + k) + 1] = u[1] * c;
        }
    }
}

// sum[i] += c[i] Re(conj(u_i) sum_k a[k] b_i[k]) for N rows b_i = b + i n and elements u_i = u + i stride.
template <int N, class R, class T>
MALAX_HD void snap_row_products(int n, const R *a, const R *b, const T *c, const R *u, int stride, R *sum) {
    R re[N], im[N];
    for (int i = 0; i < N; ++i) {
        const R *s = b + 2 * i * n;
        re[i] = a[0] * s[0] - a[1] * s[1];
        im[i] = a[0] * s[1] + a[1] * s[0];
    }
    for (int k = 1; k < n; ++k) {
        const R ar = a[2 * k], ai = a[2 * k + 1];
        for (int i = 0; i < N; ++i) {
            const R *s = b + 2 * (i * n + k);
            re[i] += ar * s[0];
            re[i] -= ai * s[1];
            im[i] += ar * s[1];
            im[i] += ai * s[0];
        }
    }
    for (int i = 0; i < N; ++i) {
        const R *v = u + 2 * i * stride;
        sum[i] += (v[0] * re[i] + v[1] * im[i]) * c[i];
    }
}

// The contribution of rows from..to-1 of one column of U_c: sum over mb of
//     Re( conj(u_c[mb, ma]) sum over mb1 of C(mb1, mb2) sum over k of u_a[mb1, ma1] scaled[mb2, k] ).
template <class R, class T>
MALAX_HD R snap_rows(const SnapTriple &t, const SnapColumn &column, int from, int to, const T *cg_rows, const R *ua,
                     const R *scaled, const R *uc) {
    const int shift = (t.ja + t.jb - t.jc) / 2, n = column.n, stride = t.jc + 1;
    const R zero = ua[0] - ua[0];
    R sum[4] = {zero, zero, zero, zero};
    for (int mb1 = 0; mb1 <= t.ja; ++mb1) {
        // the range of mb in which mb2 = mb + shift - mb1 is a row of U_b, and not below mb1 if a and b are the same
        const int lower = (t.same ? 2 * mb1 : mb1) - shift, upper = t.jb + mb1 - shift + 1;
        const int end = to < upper ? to : upper;
        const R *a = ua + 2 * (mb1 * (t.ja + 1) + column.low);
        int mb = lower > from ? lower : from;
        while (mb < end) {
            const int mb2 = mb + shift - mb1, step = mb + 4 <= end ? 4 : mb + 2 <= end ? 2 : 1;
            const R *b = scaled + 2 * mb2 * n, *u = uc + 2 * (mb * stride + column.ma);
            const T *c = cg_rows + mb1 * (t.jb + 1) + mb2;
            if (step == 4) {
                snap_row_products<4>(n, a, b, c, u, stride, sum);
            } else if (step == 2) {
                snap_row_products<2>(n, a, b, c, u, stride, sum);
            } else {
                snap_row_products<1>(n, a, b, c, u, stride, sum);
            }
            mb += step;
        }
    }
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// One component of the bispectrum from the full planes of U, without `bzero`: scale times the sum over the
// half-plane 2 mb <= j, where of the middle row's mirror pairs one counts, and its centre half.
// scaled holds 2 (twojmax + 1)^2 values.
template <class R, class T>
MALAX_HD R snap_component(const SnapTablesView<T> &tables, const SnapTriple &t, const R *total, R *scaled) {
    const R *ua = total + 2 * tables.layer[t.ja], *ub = total + 2 * tables.layer[t.jb];
    const R *uc = total + 2 * tables.layer[t.jc];
    const T *cg = tables.cg + t.cg, *cg_rows = tables.cg_rows + t.cg;
    R sum = ua[0] - ua[0];
    for (int ma = 0; ma <= t.jc; ++ma) {
        const SnapColumn column = snap_column(t, ma);
        const bool centre = 2 * ma == t.jc;
        snap_scale_rows(t, column, cg, ub, scaled);
        for (int pass = 0; pass <= centre; ++pass) {
            const int from = pass ? column.rows - 1 : 0, to = pass ? column.rows : column.rows - centre;
            const R part = snap_rows(t, column, from, to, cg_rows, ua, scaled, uc);
            sum += pass ? part * T(0.5) : part;
        }
    }
    return sum * T(t.scale);
}

MALAX_NAMESPACE_END
