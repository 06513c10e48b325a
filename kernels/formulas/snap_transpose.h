// The stages of snap_expansion.h and snap_quadrature.h in the other direction: from dE/d(what a stage gives) to
// dE/d(what it was given), and the change of the last stage with that of its input. R, T as there.
//
// The derivative with respect to a complex number is the pair of those with respect to its real and imaginary part.
#pragma once

#include "common.h"
#include "snap_types.h"
#include "unroll.h"

MALAX_NAMESPACE_BEGIN

// ---- invariants -------------------------------------------------------------------------------------------

// Between products: so that what one has stored is not kept for another in registers, of which there are too few.
MALAX_HD void snap_forget() { __asm__ volatile("" ::: "memory"); }

// body(product, for_thirds) for all products f_a f_b, where for_thirds(f) calls f(third) for each third of the product.
// J is twojmax, or 0 if that is known only when the program runs.
template <int J, class F>
MALAX_HD void snap_each_product(const SnapCouplings &couplings, const F &body) {
    if constexpr (J > 0) {
        unrolled<0, SnapCouplingsOf<J>::value.n_products>([&](auto i) MALAX_INLINE_LAMBDA {
            constexpr SnapProduct product = SnapCouplingsOf<J>::value.products[decltype(i)::value];
            body(product, [&](const auto &f) MALAX_INLINE_LAMBDA {
                unrolled<product.first, product.last>([&](auto k) MALAX_INLINE_LAMBDA {
                    constexpr SnapThird third = SnapCouplingsOf<J>::value.thirds[decltype(k)::value];
                    f(third);
                });
            });
        });
    } else {
        for (int i = 0; i < couplings.n_products; ++i) {
            const SnapProduct product = couplings.products[i];
            body(product, [&](const auto &f) MALAX_INLINE_LAMBDA {
                for (int k = product.first; k < product.last; ++k) f(couplings.thirds[k]);
            });
        }
    }
}

// slopes[a] = dE/df_a for P of N angles += those of E = sum of beta[feature] f_a f_b f_c. f_a f_b and the sum of
// beta f_c have to stay in registers.
template <int J, int N, int P, class R>
MALAX_HD void snap_products_transposed(const SnapCouplings &couplings, const R *beta, const R *functions, R *slopes) {
    snap_each_product<J>(couplings, [&](SnapProduct product, const auto &for_thirds) MALAX_INLINE_LAMBDA {
        const R *fa = functions + N * product.a, *fb = functions + N * product.b;
        R ab[P], q[P];
#pragma GCC unroll 16
        for (int l = 0; l < P; ++l) {
            ab[l] = fa[l] * fb[l];
            q[l] = R{};
        }
        for_thirds([&](SnapThird third) MALAX_INLINE_LAMBDA {
            const R b = beta[third.feature], *fc = functions + N * third.c;
            R *hc = slopes + N * third.c;
#pragma GCC unroll 16
            for (int l = 0; l < P; ++l) q[l] = fused(b, fc[l], q[l]);
#pragma GCC unroll 16
            for (int l = 0; l < P; ++l) hc[l] = fused(b, ab[l], hc[l]);
        });
        R *ha = slopes + N * product.a, *hb = slopes + N * product.b;
#pragma GCC unroll 16
        for (int l = 0; l < P; ++l) ha[l] = fused(q[l], fb[l], ha[l]);
#pragma GCC unroll 16
        for (int l = 0; l < P; ++l) hb[l] = fused(q[l], fa[l], hb[l]);
        snap_forget();
    });
}

// out[feature] += the change of the sum over P of N angles of f_a f_b f_c, with changes[a] that of f_a.
template <int J, int N, int P, class R>
MALAX_HD void snap_products_change(const SnapCouplings &couplings, const R *functions, const R *changes, R *out) {
    snap_each_product<J>(couplings, [&](SnapProduct product, const auto &for_thirds) MALAX_INLINE_LAMBDA {
        const R *fa = functions + N * product.a, *fb = functions + N * product.b;
        const R *da = changes + N * product.a, *db = changes + N * product.b;
        R ab[P], change[P];
#pragma GCC unroll 16
        for (int l = 0; l < P; ++l) {
            ab[l] = fa[l] * fb[l];
            change[l] = fused(da[l], fb[l], fa[l] * db[l]);
        }
        for_thirds([&](SnapThird third) MALAX_INLINE_LAMBDA {
            const R *fc = functions + N * third.c, *dc = changes + N * third.c;
            R first = change[0] * fc[0], second = ab[0] * dc[0];
#pragma GCC unroll 16
            for (int l = 1; l < P; ++l) {
                first = fused(change[l], fc[l], first);
                second = fused(ab[l], dc[l], second);
            }
            out[third.feature] += first + second;
        });
        snap_forget();
    });
}

