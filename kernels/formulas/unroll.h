// Loops whose index is a constant for the compiler: straight code, whose branches the processor need not predict.
#pragma once

#include <utility>

#include "common.h"

MALAX_NAMESPACE_BEGIN

#ifdef __CUDACC__
#define MALAX_INLINE_LAMBDA
#else
#define MALAX_INLINE_LAMBDA __attribute__((always_inline))
#endif

template <int I>
struct Constant {
    static constexpr int value = I;
};

// Folds, not recursion: compilers take minutes to inline a hundred calls in one another.
template <int FIRST, class F, int... I>
MALAX_HD void unrolled_over(const F &body, std::integer_sequence<int, I...>) {
    (body(Constant<FIRST + I>()), ...);
}

template <int FIRST, class F, int... I>
MALAX_HD void as_constant_of(int i, const F &body, std::integer_sequence<int, I...>) {
    ((i == FIRST + I && (body(Constant<FIRST + I>()), true)) || ...);
}

// body(Constant<FIRST>), ..., body(Constant<LAST - 1>)
template <int FIRST, int LAST, class F>
MALAX_HD void unrolled(const F &body) {
    if constexpr (FIRST < LAST) unrolled_over<FIRST>(body, std::make_integer_sequence<int, LAST - FIRST>());
}

// body(Constant<i>) for an i that is known only when the program runs, FIRST <= i < LAST
template <int FIRST, int LAST, class F>
MALAX_HD void as_constant(int i, const F &body) {
    as_constant_of<FIRST>(i, body, std::make_integer_sequence<int, LAST - FIRST>());
}

// body(Constant<0>), ..., body(Constant<n - 1>): unrolled where N, which is n or 0, is n; else n <= MOST
template <int N, int MOST, class F>
MALAX_HD void for_constants(int n, const F &body) {
    if constexpr (N > 0) {
        unrolled<0, N>(body);
    } else {
        for (int i = 0; i < n; ++i) as_constant<0, MOST>(i, body);
    }
}

MALAX_NAMESPACE_END
