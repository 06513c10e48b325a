// The atoms and periodic images around a set of points.
#pragma once

#include <cstdint>
#include <vector>

#include "blocks.h"
#include "malax_kernels.h"

namespace malax {

class Neighbours {
   public:
    // All images within `cutoff` of the box, in one global order (by image cell, then by atom) that does
    // not depend on the box: so the sum over a point's neighbours always runs in the same order.
    // Throws Error(MALAX_INVALID_ARGUMENT) for a degenerate cell.
    Neighbours(const malax_atoms &atoms, const double *type_weights, double cutoff, const Box &box);

    // Indices of the images within the cutoff of a box, ascending.
    void around(const Box &box, std::vector<int32_t> &list) const;

    // (n, 4): x, y, z, weight
    const double *images() const { return images_.data(); }

    // (n): the atom of each image
    const int32_t *atoms() const { return atoms_.data(); }

   private:
    void sort_into_bins();
    int bin(int axis, double x) const;

    double cutoff_;
    Box region_;
    std::vector<double> images_;
    std::vector<int32_t> atoms_;
    int bins_[3];
    double bin_size_[3];
    std::vector<int32_t> bin_start_, binned_;
};

}  // namespace malax
