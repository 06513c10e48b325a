// Plain data that the host prepares once and the inner loops of every ISA level (and device) read.
#pragma once

#include <cstdint>

namespace malax {

// B_{j1 j2 j} (all j doubled) is a sum over three layers of U that is symmetric in the three up to a
// factor, so the sum is done as U_a x U_b -> U_c with a and b equal wherever two of the three are: then
// only half of the row pairs is needed. scale holds the factor back to (j1, j2, j) and the 2 of the half-plane.
struct SnapTriple {
    int32_t ja, jb, jc;
    int32_t same;     // ja == jb
    int32_t feature;  // index in LAMMPS order
    int32_t cg;       // offset of C(ma, mb) = <ja ma jb mb | jc ma+mb> in `cg` and `cg_rows`, (ja+1, jb+1)
    double scale;
    double bzero;     // what bzeroflag subtracts: j + 1
};

template <class T>
struct SnapTablesView {
    int32_t twojmax, n_features, n_elements;  // n_elements: complex elements of all layers, full planes
    const int32_t *layer;                     // (twojmax + 1) first element of layer j; element (mb, ma) is
                                              // layer[j] + mb (j + 1) + ma
    const T *norm;                            // (n_elements) from the scaled recursion to U
    const SnapTriple *triples;                // (n_features)
    const T *cg;                              // Clebsch-Gordan coefficients of all triples
    const T *cg_rows;                         // the same for pairs of rows: doubled above the diagonal and zero
                                              // below it where ja == jb
};

struct SnapConstants {
    double cutoff_squared, rmin0;
    double theta_scale;  // theta = (r - rmin0) theta_scale
    double fade_scale;   // half the switching function's angle per A; 0 without switching
    bool bzero;
};

// One block of points that share a list of neighbours.
template <class T>
struct SnapBlock {
    const SnapTablesView<T> *tables;
    const SnapConstants *constants;
    const double *points;        // (3, lanes)
    int64_t n_neighbours;
    const int32_t *neighbours;   // indices of images, ascending
    const double *images;        // (n_images, 4): x, y, z, weight
    T *scratch;                  // snap_scratch(twojmax) * lanes values, 64-byte aligned
    T *out;                      // (n_features, lanes)
};

// Values of type T per lane that a block needs beside its input.
inline int64_t snap_scratch(int64_t twojmax, int64_t n_elements) {
    const int64_t row = 2 * (twojmax + 2);
    return 2 * n_elements + 2 * row + 2 * (twojmax + 1) * (twojmax + 1);
}

}  // namespace malax
