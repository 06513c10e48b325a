// Energy sums and point sums of one block of points of an LDOS. Compiled once per ISA level; see common.h
// for what that forbids.
#include "formulas/moments.h"

MALAX_NAMESPACE_BEGIN

namespace {

template <class T>
inline double moment(const T *row, const double *weights, int64_t n_energies) {
    // as many lanes at every ISA level, so that the order of summation is the same on all of them
    double lane[MOMENT_LANES] = {};
    int64_t e = 0;
    for (; e + MOMENT_LANES <= n_energies; e += MOMENT_LANES) {
        for (int l = 0; l < MOMENT_LANES; ++l) lane[l] = moment_step(lane[l], double(row[e + l]), weights[e + l]);
    }
    for (int l = 0; e + l < n_energies; ++l) lane[l] = moment_step(lane[l], double(row[e + l]), weights[e + l]);
    return moment_join(lane);
}

template <class T>
inline void moments_block(int64_t n_points, int64_t n_energies, int64_t n_weights, const T *ldos,
                          const double *weights, double *values, double *sums) {
    for (int64_t e = 0; e < n_energies; ++e) sums[e] = 0;
    for (int64_t p = 0; p < n_points; ++p) {
        const T *row = ldos + p * n_energies;
        for (int64_t e = 0; e < n_energies; ++e) sums[e] += double(row[e]);
        for (int64_t k = 0; k < n_weights; ++k) {
            values[p * n_weights + k] = moment(row, weights + k * n_energies, n_energies);
        }
    }
}

}  // namespace

void moments_block_f32(int64_t, int64_t, int64_t, const float *, const double *, double *, double *);
void moments_block_f64(int64_t, int64_t, int64_t, const double *, const double *, double *, double *);

void moments_block_f32(int64_t n_points, int64_t n_energies, int64_t n_weights, const float *ldos,
                       const double *weights, double *values, double *sums) {
    moments_block(n_points, n_energies, n_weights, ldos, weights, values, sums);
}

void moments_block_f64(int64_t n_points, int64_t n_energies, int64_t n_weights, const double *ldos,
                       const double *weights, double *values, double *sums) {
    moments_block(n_points, n_energies, n_weights, ldos, weights, values, sums);
}

MALAX_NAMESPACE_END
