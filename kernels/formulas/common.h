// What every formula header needs: the host/device mark and the namespace of one ISA level.
//
// The objects of one ISA level hold everything in a namespace of that level's name. Without it the
// linker would keep one copy of each inline function, perhaps one with instructions that the machine
// does not have. For the same reason formula headers and per-level sources use no std:: templates.
#pragma once

#ifdef __CUDACC__
#define MALAX_HD __host__ __device__ __forceinline__
#else
#define MALAX_HD inline __attribute__((always_inline))
#endif

#ifndef MALAX_ISA
#define MALAX_ISA portable
#endif

// Sums of products are written fused(x, y, z) = x y + z, one rounding where the machine can; the kernels that
// use it are compiled without contraction. Left to the compiler, which products are fused may differ
// between copies of the same line, and a result would depend on where in a block its point lies.
#define MALAX_NAMESPACE_BEGIN namespace malax { namespace MALAX_ISA {
#define MALAX_NAMESPACE_END } }

MALAX_NAMESPACE_BEGIN

#if defined(__CUDACC__) || defined(__FMA__) || defined(__aarch64__)
MALAX_HD float fused(float x, float y, float z) { return __builtin_fmaf(x, y, z); }
MALAX_HD double fused(double x, double y, double z) { return __builtin_fma(x, y, z); }
#else
MALAX_HD float fused(float x, float y, float z) { return x * y + z; }
MALAX_HD double fused(double x, double y, double z) { return x * y + z; }
#endif

MALAX_NAMESPACE_END
