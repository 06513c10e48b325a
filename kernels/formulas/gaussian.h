// Sums of normalised Gaussians over atoms: maths shared by host and device.
//
// value(r) = weight sum_i exp(-|r - r_i|^2 / 2 sigma^2) / (sigma sqrt(2 pi))^3 over the atoms and images with
// |r - r_i| < cutoff; R is a real number or a SIMD vector of them, T its scalar type. A pair adds, for
// d = r - r_i, value v and g = dE/dvalue, to dE/dr_i the vector 2 alpha g v d and to the derivative with respect
// to a homogeneous strain the matrix -2 alpha g v d d^T. The moments of an image are the sums over points of
// g v times (d1, d2, d3, d1 d1, d1 d2, d1 d3, d2 d2, d2 d3, d3 d3).
#pragma once

#include "common.h"
#include "gaussian_types.h"

MALAX_NAMESPACE_BEGIN

// exp(r) for |r| <= ln(2) / 2: 1 + r + r^2 p(r), where p interpolates (e^r - 1 - r) / r^2 at Chebyshev points.
// Error of the formula: 1.0e-8 in float, 1.7e-17 in double (relative); rounding comes on top.
template <class T, class R>
MALAX_HD R exp_reduced(R r) {
    R p;
    if (sizeof(T) == 4) {
        p = T(1.3926213466332443037e-3) + R();
        p = T(8.3632029715758549465e-3) + r * p;
        p = T(4.1666554437685938899e-2) + r * p;
        p = T(1.6666576845993976311e-1) + r * p;
        p = T(0.5) + r * p;
    } else {
        p = T(2.5100424157005066788e-8) + R();
        p = T(2.7620138719733995569e-7) + r * p;
        p = T(2.7557268378684192873e-6) + r * p;
        p = T(2.4801521190217227651e-5) + r * p;
        p = T(1.9841269863105968748e-4) + r * p;
        p = T(1.3888888917281793308e-3) + r * p;
        p = T(8.3333333333300513464e-3) + r * p;
        p = T(4.1666666666623991516e-2) + r * p;
        p = T(1.6666666666666667456e-1) + r * p;
        p = T(0.50000000000000010262) + r * p;
    }
    return T(1) + (r + r * r * p);
}

MALAX_NAMESPACE_END
