// Quadrature on the sphere.
#pragma once

#include <vector>

namespace malax {

struct SpherePoint {
    double x, y, z, weight;
};

// The points of Lebedev's rule that integrates spherical harmonics up to `degree` <= 21 exactly; weights sum to 1
// (of degree 13 some are negative). Coordinates on a symmetry plane are exact zeros.
std::vector<SpherePoint> lebedev_rule(int degree);

}  // namespace malax
