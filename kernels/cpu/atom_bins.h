// The atoms of a structure, sorted once so that those near any box are found without looking at the others.
#pragma once

#include <cstdint>
#include <vector>

#include "blocks.h"
#include "malax_kernels.h"

namespace malax {

// An atom or one of its periodic images.
struct Image {
    int64_t cell[3];  // 0 where the atom itself lies once it is moved into the cell
    int64_t atom;
    double x[3];

    bool operator<(const Image &other) const;
};

class AtomBins {
   public:
    // Copies what it needs. Throws Error(MALAX_INVALID_ARGUMENT) for a degenerate cell or a position that is not
    // finite.
    explicit AtomBins(const malax_atoms &atoms);

    // All images inside the box, ordered by cell, then by atom. Where an image lies does not depend on the box.
    std::vector<Image> images_in(const Box &box) const;

   private:
    // The bins first .. last of one axis, moved by `cell` lattice vectors.
    struct Range {
        int64_t cell;
        int first, last;
    };

    std::vector<Range> ranges(int axis, double low, double high) const;
    void sort(const std::vector<double> &fractions);
    int bin(int axis, double fraction) const;
    void add(const Range *range, const Box &box, std::vector<Image> &images) const;

    double cell_[9], reciprocal_[9];
    bool periodic_[3];
    double low_[3], span_[3];      // of the fractional coordinates that are binned
    int bins_[3];
    std::vector<int64_t> start_;   // of each bin
    std::vector<int32_t> atom_;    // in the order of the bins
    std::vector<double> base_;     // (n, 3) in that order: moved into the cell along periodic directions
};

}  // namespace malax

// What malax_structure_create makes.
struct malax_structure {
    malax::AtomBins bins;
    explicit malax_structure(const malax_atoms &atoms) : bins(atoms) {}
};
