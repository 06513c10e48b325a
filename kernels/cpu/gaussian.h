// What Gaussians at points and on a grid share: checks, and the constants of each element.
#pragma once

#include <cmath>
#include <vector>

#include "formulas/gaussian_types.h"
#include "malax_kernels.h"

namespace malax {

// A vector whose data begin on a cache line.
struct alignas(64) CacheLine {
    char bytes[64];
};

template <class T>
class AlignedArray {
   public:
    explicit AlignedArray(size_t n) : lines_((n * sizeof(T) + 63) / 64) {}
    T *data() { return reinterpret_cast<T *>(lines_.data()); }

   private:
    std::vector<CacheLine> lines_;
};

// The constants of each type, for sums in T. Throws Error(MALAX_INVALID_ARGUMENT) for what can never be right.
template <class T>
std::vector<GaussianType> gaussian_types(const malax_atoms *atoms, const malax_gaussian *gaussian);

// The largest distance that counts.
inline double reach(const GaussianType &type) { return std::sqrt(type.cutoff_squared) * (1 + 1e-9); }

// Where the derivatives of the images end up, in the order in which they are given.
struct GaussianGradient {
    double *positions;  // (n_atoms, 3)
    double strain[6] = {};

    // Adds the moments of one image.
    void add(int64_t atom, const GaussianType &type, const double *moments) {
        const double factor = 2 * type.alpha;
        for (int d = 0; d < 3; ++d) positions[3 * atom + d] += factor * moments[d];
        for (int q = 0; q < 6; ++q) strain[q] -= factor * moments[3 + q];
    }

    void write_strain(double *out) const {
        const int place[9] = {0, 1, 2, 1, 3, 4, 2, 4, 5};
        for (int i = 0; i < 9; ++i) out[i] = strain[place[i]];
    }
};

}  // namespace malax
