// The SIMD vector of the ISA level that is being compiled.
#pragma once

#include "formulas/common.h"

MALAX_NAMESPACE_BEGIN

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
#endif

template <class T>
struct Simd {
    static constexpr int lanes = VECTOR_BYTES / sizeof(T);
    typedef T type __attribute__((vector_size(VECTOR_BYTES)));
};

MALAX_NAMESPACE_END
