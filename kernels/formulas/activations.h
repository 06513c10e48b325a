// What stands between the layers of a network; R is a SIMD vector or a number, T its scalar type.
//
// `exp_negative<T>(x)` is exp(x) for x <= 0 and comes from the host's simd_exp.h or the device's intrinsics. All of
// them give NaN for NaN.
#pragma once

#include "common.h"
#include "network_types.h"

MALAX_NAMESPACE_BEGIN

// x / (1 + exp(-x)), by the exponential of a number that is not positive
template <class T, class R>
MALAX_HD R silu(R x) {
    const R e = exp_negative<T>(x < T(0) ? x : -x);
    return x * (x < T(0) ? e : T(1) + R()) / (T(1) + e);
}

template <class T, class R>
MALAX_HD R hyperbolic_tangent(R x) {
    const R e = exp_negative<T>(x < T(0) ? T(2) * x : T(-2) * x);
    const R t = (T(1) - e) / (T(1) + e);
    return x < T(0) ? -t : t;
}

// erfc(z) exp(z^2) for z >= 0: t times a Chebyshev series in 2 t - 1, t = 1 / (1 + z / 3), interpolated at Chebyshev
// points. Error of the formula: 1e-8 (float) and 1e-17 (double) of 1, largest at z = 0.
template <class T, class R>
MALAX_HD R erfcx(R z) {
    constexpr T series[] = {
        T(0.471146074660290654), T(0.377158949691565793), T(0.118036033447495454), T(0.0283623466996951515),
        T(0.00487175775760554639), T(0.000459852387876544279), T(-0.0000214302223810531519), T(-0.0000130144736992413488),
        T(-8.80928358285351363e-7), T(2.74648004797028445e-7), T(4.4159918992237855e-8), T(-6.39840838557548282e-9),
        T(-1.67683572124846383e-9), T(1.94733547008898263e-10), T(6.24744130346903468e-11), T(-8.12455755220345435e-12),
        T(-2.33031461327852949e-12), T(4.19103853406816264e-13), T(8.19333549713193803e-14), T(-2.33524693218628345e-14),
        T(-2.24430461611125829e-15), T(1.2812072564860187e-15), T(1.77369497605171634e-18), T(-6.71375019099152192e-17)};
    constexpr int n = sizeof(T) == 4 ? 13 : 24;
    const R t = T(1) / (T(1) + z * T(1.0 / 3));
    const R x = T(2) * t - T(1), twice = x + x;
    R b1 = R(), b2 = R();
    for (int k = n - 1; k > 0; --k) {  // Clenshaw
        const R b = series[k] + twice * b1 - b2;
        b2 = b1;
        b1 = b;
    }
    return t * (series[0] + x * b1 - b2);
}

// x Phi(x) with the normal distribution Phi, not its approximation by tanh
template <class T, class R>
MALAX_HD R gelu(R x) {
    const R z = (x < T(0) ? -x : x) * T(0.70710678118654752440);
    const R tail = T(0.5) * exp_negative<T>(-z * z) * erfcx<T>(z);
    return x * (x < T(0) ? tail : T(1) - tail);
}

template <int ACTIVATION, class T, class R>
MALAX_HD R activated(R x) {
    if constexpr (ACTIVATION == RELU) return x < T(0) ? R() : x;
    if constexpr (ACTIVATION == LEAKY_RELU) return x < T(0) ? T(LEAKY_SLOPE) * x : x;
    if constexpr (ACTIVATION == SILU) return silu<T>(x);
    if constexpr (ACTIVATION == GELU) return gelu<T>(x);
    if constexpr (ACTIVATION == TANH) return hyperbolic_tangent<T>(x);
    return x;
}

MALAX_NAMESPACE_END
