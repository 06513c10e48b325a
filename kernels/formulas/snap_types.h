// Plain data that the host prepares once and the inner loops of every ISA level (and device) read.
#pragma once

#include <cstdint>

#include "snap_couplings.h"

namespace malax {

// Where a sum over neighbours becomes one or two elements of U; see snap_expansion.h.
struct SnapElement {
    int32_t first, second;                 // offsets of the sums (re, im) in the expansion, of c+ and c-
    int32_t first_stride, second_stride;   // from one order of the polynomials to the next
    int32_t first_radial, second_radial;   // offsets of their coefficients in `radial`
    int32_t n;                             // highest order: n + 1 coefficients
    int32_t target;                        // offset in the layers: two values of m = 0, else four
    int32_t kind;                          // a SnapElementKind
    int32_t diagonal;                      // 1: the point's own contribution is added (to c- of a pair)
    int32_t odd;                           // SNAP_MIRRORED: 1 if the mirror image changes sign
};

enum SnapElementKind {
    SNAP_SINGLE = 0,   // m = 0: c
    SNAP_PAIR = 1,     // m > 0: c+ + c-, c+ - c-
    SNAP_MIRRORED = 2  // the same where c+ is the mirror image of c- (row 2 mb = j)
};

// Points of the sphere that share the sums over m: (beta, +-alpha) and (pi - beta, +-alpha).
struct SnapBase {
    int32_t points;  // bit 0: (beta, alpha); 1: (beta, -alpha); 2: (pi - beta, alpha); 3: (pi - beta, -alpha)
};

template <class T>
struct SnapTablesView {
    int32_t twojmax, n_features, n_rows, n_bases, n_elements, n_angles;
    int32_t expansion_size, layers_size;  // in values: sums over neighbours; layers of U
    const int32_t *classes;               // (twojmax + 1, twojmax + 1) offset of the sums of |p|, |q|
    const SnapElement *elements;          // (n_elements)
    const T *radial;                      // from Chebyshev polynomials to the elements of U
    const T *signs;                       // (n_rows) factor of a row at pi - beta
    const SnapBase *bases;                // (n_bases)
    const T *sphere;                      // (n_bases, sphere_size): per row [m = 0: 1 value] then 4 per m > 0
    int32_t sphere_size;
    const T *cosines, *sines;             // (twojmax + 1, n_angles / 2): of mu gamma, first index 2 mu
    const SnapCouplings *couplings;
    const T *scale;                       // (n_features) j + 1
};

struct SnapConstants {
    double cutoff_squared, rmin0;
    double theta_scale;  // theta = (r - rmin0) theta_scale
    double fade_scale;   // half the switching function's angle per A; 0 without switching
    bool bzero;
};

// One block of points that share a list of neighbours: what the bispectrum and its derivatives read.
template <class T>
struct SnapPoints {
    const SnapTablesView<T> *tables;
    const SnapConstants *constants;
    const double *points;        // (3, lanes)
    int64_t n_neighbours;
    const int32_t *neighbours;   // indices of images, ascending
    const double *images;        // (n_images, 4): x, y, z, weight
    T *scratch;                  // snap_*scratch values per lane, 64-byte aligned
};

template <class T>
struct SnapBlock : SnapPoints<T> {
    T *out;             // (n_features, lanes)
    double (*clock)();  // null, or seconds since some moment ...
    double *seconds;    // ... whose differences are added here: sums over neighbours, invariants
};

constexpr int SNAP_NEIGHBOURS = 4;  // added to the sums at a time, at most

// Values of type T per lane that a block needs beside its input: the layers, and the larger of the sums over
// neighbours with their powers and the functions at the points of the quadrature.
template <class T>
int64_t snap_scratch(const SnapTablesView<T> &t) {
    const int64_t powers = SNAP_NEIGHBOURS * (5 * int64_t(t.twojmax + 1) + 8);
    const int64_t expansion = t.expansion_size + powers;
    const int64_t quadrature = 8 * int64_t(t.n_rows) + int64_t(t.twojmax + 1) * t.n_angles;
    return t.layers_size + (expansion > quadrature ? expansion : quadrature);
}

}  // namespace malax
