// The bispectrum, first step: the rotation of SU(2) that stands for a neighbour; host and device alike.
//
// Conventions: A. P. Thompson et al., J. Comput. Phys. 285, 316 (2015), as LAMMPS has them. What follows is in
// snap_expansion.h (sums over neighbours, layers of U) and snap_quadrature.h (invariants).
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
        p = fused(s, p, T(-1.0 / 121645100408832000.0));
        p = fused(s, p, T(1.0 / 355687428096000.0));
        p = fused(s, p, T(-1.0 / 1307674368000.0));
        p = fused(s, p, T(1.0 / 6227020800.0));
        p = fused(s, p, T(-1.0 / 39916800.0));
    }
    p = fused(s, p, T(1.0 / 362880));
    p = fused(s, p, T(-1.0 / 5040));
    p = fused(s, p, T(1.0 / 120));
    p = fused(s, p, T(-1.0 / 6));
    return fused(x * s, p, x);
}

template <class T>
MALAX_HD T cos_poly(T x) {
    const T s = x * x;
    T p;
    if (sizeof(T) == 4) {
        p = T(1.0 / 479001600);
    } else {
        p = T(-1.0 / 1124000727777607680000.0);
        p = fused(s, p, T(1.0 / 2432902008176640000.0));
        p = fused(s, p, T(-1.0 / 6402373705728000.0));
        p = fused(s, p, T(1.0 / 20922789888000.0));
        p = fused(s, p, T(-1.0 / 87178291200.0));
        p = fused(s, p, T(1.0 / 479001600.0));
    }
    p = fused(s, p, T(-1.0 / 3628800));
    p = fused(s, p, T(1.0 / 40320));
    p = fused(s, p, T(-1.0 / 720));
    p = fused(s, p, T(1.0 / 24));
    p = fused(s, p, T(-0.5));
    return fused(s, p, T(1));
}

// Where a neighbour at distance (dx, dy, dz) stands, in double: the two angles and what multiplies them.
// Outside 1e-10 A < r < cutoff the weight is zero and everything else finite.
struct SnapDistance {
    double theta, fade, inverse_r, weight;
};

MALAX_HD SnapDistance snap_distance(double dx, double dy, double dz, double weight, const SnapConstants &c) {
    const double pi = 3.14159265358979323846;
    const double rsq = fused(dx, dx, fused(dy, dy, dz * dz));
    const bool inside = (rsq < c.cutoff_squared) & (rsq > 1e-20);
    const double r = __builtin_sqrt(inside ? rsq : c.cutoff_squared);
    const double above = r - c.rmin0;
    // modulo pi is enough: snap_rotation drops a common sign of sine and cosine. Adding and subtracting
    // 1.5 * 2^52 rounds to the nearest integer in any SIMD level.
    const double magic = 6755399441055744.0;
    const double turns = fused(above, c.theta_scale * (1 / pi), magic) - magic;
    SnapDistance d;
    d.theta = fused(turns, -pi, above * c.theta_scale);
    d.fade = above > 0 ? above * c.fade_scale : 0.0;
    d.inverse_r = inside ? 1 / r : 0.0;  // far outside, powers of the rotation might overflow
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

MALAX_NAMESPACE_END
