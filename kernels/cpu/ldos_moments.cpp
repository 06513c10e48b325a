// Sums over an LDOS on the CPU.
#include <algorithm>
#include <vector>

#include "api.h"
#include "isa.h"
#include "threads.h"

namespace malax {

namespace {

constexpr int64_t WINDOW = 64;  // blocks whose partial sums are held at a time (per thread)

template <class T>
void moments(int64_t n_points, int64_t n_energies, int64_t n_weights, const T *ldos, const double *weights,
             int threads, double *values, double *sums) {
    require(n_points >= 0 && n_energies >= 0 && n_weights >= 0, "a negative size");
    require(n_energies == 0 || sums, "null pointer");
    require(n_points == 0 || n_energies == 0 || ldos, "null pointer");
    require(n_weights == 0 || ((weights || n_energies == 0) && (values || n_points == 0)), "null pointer");
    const MomentsBlockFunction<T> block = current_isa().functions<T>().moments_block;
    const int64_t blocks = (n_points + MOMENTS_BLOCK - 1) / MOMENTS_BLOCK;
    const int64_t window = std::min(blocks, WINDOW * threads);
    std::vector<double> partial(size_t(window) * n_energies);
    std::fill(sums, sums + n_energies, 0.0);
    for (int64_t start = 0; start < blocks; start += window) {
        const int64_t end = std::min(blocks, start + window);
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(static)
#endif
        for (int64_t b = start; b < end; ++b) {
            const int64_t first = b * MOMENTS_BLOCK, n = std::min(MOMENTS_BLOCK, n_points - first);
            block(n, n_energies, n_weights, ldos + first * n_energies, weights, values + first * n_weights,
                  partial.data() + (b - start) * n_energies);
        }
        for (int64_t b = start; b < end; ++b) {
            for (int64_t e = 0; e < n_energies; ++e) sums[e] += partial[(b - start) * n_energies + e];
        }
    }
}

}  // namespace

}  // namespace malax

int malax_ldos_moments_f64(int64_t n_points, int64_t n_energies, int64_t n_weights, const double *ldos,
                           const double *weights, int32_t threads, double *values, double *sums) {
    return malax::guarded([&] {
        malax::moments(n_points, n_energies, n_weights, ldos, weights, malax::thread_count(threads), values, sums);
    });
}

int malax_ldos_moments_f32(int64_t n_points, int64_t n_energies, int64_t n_weights, const float *ldos,
                           const double *weights, int32_t threads, double *values, double *sums) {
    return malax::guarded([&] {
        malax::moments(n_points, n_energies, n_weights, ldos, weights, malax::thread_count(threads), values, sums);
    });
}
