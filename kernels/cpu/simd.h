// The SIMD vector of the ISA level that is being compiled.
#pragma once

#include "formulas/common.h"

#if defined(__AVX__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define MALAX_NOINLINE __attribute__((noinline))

MALAX_NAMESPACE_BEGIN

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64, VECTOR_REGISTERS = 32;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32, VECTOR_REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int VECTOR_BYTES = 16, VECTOR_REGISTERS = 32;
#else
constexpr int VECTOR_BYTES = 16, VECTOR_REGISTERS = 16;
#endif

template <class T>
struct Simd {
    static constexpr int lanes = VECTOR_BYTES / sizeof(T);
    typedef T type __attribute__((vector_size(VECTOR_BYTES)));
};

typedef Simd<float>::type Float;
typedef Simd<double>::type Double;

#if defined(__AVX512F__)
MALAX_HD Float fused(Float x, Float y, Float z) { return (Float)_mm512_fmadd_ps((__m512)x, (__m512)y, (__m512)z); }
MALAX_HD Double fused(Double x, Double y, Double z) {
    return (Double)_mm512_fmadd_pd((__m512d)x, (__m512d)y, (__m512d)z);
}
#elif defined(__FMA__)
MALAX_HD Float fused(Float x, Float y, Float z) { return (Float)_mm256_fmadd_ps((__m256)x, (__m256)y, (__m256)z); }
MALAX_HD Double fused(Double x, Double y, Double z) {
    return (Double)_mm256_fmadd_pd((__m256d)x, (__m256d)y, (__m256d)z);
}
#elif defined(__aarch64__)
MALAX_HD Float fused(Float x, Float y, Float z) {
    return (Float)vfmaq_f32((float32x4_t)z, (float32x4_t)x, (float32x4_t)y);
}
MALAX_HD Double fused(Double x, Double y, Double z) {
    return (Double)vfmaq_f64((float64x2_t)z, (float64x2_t)x, (float64x2_t)y);
}
#else
MALAX_HD Float fused(Float x, Float y, Float z) { return x * y + z; }
MALAX_HD Double fused(Double x, Double y, Double z) { return x * y + z; }
#endif

// the same with one number for all lanes
MALAX_HD Float fused(Float x, float y, Float z) { return fused(x, y - Float{}, z); }
MALAX_HD Double fused(Double x, double y, Double z) { return fused(x, y - Double{}, z); }

MALAX_NAMESPACE_END
