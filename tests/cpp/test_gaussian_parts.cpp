// Internal parts of the Gaussian kernels: the exponential, and the cell list of a grid.
#include <cfloat>
#include <random>

#include "check.h"
#include "cpu/gaussian_cells.h"
#include "cpu/simd_exp.h"

using namespace malax;

namespace {

// The largest relative error of exp_negative in units of epsilon.
template <class T>
double largest_error(double lowest, double epsilon) {
    double largest = 0;
    for (int i = 0; i < 200000; i += portable::Simd<T>::lanes) {
        typename portable::Simd<T>::type x;
        for (int l = 0; l < portable::Simd<T>::lanes; ++l) x[l] = T(lowest * (i + l) / 200000);
        const auto found = portable::exp_negative<T>(x);
        for (int l = 0; l < portable::Simd<T>::lanes; ++l) {
            const long double wanted = std::exp((long double)(x[l]));
            largest = std::fmax(largest, std::fabs(double((found[l] - wanted) / wanted)) / epsilon);
        }
    }
    return largest;
}

}  // namespace

TEST(exponential_to_the_last_bits) {
    CHECK(largest_error<float>(-87, FLT_EPSILON) < 0.9);
    CHECK(largest_error<double>(-708, DBL_EPSILON) < 0.9);
    const portable::Simd<double>::type zero = {}, far = zero - 1e300;
    CHECK(portable::exp_negative<double>(zero)[0] == 1);
    CHECK(portable::exp_negative<double>(far)[0] == portable::exp_negative<double>(zero - 708.0)[0]);
    CHECK(portable::exp_negative<double>(far)[0] >= DBL_MIN);
    const portable::Simd<float>::type none = {};
    CHECK(portable::exp_negative<float>(none - 1e30f)[0] >= FLT_MIN);
}

TEST(frame_of_a_cell_is_lower_triangular_backwards) {
    const double left_handed[9] = {1.9, 4.4, 0.1, 5.0, 0.3, -0.2, -1.2, 0.8, 6.1};
    const CellFrame frame(left_handed);
    for (int i = 0; i < 3; ++i) {
        for (int j = 0; j < 3; ++j) {
            double product = 0, length = 0, in_frame = 0;
            for (int d = 0; d < 3; ++d) {
                product += frame.axes[3 * i + d] * frame.axes[3 * j + d];
                length += left_handed[3 * i + d] * left_handed[3 * j + d];
                in_frame += frame.vectors[3 * i + d] * frame.vectors[3 * j + d];
            }
            CHECK_CLOSE(product, i == j, 1e-15);
            CHECK_CLOSE(in_frame, length, 1e-12);
            if (j < i) CHECK(frame.vectors[3 * i + j] == 0);
        }
        CHECK(frame.vectors[4 * i] > 0);
    }
}

TEST(images_around_a_tile_are_those_of_a_brute_force_search) {
    std::mt19937 random(3);
    std::uniform_real_distribution<double> uniform(-3, 9);
    const int n = 31;
    std::vector<double> positions(3 * n);
    for (double &x : positions) x = uniform(random);
    std::vector<int32_t> types(n);
    for (int i = 0; i < n; ++i) types[i] = i % 2;
    const double cell[9] = {5.0, 0.3, -0.2, 1.9, 4.4, 0.1, -1.2, 0.8, 6.1};
    for (const double cutoff : {2.5, 4.1, 9.0}) {
        for (int open = 0; open < 2; ++open) {
            malax_atoms atoms{n, positions.data(), types.data(), cell, {1, !open, 1}};
            const CellFrame frame(cell);
            const GaussianCells cells(atoms, 1, cutoff, frame);
            TileRegion region;  // one point
            double point[3] = {0, 0, 0};
            for (int d = 0; d < 3; ++d) {
                region.low[d] = region.high[d] = 0.3 + 0.2 * d;
                for (int c = 0; c < 3; ++c) point[c] += region.low[d] * cell[3 * d + c];
                region.frame_low[d] = region.frame_high[d] = 0;
            }
            frame.to_frame(point, region.first);
            std::vector<int64_t> found;
            std::vector<double> from;
            cells.around(region, found, from);
            std::vector<int> wanted(n), counted(n);
            for (int i = 1; i < n; i += 2) {
                for (int u = -12; u <= 12; ++u) {
                    for (int v = open ? 0 : -12; v <= (open ? 0 : 12); ++v) {
                        for (int w = -12; w <= 12; ++w) {
                            double squared = 0;
                            for (int d = 0; d < 3; ++d) {
                                const double x = positions[3 * i + d] + u * cell[d] + v * cell[3 + d] + w * cell[6 + d];
                                squared += (x - point[d]) * (x - point[d]);
                            }
                            wanted[i] += squared < cutoff * cutoff;
                        }
                    }
                }
            }
            for (size_t k = 0; k < found.size(); ++k) {
                ++counted[found[k]];
                double squared = 0;
                for (int d = 0; d < 3; ++d) squared += from[3 * k + d] * from[3 * k + d];
                CHECK(squared <= cutoff * cutoff);
            }
            CHECK(counted == wanted && !found.empty());
        }
    }
}
