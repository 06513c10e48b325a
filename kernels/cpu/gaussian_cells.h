// A grid in the frame of its cell, and the atoms of one element in a cell list over fractional coordinates.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "formulas/gaussian_types.h"
#include "malax_kernels.h"

namespace malax {

// Where a cell's vectors and a grid's steps are in the frame of GridSteps.
struct CellFrame {
    // Throws Error(MALAX_INVALID_ARGUMENT) for a degenerate cell.
    explicit CellFrame(const double *cell);

    void to_frame(const double *x, double *y) const;
    void fractional(const double *x, double *f) const;
    GridSteps steps(const int32_t *shape) const;

    double axes[9];     // rows e1, e2, e3
    double vectors[9];  // rows: the lattice vectors in the frame, lower triangular when read backwards
    double inverse[9];  // rows: reciprocal vectors, fractional coordinate d of x is inverse[d] . x
    double height[3];   // distance of the planes of each axis
};

// A box of grid points and its surroundings, for `GaussianCells::around`.
struct TileRegion {
    double low[3], high[3];            // fractional range of the points
    double first[3];                   // the first point in the frame
    double frame_low[3], frame_high[3];  // range of the points in the frame, from the first
};

class GaussianCells {
   public:
    // The atoms of type `type`; `cutoff` is the largest distance that counts.
    GaussianCells(const malax_atoms &atoms, int32_t type, double cutoff, const CellFrame &frame);

    // The images within the cutoff of a region, in an order that depends on the region only: their atoms, and the
    // vectors (n, 3) from them to the region's first point, in the frame.
    void around(const TileRegion &region, std::vector<int64_t> &atoms, std::vector<double> &from) const;

   private:
    struct Atom {
        int64_t number;
        double fraction[3], place[3];  // fractional; in the frame
    };

    void choose_bins(const std::vector<Atom> &atoms);
    int64_t bin(int axis, double fraction) const;
    void add_bin(const int64_t *cell, size_t bin, const TileRegion &region, std::vector<int64_t> &atoms,
                 std::vector<double> &from) const;

    const CellFrame &frame_;
    bool periodic_[3];
    double cutoff_, margin_[3];  // the cutoff in fractional coordinates
    int64_t bins_[3];
    double low_[3], width_[3];
    std::vector<int64_t> start_;
    std::vector<Atom> atoms_;
};

}  // namespace malax
