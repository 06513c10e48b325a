// Plain data of the Gaussian density that the host prepares and the inner loops of every ISA level read.
#pragma once

#include <cstdint>

namespace malax {

// A tile is a box of grid points: rows along the third lattice vector, their number along the second and first.
constexpr int GAUSSIAN_K = 32;
template <class T>
struct GaussianTileSize {
    static constexpr int rows = sizeof(T) == 4 ? 12 : 10;  // along each of the first two; the sums stay in L1
};

constexpr int GAUSSIAN_MOMENTS = 9;

// One element.
struct GaussianType {
    double alpha;           // 1 / (2 sigma^2)
    double scale;           // weight / (sigma sqrt(2 pi))^3
    double cutoff_squared;  // a pair counts if r^2 is below
};

// Steps of the grid in the frame of its cell: e3 along the third lattice vector, e2 in the plane of the last
// two, e1 normal to both. Point (i, j, k) is at (i s11, i s12 + j s22, i s13 + j s23 + k s33).
struct GridSteps {
    double s11, s12, s13, s22, s23, s33;
};

// One tile of a grid and the images around it, for one element.
template <class T>
struct GaussianTile {
    GridSteps steps;
    GaussianType type;
    int32_t n[3];               // points along the axes
    const int32_t *first_row;   // (n[0]) rows first_row[i]..last_row[i] - 1 of plane i are wanted
    const int32_t *last_row;
    int64_t n_images;
    const double *from;         // (n_images, 3) from the image to the tile's first point, in the frame
    T *values;                  // (n[0], rows, GAUSSIAN_K): added to by the sum, read as dE/dvalue by the adjoint
    double *moments;            // adjoint, out: (n_images, GAUSSIAN_MOMENTS), see gaussian.h
};

// One block of points, one per lane, that share a list of neighbours.
template <class T>
struct GaussianBlock {
    const GaussianType *kinds;  // (n_types)
    int32_t n_types;
    const double *points;       // (3, lanes)
    int64_t n_neighbours;
    const int32_t *neighbours;  // indices of images
    const double *images;       // (n_images, 4): x, y, z, number of the atom
    const int32_t *types;       // of the atoms
    T *values;                  // (n_types, lanes): the sums (out), or dE/dvalue for the adjoint
    double *moments;            // adjoint, out: (n_neighbours, GAUSSIAN_MOMENTS)
    double *points_gradient;    // adjoint, out: (3, lanes)
};

}  // namespace malax
