// Plain data of the bispectrum's derivatives: what the host prepares and the inner loops read.
#pragma once

#include <cstdint>

#include "snap_types.h"

namespace malax {

template <class T>
struct SnapAdjointBlock : SnapPoints<T> {
    const T *gradient;   // (n_features, lanes): dE/dB
    double *neighbours_out;  // (n_neighbours, 3): dE/d(position of the image), summed over the lanes
    double *points_out;      // (3, lanes): dE/d(point)
    double *strain_out;      // (3, 3): sum over pairs of (image - point) outer dE/d(image), summed over the lanes
};

template <class T>
struct SnapJvpBlock : SnapPoints<T> {
    const int32_t *atoms;          // (n_images): the atom of each image
    const double *atoms_change;    // (n_atoms, 3) or null
    const double *strain;          // (3, 3)
    const double *points_change;   // (3, lanes)
    T *out;                        // (n_features, lanes): dB
};

// Values of type T per lane that a block needs beside its input: see snap_adjoint and snap_jvp of the inner loops.
// Twice the rows and functions at the points of the quadrature: those of U and their derivatives or changes.
template <class T>
int64_t snap_derivative_quadrature(const SnapTablesView<T> &t) {
    return 2 * (8 * int64_t(t.n_rows) + int64_t(t.twojmax + 1) * t.n_angles);
}

template <class T>
int64_t snap_derivative_scratch(const SnapTablesView<T> &t, int64_t sets) {
    const int64_t sums = sets * t.expansion_size + SNAP_NEIGHBOURS * (5 * int64_t(t.twojmax + 1) + 8);
    const int64_t quadrature = snap_derivative_quadrature(t);
    return 2 * int64_t(t.layers_size) + t.n_features + (sums > quadrature ? sums : quadrature);
}

// dE/dU and its rotations by D2 and D3
template <class T>
int64_t snap_adjoint_scratch(const SnapTablesView<T> &t) {
    return snap_derivative_scratch(t, 3);
}

// U, its change with the weights, and with the three directions in which rotations move
constexpr int SNAP_CHANGES = 5;

template <class T>
int64_t snap_jvp_scratch(const SnapTablesView<T> &t) {
    return snap_derivative_scratch(t, SNAP_CHANGES);
}

}  // namespace malax
