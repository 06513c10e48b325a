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

#define MALAX_NAMESPACE_BEGIN namespace malax { namespace MALAX_ISA {
#define MALAX_NAMESPACE_END } }
