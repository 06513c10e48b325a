#include "snap_input.h"

#include <cmath>
#include <limits>

#include "api.h"
#include "snap_tables.h"

namespace malax {

void check_snap_input(const malax_atoms *atoms, const malax_snap *snap, int64_t n_points, const double *points,
                      bool has_output) {
    require(atoms && snap, "null pointer");
    require(atoms->n_atoms > 0 && atoms->positions && atoms->types && atoms->cell, "at least one atom is needed");
    require(snap_features(snap->twojmax) > 0, "twojmax must be 2 to 14");
    require(std::isfinite(snap->cutoff) && snap->cutoff > 0, "the cutoff must be positive");
    require(std::isfinite(snap->rfac0) && snap->rfac0 > 0, "rfac0 must be positive");
    require(snap->rmin0 >= 0 && snap->rmin0 < snap->cutoff, "rmin0 must be at least 0 and below the cutoff");
    require(n_points >= 0 && n_points < std::numeric_limits<int32_t>::max(), "too many points for one call");
    require(n_points == 0 || (points && has_output), "null pointer");
    require(snap->n_types > 0 && snap->weights, "at least one weight is needed");
    for (int64_t i = 0; i < atoms->n_atoms && !atoms->prepared; ++i) {
        require(atoms->types[i] >= 0 && atoms->types[i] < snap->n_types, "an atom's type is out of range");
        for (int d = 0; d < 3; ++d) require(std::isfinite(atoms->positions[3 * i + d]), "a position is not finite");
    }
    for (int64_t i = 0; i < 3 * n_points; ++i) require(std::isfinite(points[i]), "a point is not finite");
}

SnapConstants snap_constants(const malax_snap &snap) {
    const double pi = 3.14159265358979323846;
    SnapConstants c;
    c.cutoff_squared = snap.cutoff * snap.cutoff;
    c.rmin0 = snap.rmin0;
    c.theta_scale = snap.rfac0 * pi / (snap.cutoff - snap.rmin0);
    c.fade_scale = snap.switchflag ? 0.5 * pi / (snap.cutoff - snap.rmin0) : 0.0;
    c.bzero = snap.bzeroflag != 0;
    return c;
}

}  // namespace malax
