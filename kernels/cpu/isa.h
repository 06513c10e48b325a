// The inner loops of each ISA level, and the choice of one when the program runs.
#pragma once

#include <cstdint>

#include "formulas/gaussian_types.h"
#include "formulas/moments.h"
#include "formulas/network_types.h"
#include "formulas/snap_adjoint_types.h"
#include "formulas/snap_types.h"

namespace malax {

#define MALAX_DECLARE_LEVEL(level)                                                                     \
    namespace level {                                                                                  \
    extern const int lanes_f32, lanes_f64;                                                             \
    void snap_block_f32(const SnapBlock<float> &block);                                                \
    void snap_block_f64(const SnapBlock<double> &block);                                               \
    void snap_adjoint_block_f32(const SnapAdjointBlock<float> &block);                                 \
    void snap_adjoint_block_f64(const SnapAdjointBlock<double> &block);                                \
    void snap_jvp_block_f32(const SnapJvpBlock<float> &block);                                         \
    void snap_jvp_block_f64(const SnapJvpBlock<double> &block);                                        \
    void moments_block_f32(int64_t n_points, int64_t n_energies, int64_t n_weights, const float *ldos, \
                           const double *weights, double *values, double *sums);                       \
    void moments_block_f64(int64_t n_points, int64_t n_energies, int64_t n_weights, const double *ldos, \
                           const double *weights, double *values, double *sums);                       \
    void network_block_f32(const NetworkBlock<float> &block);                                          \
    void network_block_f64(const NetworkBlock<double> &block);                                         \
    void gaussian_block_f32(const GaussianBlock<float> &block);                                        \
    void gaussian_block_f64(const GaussianBlock<double> &block);                                       \
    void gaussian_block_adjoint_f32(const GaussianBlock<float> &block);                                \
    void gaussian_block_adjoint_f64(const GaussianBlock<double> &block);                               \
    void gaussian_tile_f32(const GaussianTile<float> &tile);                                           \
    void gaussian_tile_f64(const GaussianTile<double> &tile);                                          \
    void gaussian_tile_adjoint_f32(const GaussianTile<float> &tile);                                   \
    void gaussian_tile_adjoint_f64(const GaussianTile<double> &tile);                                  \
    }

MALAX_DECLARE_LEVEL(baseline)
MALAX_DECLARE_LEVEL(v3)
MALAX_DECLARE_LEVEL(v4)

template <class T>
using SnapBlockFunction = void (*)(const SnapBlock<T> &);
template <class T>
using SnapAdjointFunction = void (*)(const SnapAdjointBlock<T> &);
template <class T>
using SnapJvpFunction = void (*)(const SnapJvpBlock<T> &);
// One block of at most MOMENTS_BLOCK points; `sums` is overwritten with the block's.
template <class T>
using MomentsBlockFunction = void (*)(int64_t, int64_t, int64_t, const T *, const double *, double *, double *);

template <class T>
using NetworkBlockFunction = void (*)(const NetworkBlock<T> &);
template <class T>
using GaussianBlockFunction = void (*)(const GaussianBlock<T> &);
template <class T>
using GaussianTileFunction = void (*)(const GaussianTile<T> &);

template <class T>
struct IsaFunctions {
    int lanes;  // of a SIMD vector, and points per block of the bispectrum
    SnapBlockFunction<T> snap_block;
    MomentsBlockFunction<T> moments_block;
    SnapAdjointFunction<T> snap_adjoint_block;
    SnapJvpFunction<T> snap_jvp_block;
    GaussianBlockFunction<T> gaussian_block, gaussian_block_adjoint;
    GaussianTileFunction<T> gaussian_tile, gaussian_tile_adjoint;
    NetworkBlockFunction<T> network_block;
};

struct IsaLevel {
    const char *name;
    bool (*runs_here)();
    IsaFunctions<float> f32;
    IsaFunctions<double> f64;

    template <class T>
    const IsaFunctions<T> &functions() const;
};

#ifdef MALAX_HAVE_BF16
namespace v4_bf16 {
void network_block_bf16(const NetworkBlock<float> &block);
}
#endif

// Networks whose hidden layers multiply bfloat16 numbers, at the current level; throws Error(MALAX_ISA_UNAVAILABLE) if
// it or the machine has no such products.
NetworkBlockFunction<float> bfloat16_network_block();

// The best level that runs here, or the one named by MALAX_ISA; throws Error(MALAX_ISA_UNAVAILABLE).
const IsaLevel &current_isa();

}  // namespace malax
