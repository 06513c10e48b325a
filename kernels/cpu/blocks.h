// Cuts a set of points into compact blocks.
#pragma once

#include <cstdint>
#include <vector>

namespace malax {

struct Box {
    double low[3], high[3];
};

// The smallest box around points (n, 3), n > 0.
Box bounding_box(int64_t n, const double *points);

// An order of the points in which every run of `lanes` (the last may be shorter) is a compact block.
std::vector<uint32_t> compact_order(int64_t n, const double *points, int lanes, int threads);

}  // namespace malax
