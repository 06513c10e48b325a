#include "blocks.h"

#include <algorithm>

namespace malax {

namespace {

constexpr int64_t TASK_SIZE = 16384;  // points below which a part is cut by one thread

// float is enough: the order is for locality only, and no result depends on it
struct Point {
    float x[3];
    uint32_t index;
};

// Halves a set across its longest axis, at a multiple of `lanes`, until a part is one block.
void cut(Point *first, int64_t n, int64_t lanes) {
    while (n > lanes) {
        float low[3], high[3];
        for (int d = 0; d < 3; ++d) low[d] = high[d] = first[0].x[d];
        for (int64_t i = 1; i < n; ++i) {
            for (int d = 0; d < 3; ++d) {
                low[d] = std::min(low[d], first[i].x[d]);
                high[d] = std::max(high[d], first[i].x[d]);
            }
        }
        int axis = 0;
        for (int d = 1; d < 3; ++d) {
            if (high[d] - low[d] > high[axis] - low[axis]) axis = d;
        }
        const int64_t blocks = (n + lanes - 1) / lanes, half = (blocks + 1) / 2 * lanes;
        std::nth_element(first, first + half, first + n,
                         [axis](const Point &a, const Point &b) { return a.x[axis] < b.x[axis]; });
        if (half >= TASK_SIZE) {
#ifdef _OPENMP
#pragma omp task firstprivate(first, half, lanes)
#endif
            cut(first, half, lanes);
        } else {
            cut(first, half, lanes);
        }
        first += half;
        n -= half;
    }
}

}  // namespace

Box bounding_box(int64_t n, const double *points) {
    Box box;
    for (int d = 0; d < 3; ++d) box.low[d] = box.high[d] = points[d];
    for (int64_t i = 1; i < n; ++i) {
        for (int d = 0; d < 3; ++d) {
            box.low[d] = std::min(box.low[d], points[3 * i + d]);
            box.high[d] = std::max(box.high[d], points[3 * i + d]);
        }
    }
    return box;
}

std::vector<uint32_t> compact_order(int64_t n, const double *points, int lanes, int threads) {
    const Box box = bounding_box(n, points);
    std::vector<Point> sorted(n);
    for (int64_t i = 0; i < n; ++i) {
        for (int d = 0; d < 3; ++d) sorted[i].x[d] = float(points[3 * i + d] - box.low[d]);
        sorted[i].index = uint32_t(i);
    }
    (void)threads;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (n > 2 * TASK_SIZE)
#pragma omp single
#endif
    cut(sorted.data(), n, lanes);
    std::vector<uint32_t> order(n);
    for (int64_t i = 0; i < n; ++i) order[i] = sorted[i].index;
    return order;
}

}  // namespace malax
