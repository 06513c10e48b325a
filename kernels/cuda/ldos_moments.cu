// Sums over an LDOS on the GPU, in the order of summation of the CPU (formulas/moments.h).
#include <cuda_runtime.h>

#include <cstdio>

#include "formulas/moments.h"
#include "malax_kernels.h"

namespace {

using namespace malax;
using namespace malax::portable;

constexpr int THREADS = 256;
constexpr int LANE_MASK = MOMENT_LANES - 1;

thread_local char last_error[512] = "";

int fail(malax_status status, const char *message) {
    std::snprintf(last_error, sizeof last_error, "%s", message);
    return status;
}

// MOMENT_LANES neighbouring threads share one point; all weights in turn, so that its row is read from
// DRAM once.
template <class T>
__global__ void point_values(int64_t n_points, int64_t n_energies, int64_t n_weights, const T *ldos,
                             const double *weights, double *values) {
    const int lane = threadIdx.x & LANE_MASK;
    const int64_t stride = int64_t(gridDim.x) * (blockDim.x / MOMENT_LANES);
    const int64_t first = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / MOMENT_LANES;
    // all threads of a warp take every turn, since they exchange sums
    const int64_t turns = (n_points + stride - 1) / stride;
    for (int64_t turn = 0; turn < turns; ++turn) {
        const int64_t p = first + turn * stride;
        for (int64_t k = 0; k < n_weights; ++k) {
            double sum = 0;
            if (p < n_points) {
                const T *row = ldos + p * n_energies;
                for (int64_t e = lane; e < n_energies; e += MOMENT_LANES) {
                    sum = moment_step(sum, double(row[e]), weights[k * n_energies + e]);
                }
            }
            // the tree of moment_join: 4 apart, then 2, then 1
            for (int apart = MOMENT_LANES / 2; apart > 0; apart /= 2) {
                sum += __shfl_down_sync(0xffffffffu, sum, apart, MOMENT_LANES);
            }
            if (p < n_points && lane == 0) values[p * n_weights + k] = sum;
        }
    }
}

// partial[b, e]: the sum over block b of points.
template <class T>
__global__ void block_sums(int64_t n_points, int64_t n_energies, const T *ldos, double *partial) {
    const int64_t b = blockIdx.x, first = b * MOMENTS_BLOCK;
    const int64_t last = first + MOMENTS_BLOCK < n_points ? first + MOMENTS_BLOCK : n_points;
    for (int64_t e = threadIdx.x; e < n_energies; e += blockDim.x) {
        partial[b * n_energies + e] = moment_column(ldos, n_energies, e, first, last);
    }
}

__global__ void join_sums(int64_t n_blocks, int64_t n_energies, const double *partial, double *sums) {
    const int64_t e = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (e < n_energies) sums[e] = moment_column(partial, n_energies, e, 0, n_blocks);
}

int64_t block_count(int64_t n_points) { return (n_points + MOMENTS_BLOCK - 1) / MOMENTS_BLOCK; }

template <class T>
int moments(int64_t n_points, int64_t n_energies, int64_t n_weights, const T *ldos, const double *weights,
            void *workspace, double *values, double *sums, void *stream_) {
    if (n_points < 0 || n_energies < 0 || n_weights < 0) return fail(MALAX_INVALID_ARGUMENT, "a negative size");
    if (block_count(n_points) > 2147483647) return fail(MALAX_INVALID_ARGUMENT, "too many points for one call");
    const cudaStream_t stream = static_cast<cudaStream_t>(stream_);
    double *partial = static_cast<double *>(workspace);
    if (n_points > 0 && n_weights > 0) {
        const int64_t wanted = (n_points * MOMENT_LANES + THREADS - 1) / THREADS;
        const int grid = int(wanted < 65536 ? wanted : 65536);
        point_values<<<grid, THREADS, 0, stream>>>(n_points, n_energies, n_weights, ldos, weights, values);
    }
    if (n_energies > 0) {
        const int64_t blocks = block_count(n_points);
        if (blocks > 0) block_sums<<<int(blocks), THREADS, 0, stream>>>(n_points, n_energies, ldos, partial);
        join_sums<<<int((n_energies + THREADS - 1) / THREADS), THREADS, 0, stream>>>(blocks, n_energies, partial, sums);
    }
    const cudaError_t status = cudaGetLastError();
    return status == cudaSuccess ? MALAX_OK : fail(MALAX_CUDA_ERROR, cudaGetErrorString(status));
}

}  // namespace

int64_t malax_cuda_ldos_moments_workspace(int64_t n_points, int64_t n_energies) {
    return block_count(n_points) * n_energies * int64_t(sizeof(double));
}

int malax_cuda_ldos_moments_f64(int64_t n_points, int64_t n_energies, int64_t n_weights, const double *ldos,
                                const double *weights, void *workspace, double *values, double *sums, void *stream) {
    return moments(n_points, n_energies, n_weights, ldos, weights, workspace, values, sums, stream);
}

int malax_cuda_ldos_moments_f32(int64_t n_points, int64_t n_energies, int64_t n_weights, const float *ldos,
                                const double *weights, void *workspace, double *values, double *sums, void *stream) {
    return moments(n_points, n_energies, n_weights, ldos, weights, workspace, values, sums, stream);
}

int malax_cuda_abi_version(void) { return MALAX_ABI_VERSION; }

int malax_cuda_device_count(void) {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess) {
        cudaGetLastError();  // a machine without a driver is no error of a later call
        return 0;
    }
    return count;
}

const char *malax_cuda_last_error(void) { return last_error; }
