// Internal parts: tables of the bispectrum, the order of points, neighbour lists, and series for sine and cosine.
#include <algorithm>
#include <random>

#include "check.h"
#include "cpu/blocks.h"
#include "cpu/neighbours.h"
#include "cpu/snap_tables.h"
#include "cpu/sphere_rule.h"
#include "formulas/snap_rotation.h"

using namespace malax;

// Spherical harmonics up to a rule's degree integrate to zero: sums of powers x^a y^b z^c against the exact integral.
TEST(lebedev_rules_are_exact) {
    for (int degree = 3; degree <= 21; degree += 2) {
        const std::vector<SpherePoint> points = lebedev_rule(degree);
        for (int a = 0; a <= degree; ++a) {
            for (int b = 0; a + b <= degree; ++b) {
                for (int c = 0; a + b + c <= degree; ++c) {
                    double sum = 0;
                    for (const SpherePoint &p : points) {
                        sum += p.weight * std::pow(p.x, a) * std::pow(p.y, b) * std::pow(p.z, c);
                    }
                    const bool odd = (a | b | c) & 1;
                    const double exact = std::tgamma((a + 1) / 2.0) * std::tgamma((b + 1) / 2.0) *
                                         std::tgamma((c + 1) / 2.0) / std::tgamma((a + b + c + 3) / 2.0) /
                                         (2 * std::acos(-1.0));
                    CHECK_CLOSE(sum, odd ? 0 : exact, 2e-15);
                }
            }
        }
    }
}

TEST(wigner_d_rows_are_orthonormal) {
    for (int j = 0; j <= SNAP_LARGEST; ++j) {
        for (double beta : {0.0, 0.3, 1.1, 2.9, std::acos(-1.0)}) {
            for (int m = 0; m <= j; ++m) {
                for (int n = 0; n <= j; ++n) {
                    double sum = 0;
                    for (int k = 0; k <= j; ++k) sum += wigner_d(j, m, k, beta) * wigner_d(j, n, k, beta);
                    CHECK_CLOSE(sum, m == n, 1e-13);
                }
            }
        }
    }
}

TEST(wigner_d_known_values) {
    const double beta = 0.7;
    CHECK_CLOSE(wigner_d(1, 0, 0, beta), std::cos(beta / 2), 1e-15);
    CHECK_CLOSE(wigner_d(1, 1, 0, beta), std::sin(beta / 2), 1e-15);
    CHECK_CLOSE(wigner_d(1, 0, 1, beta), -std::sin(beta / 2), 1e-15);
    CHECK_CLOSE(wigner_d(2, 1, 1, beta), std::cos(beta), 1e-15);  // Legendre polynomials in the middle
    CHECK_CLOSE(wigner_d(4, 2, 2, beta), 1.5 * std::cos(beta) * std::cos(beta) - 0.5, 1e-15);
}

TEST(couplings_cover_every_triple_once) {
    for (int twojmax = SNAP_SMALLEST; twojmax <= SNAP_LARGEST; ++twojmax) {
        const SnapCouplings couplings = snap_couplings(twojmax);
        std::vector<int> times(couplings.n_features, 0);
        for (int j = 0; j <= twojmax; ++j) ++times[couplings.squares[j]];
        for (int i = 0; i < couplings.n_products; ++i) {
            const SnapProduct &product = couplings.products[i];
            for (int k = product.first; k < product.last; ++k) {
                const int c = couplings.thirds[k].c;
                CHECK((product.a + product.b + c) % 2 == 0);
                CHECK(c >= std::abs(product.a - product.b) && c <= product.a + product.b);
                ++times[couplings.thirds[k].feature];
            }
        }
        for (int n : times) CHECK(n == 1);
    }
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
    malax_atoms atoms{n, positions.data(), types.data(), cell, {1, 0, 1}, nullptr};
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

TEST(a_prepared_structure_has_the_same_neighbours) {
    std::mt19937 random(6);
    std::uniform_real_distribution<double> uniform(-20, 40);
    const int n = 500;
    std::vector<double> positions(3 * n), weights{1.0};
    for (double &x : positions) x = uniform(random);
    const std::vector<int32_t> types(n, 0);
    const double cell[9] = {15.0, 0.3, -0.2, 1.9, 14.4, 0.1, -1.2, 0.8, 16.1}, cutoff = 3.3;
    for (int flags = 0; flags < 8; ++flags) {
        malax_atoms atoms{n, positions.data(), types.data(), cell, {flags & 1, flags >> 1 & 1, flags >> 2}, nullptr};
        malax_structure *prepared = nullptr;
        CHECK(malax_structure_create(&atoms, &prepared) == MALAX_OK);
        malax_atoms with = atoms;
        with.prepared = prepared;
        for (const Box &box : {Box{{0, 0, 0}, {1, 0.5, 0.2}}, Box{{-200, 310, 7}, {-199, 311, 8}}, Box{{0, 0, 0}, {16, 15, 16}}}) {
            const Neighbours a(atoms, weights.data(), cutoff, box), b(with, weights.data(), cutoff, box);
            std::vector<int32_t> first, second;
            a.around(box, first);
            b.around(box, second);
            CHECK(first == second);
            CHECK(flags != 7 || !first.empty());
            for (const int32_t i : first) {
                CHECK(a.atoms()[i] == b.atoms()[i]);
                for (int d = 0; d < 4; ++d) CHECK(a.images()[4 * i + d] == b.images()[4 * i + d]);
            }
        }
        malax_structure_destroy(prepared);
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