// B_{j 0 j} = U_0 sum |U_j|^2 of snap_squares. visit(j, x, weight) is called for each value x, an offset in the layers,
// and what its square is multiplied with in the sum of layer j.
template <class T, class F>
MALAX_HD void snap_each_square(int twojmax, const F &visit) {
    int x = 0;
    for (int j = 0; j <= twojmax; ++j) {
        for (int i = 0; i <= j / 2; ++i) {
            const T row = j % 2 == 0 && i == 0 ? T(0.5) : T(1);
            for (int k = 0; k < 2 * (j + 1); ++k) visit(j, x++, j % 2 == 0 && k < 2 ? row * 2 : row);
        }
    }
}

// slopes += dE/d(layers) of E = sum over j of beta[B_{j 0 j}] U_0 sum |U_j|^2 / (j + 1)
template <class R, class T>
MALAX_HD void snap_squares_transposed(const SnapTablesView<T> &t, const R *beta, const R *layers, R *slopes) {
    const R constant = layers[0];
    R sum = constant - constant;
    snap_each_square<T>(t.twojmax, [&](int j, int x, T weight) MALAX_INLINE_LAMBDA {
        const R b = beta[t.couplings->squares[j]] * (weight / T(j + 1)), bx = b * layers[x];
        sum = fused(bx, layers[x], sum);
        slopes[x] = fused(bx + bx, constant, slopes[x]);
    });
    slopes[0] += sum;
}

// out += the change of B_{j 0 j} / (j + 1)
template <class R, class T>
MALAX_HD void snap_squares_change(const SnapTablesView<T> &t, const R *layers, const R *changes, R *out) {
    const R constant = layers[0], twice = constant + constant, change = changes[0];
    snap_each_square<T>(t.twojmax, [&](int j, int x, T weight) MALAX_INLINE_LAMBDA {
        const R slope = fused(change, layers[x], twice * changes[x]) * (weight / T(j + 1));
        R &to = out[t.couplings->squares[j]];
        to = fused(slope, layers[x], to);
    });
}

// dE/df_j at one point of the sphere, h[2 H], -> dE/dg of its N rows, g[row][re, im]; see snap_function.
template <int N, int H, int G, class R, class T>
MALAX_HD void snap_function_transposed(const T *cosines, const T *sines, const R *h, R *g) {
#pragma GCC unroll 16
    for (int first = 0; first < H; first += G) {
        R even[G], odd[G];
#pragma GCC unroll 16
        for (int l = 0; l < G; ++l) {
            if (first + l >= H) continue;
            even[l] = h[first + l] + h[2 * H - 1 - first - l];
            odd[l] = h[2 * H - 1 - first - l] - h[first + l];
        }
#pragma GCC unroll 8
        for (int i = 0; i < N; ++i) {
            const T *cosine = cosines + 2 * H * i + first, *sine = sines + 2 * H * i + first;
            R re = even[0] * cosine[0], im = odd[0] * sine[0];
#pragma GCC unroll 16
            for (int l = 1; l < G; ++l) {
                if (first + l >= H) continue;
                re = fused(even[l], cosine[l], re);
                im = fused(odd[l], sine[l], im);
            }
            g[2 * i] = first == 0 ? re : g[2 * i] + re;
            g[2 * i + 1] = first == 0 ? im : g[2 * i + 1] + im;
        }
    }
}

// slopes: dE/df_j [j][2 H] -> rows: dE/dg [row][re, im]
template <int H, int G, class R, class T>
MALAX_HD void snap_functions_transposed(const SnapTablesView<T> &t, const R *slopes, R *rows) {
    constexpr int LARGEST = (4 * H - 1) / 3;  // twojmax that has H angles
    for_constants<0, LARGEST + 1>(t.twojmax + 1, [&](auto j) MALAX_INLINE_LAMBDA {
        constexpr int L = decltype(j)::value, N = L / 2 + 1;
        snap_function_transposed<N, H, G>(t.cosines + (L & 1) * H, t.sines + (L & 1) * H, slopes + 2 * H * L, rows);
        rows += 2 * N;
    });
}

