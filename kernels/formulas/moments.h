// Sums over energies and over points of an LDOS: what host and device share, which is the order of summation.
//
// Over energies: lane l of MOMENT_LANES adds e = l, l + MOMENT_LANES, ...; the lanes are joined pairwise.
// Over points: MOMENTS_BLOCK points one after the other, then the blocks one after the other.
#pragma once

#include <cstdint>

#include "common.h"

namespace malax {
constexpr int MOMENT_LANES = 8;
constexpr int64_t MOMENTS_BLOCK = 128;
}  // namespace malax

MALAX_NAMESPACE_BEGIN

// One more energy of one lane.
MALAX_HD double moment_step(double sum, double value, double weight) { return sum + value * weight; }

MALAX_HD double moment_join(const double *lane) {
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

// The sum of one energy over the points first..last-1, rows of n_energies.
template <class T>
MALAX_HD double moment_column(const T *ldos, int64_t n_energies, int64_t energy, int64_t first, int64_t last) {
    double sum = 0;
    for (int64_t p = first; p < last; ++p) sum += double(ldos[p * n_energies + energy]);
    return sum;
}

MALAX_NAMESPACE_END
