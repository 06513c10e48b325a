// What all kernels of the bispectrum ask of their arguments.
#pragma once

#include "formulas/snap_types.h"
#include "malax_kernels.h"

namespace malax {

// Throws Error(MALAX_INVALID_ARGUMENT) for a structure, parameters or points that cannot be right.
// has_output: whether there is somewhere to write what n_points > 0 points give.
void check_snap_input(const malax_atoms *atoms, const malax_snap *snap, int64_t n_points, const double *points,
                      bool has_output);

SnapConstants snap_constants(const malax_snap &snap);

}  // namespace malax
