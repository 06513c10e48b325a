// Internal parts: coupling coefficients, the order of points, neighbour lists, and the series of snap.h.
#include <algorithm>
#include <random>

#include "check.h"
#include "cpu/blocks.h"
#include "cpu/neighbours.h"
#include "cpu/snap_tables.h"
#include "formulas/snap.h"

using namespace malax;

TEST(clebsch_gordan_rows_are_orthonormal) {
    for (int ja = 0; ja <= SNAP_LARGEST; ++ja) {
        for (int jb = 0; jb <= ja; ++jb) {
            for (int j = ja - jb; j <= ja + jb; j += 2) {
                for (int k = j; k <= ja + jb; k += 2) {
                    // projection 0 or 1/2 is in both
                    double sum = 0;
                    for (int ma = 0; ma <= ja; ++ma) {
                        const int mb = (ja + jb) / 2 - ma;
                        if (mb < 0 || mb > jb) continue;
                        sum += clebsch_gordan(ja, ma, jb, mb, j) * clebsch_gordan(ja, ma, jb, mb, k);
                    }
                    CHECK_CLOSE(sum, j == k, 1e-11);
                }
            }
        }
    }
}

TEST(clebsch_gordan_known_values) {
    CHECK_CLOSE(clebsch_gordan(1, 1, 1, 0, 0), std::sqrt(0.5), 1e-15);   // <1/2 1/2 1/2 -1/2 | 0 0>
    CHECK_CLOSE(clebsch_gordan(1, 0, 1, 1, 0), -std::sqrt(0.5), 1e-15);
    CHECK_CLOSE(clebsch_gordan(2, 1, 2, 1, 4), std::sqrt(2.0 / 3), 1e-15);  // <1 0 1 0 | 2 0>
    CHECK_CLOSE(clebsch_gordan(2, 1, 2, 1, 2), 0, 1e-15);                   // <1 0 1 0 | 1 0>
    CHECK_CLOSE(clebsch_gordan(3, 3, 1, 0, 2), std::sqrt(3.0) / 2, 1e-15);  // <3/2 3/2 1/2 -1/2 | 1 1>
    CHECK(clebsch_gordan(2, 2, 2, 2, 2) == 0);                              // m = 2 is not in spin 1
}

TEST(number_of_features) {
    const int64_t known[] = {5, 8, 14, 20, 30, 40, 55, 70, 91, 112, 140, 168, 204};
    for (int twojmax = SNAP_SMALLEST; twojmax <= SNAP_LARGEST; ++twojmax) {
        CHECK(snap_features(twojmax) == known[twojmax - SNAP_SMALLEST]);
        CHECK(SnapTables<double>::get(twojmax).view().n_features == snap_features(twojmax));
    }
}

TEST(compact_order_is_a_permutation_into_small_blocks) {
    const int n = 12, lanes = 16;
    std::vector<double> points;
    for (int i = 0; i < n * n * n; ++i) {
        points.insert(points.end(), {0.3 * (i / (n * n)), 0.3 * (i / n % n), 0.3 * (i % n)});
    }
    points.insert(points.end(), {1.0, 1.0, 1.0});  // one more, so that the last block is short
    const int64_t count = int64_t(points.size()) / 3;
    std::vector<uint32_t> order = compact_order(count, points.data(), lanes, 2);
    double total = 0;
    for (int64_t first = 0; first < count; first += lanes) {
        std::vector<double> block;
        for (int64_t i = first; i < std::min(count, first + lanes); ++i) {
            block.insert(block.end(), points.begin() + 3 * order[i], points.begin() + 3 * order[i] + 3);
        }
        const Box box = bounding_box(int64_t(block.size()) / 3, block.data());
        for (int d = 0; d < 3; ++d) total += box.high[d] - box.low[d];
    }
    // a block of 2 x 2 x 4 points spans 0.3 + 0.3 + 0.9; a row of 16 would span 4.5
    CHECK(total / double((count + lanes - 1) / lanes) < 2.2);
    std::sort(order.begin(), order.end());
    for (int64_t i = 0; i < count; ++i) CHECK(order[i] == uint32_t(i));
}

TEST(neighbours_are_those_of_a_brute_force_search) {
    std::mt19937 random(5);
    std::uniform_real_distribution<double> uniform(-3, 9);
    const int n = 23;
    std::vector<double> positions(3 * n), weights{2.0};
    for (double &x : positions) x = uniform(random);
    const std::vector<int32_t> types(n, 0);
    const double cell[9] = {5.0, 0.3, -0.2, 1.9, 4.4, 0.1, -1.2, 0.8, 6.1}, cutoff = 4.1;
    malax_atoms atoms{n, positions.data(), types.data(), cell, {1, 0, 1}};
    const Box all{{-2, -2, -2}, {3, 2, 4}};
    const Neighbours neighbours(atoms, weights.data(), cutoff, all);
    std::vector<int32_t> list;
    for (const Box &box : {Box{{0, 0, 0}, {1, 0.5, 0.2}}, Box{{-2, -2, -2}, {-2, -2, -2}}, all}) {
        neighbours.around(box, list);
        CHECK(std::is_sorted(list.begin(), list.end()));
        int64_t wanted = 0;
        for (int i = 0; i < n; ++i) {
            for (int u = -9; u <= 9; ++u) {
                for (int v = -9; v <= 9; ++v) {
                    double squared = 0;
                    for (int d = 0; d < 3; ++d) {
                        const double x = positions[3 * i + d] + u * cell[d] + v * cell[6 + d];
                        const double outside = std::max({box.low[d] - x, 0.0, x - box.high[d]});
                        squared += outside * outside;
                    }
                    wanted += squared < cutoff * cutoff;
                }
            }
        }
        CHECK(wanted > 0 && int64_t(list.size()) == wanted);
        for (const int32_t i : list) CHECK(neighbours.images()[4 * i + 3] == 2.0);
    }
}

TEST(sine_and_cosine) {
    const double half_pi = std::acos(-1.0) / 2;
    for (int i = -1000; i <= 1000; ++i) {
        const double x = half_pi * i / 1000;
        CHECK_CLOSE(portable::sin_poly(x), std::sin(x), 4e-16);
        CHECK_CLOSE(portable::cos_poly(x), std::cos(x), 4e-16);
        CHECK_CLOSE(portable::sin_poly(float(x)), std::sin(float(x)), 2e-7);
        CHECK_CLOSE(portable::cos_poly(float(x)), std::cos(float(x)), 2e-7);
    }
}