// dE/dg of one row at the four points of a base -> added to dE/d(the row's elements), x; see snap_sphere_row.
template <int PAIRS, bool EVEN, class R, class T>
MALAX_HD void snap_sphere_row_transposed(const R *g, const T *c, T sign, int next, R *x) {
    const R *g1 = g + next, *g2 = g1 + next, *g3 = g2 + next;
    const R ur = g[0] + g1[0], ui = g[1] + g1[1], vr = g1[1] - g[1], vi = g[0] - g1[0];
    const R wr = (g2[0] + g3[0]) * sign, wi = (g2[1] + g3[1]) * sign;
    const R zr = (g3[1] - g2[1]) * sign, zi = (g2[0] - g3[0]) * sign;
    const R sr = ur + wr, si = ui + wi, dr = ur - wr, di = ui - wi;
    const R er = vr + zr, ei = vi + zi, fr = vr - zr, fi = vi - zi;
    if (EVEN) {
        x[0] = fused(sr, c[0], x[0]);
        x[1] = fused(si, c[0], x[1]);
        x += 2;
        c += 1;
    }
#pragma GCC unroll 8
    for (int m = 0; m < PAIRS; ++m, x += 4, c += 4) {
        x[0] = fused(fr, c[3], fused(sr, c[0], x[0]));
        x[1] = fused(fi, c[3], fused(si, c[0], x[1]));
        x[2] = fused(er, c[2], fused(dr, c[1], x[2]));
        x[3] = fused(ei, c[2], fused(di, c[1], x[3]));
    }
}

// rows: dE/dg [point][row][re, im] -> added to slopes = dE/d(layers)
template <class R, class T>
MALAX_HD void snap_sphere_transposed(const SnapTablesView<T> &t, const T *c, const R *rows, R *slopes) {
    const T *sign = t.signs;
    for_constants<0, SNAP_LARGEST + 1>(t.twojmax + 1, [&](auto j) MALAX_INLINE_LAMBDA {
        constexpr int L = decltype(j)::value, PAIRS = (L + 1) / 2;
        constexpr bool EVEN = L % 2 == 0;
        for (int i = 0; i <= L / 2; ++i) {
            snap_sphere_row_transposed<PAIRS, EVEN>(rows, c, *sign, 2 * t.n_rows, slopes);
            slopes += 2 * (L + 1);
            c += EVEN + 4 * PAIRS;
            sign += 1;
            rows += 2;
        }
    });
}

// ---- sums over neighbours ---------------------------------------------------------------------------------

// sums[i stride] += radial[i] element, i = 0 .. n
template <class R, class T>
MALAX_HD void snap_element_transposed(const R &re, const R &im, const T *radial, int n, int stride, R *sums) {
    for (int i = 0; i <= n; ++i) {
        sums[i * stride] = fused(re, radial[i], sums[i * stride]);
        sums[i * stride + 1] = fused(im, radial[i], sums[i * stride + 1]);
    }
}

// dE/dU -> added to dE/d(sums over neighbours). slopes: as the layers, but with the derivatives with respect to c+ and
// c- in the places of c+ + c- and c+ - c-.
template <class R, class T>
MALAX_HD void snap_layers_transposed(const SnapTablesView<T> &t, const R *slopes, R *sums) {
    for (int i = 0; i < t.n_elements; ++i) {
        const SnapElement &e = t.elements[i];
        const R *x = slopes + e.target;
        if (e.kind == SNAP_MIRRORED) {
            const R re = e.odd ? x[2] - x[0] : x[2] + x[0], im = e.odd ? x[3] + x[1] : x[3] - x[1];
            snap_element_transposed(re, im, t.radial + e.second_radial, e.n, e.second_stride, sums + e.second);
            continue;
        }
        snap_element_transposed(x[0], x[1], t.radial + e.first_radial, e.n, e.first_stride, sums + e.first);
        if (e.kind == SNAP_SINGLE) continue;
        snap_element_transposed(x[2], x[3], t.radial + e.second_radial, e.n, e.second_stride, sums + e.second);
    }
}

MALAX_NAMESPACE_END
