// The C interface of the Gaussian kernels: values known in closed form, derivatives, and every error.
#include <cmath>
#include <limits>
#include <string>

#include "check.h"
#include "malax_kernels.h"

namespace {

const double NAN_ = std::numeric_limits<double>::quiet_NaN();
const double PI = std::acos(-1.0);

// One structure with its parameters, to be changed by a test.
struct Setup {
    std::vector<double> positions{0.1, 0.2, 0.3, 2.1, 1.9, 2.2, 0.4, 2.6, 1.1};
    std::vector<int32_t> types{0, 1, 0};
    std::vector<double> cell{4.0, 0.0, 0.0, 0.7, 3.8, 0.0, -0.4, 0.9, 4.3};
    std::vector<double> sigma{0.6, 0.5}, cutoff{5.2, 4.4}, weights{1.0, -0.7};
    malax_grid grid{{13, 11, 34}, 0, 13 * 11 * 34};
    int32_t periodic = 1;

    malax_atoms atoms() const {
        return {int64_t(types.size()), positions.data(), types.data(), cell.data(), {periodic, periodic, periodic}};
    }

    malax_gaussian gaussian() const { return {int32_t(sigma.size()), sigma.data(), cutoff.data(), weights.data()}; }

    int64_t n() const { return grid.stop - grid.start; }

    std::vector<double> points() const {
        std::vector<double> all;
        for (int64_t p = grid.start; p < grid.stop; ++p) {
            const int64_t index[3] = {p / grid.shape[2] / grid.shape[1], p / grid.shape[2] % grid.shape[1],
                                      p % grid.shape[2]};
            for (int d = 0; d < 3; ++d) {
                double x = 0;
                for (int a = 0; a < 3; ++a) x += double(index[a]) / grid.shape[a] * cell[3 * a + d];
                all.push_back(x);
            }
        }
        return all;
    }

    std::vector<double> on_grid(int threads = 1) const {
        std::vector<double> out(n() * sigma.size(), NAN_);
        const malax_atoms a = atoms();
        const malax_gaussian g = gaussian();
        CHECK(malax_gaussian_grid_f64(&a, &g, &grid, threads, int64_t(sigma.size()), out.data()) == MALAX_OK);
        return out;
    }

    std::vector<double> at_points(const std::vector<double> &x, int threads = 1) const {
        std::vector<double> out(x.size() / 3 * sigma.size(), NAN_);
        const malax_atoms a = atoms();
        const malax_gaussian g = gaussian();
        CHECK(malax_gaussian_f64(&a, &g, int64_t(x.size() / 3), x.data(), threads, int64_t(sigma.size()),
                                 out.data()) == MALAX_OK);
        return out;
    }

    int status() const {
        std::vector<double> out(1000);
        const double point[3] = {0, 0, 0};
        const malax_atoms a = atoms();
        const malax_gaussian g = gaussian();
        const int found = malax_gaussian_f64(&a, &g, 1, point, 1, int64_t(sigma.size()), out.data());
        const malax_grid one{{1, 1, 1}, 0, 1};
        CHECK(malax_gaussian_grid_f64(&a, &g, &one, 1, int64_t(sigma.size()), out.data()) == found);
        return found;
    }
};

double largest_difference(const std::vector<double> &a, const std::vector<double> &b) {
    double largest = a.size() == b.size() ? 0 : NAN_;
    for (size_t i = 0; i < a.size() && i < b.size(); ++i) largest = std::fmax(largest, std::fabs(a[i] - b[i]));
    return largest;
}

}  // namespace

TEST(one_gaussian) {
    Setup s;
    s.positions = {0.5, 0.5, 0.5};
    s.types = {0};
    s.sigma = {0.8};
    s.cutoff = {3.0};
    s.weights = {2.0};
    s.periodic = 0;
    const std::vector<double> found = s.at_points({0.5, 0.5, 0.5, 1.5, 0.5, 0.5, 0.5, 3.5, 0.5, 0.5, 0.5, 3.4999});
    const double peak = 2 / std::pow(0.8 * std::sqrt(2 * PI), 3);
    CHECK_CLOSE(found[0], peak, 1e-15);
    CHECK_CLOSE(found[1], peak * std::exp(-1 / 1.28), 1e-15);
    CHECK(found[2] == 0);  // exactly at the cutoff
    CHECK_CLOSE(found[3], peak * std::exp(-2.9999 * 2.9999 / 1.28), 1e-16);
}

TEST(grid_equals_points_and_integrates_to_the_weights) {
    Setup s;
    for (int turn = 0; turn < 2; ++turn) {
        if (turn) s.cell = {4.0, 0.0, 0.0, 0.7, 3.8, 0.0, 0.0, 0.0, 4.3};  // third axis normal to the others
        const std::vector<double> found = s.on_grid();
        CHECK(largest_difference(found, s.at_points(s.points())) < 1e-14);
        double sum[2] = {};
        for (size_t i = 0; i < found.size(); ++i) sum[i % 2] += found[i] * (4.0 * 3.8 * 4.3) / double(s.n());
        CHECK_CLOSE(sum[0], 2.0, 1e-8);
        CHECK_CLOSE(sum[1], -0.7, 1e-8);
    }
}

TEST(parts_threads_and_strides) {
    Setup s;
    const std::vector<double> whole = s.on_grid();
    CHECK(largest_difference(s.on_grid(3), whole) == 0);
    const malax_atoms a = s.atoms();
    const malax_gaussian g = s.gaussian();
    malax_grid part = s.grid;
    part.start = 500;
    part.stop = 2345;
    std::vector<double> out((part.stop - part.start) * 5, -1.0);
    CHECK(malax_gaussian_grid_f64(&a, &g, &part, 2, 5, out.data()) == MALAX_OK);
    bool same = true;
    for (int64_t p = part.start; p < part.stop; ++p) {
        const double *row = &out[(p - part.start) * 5];
        same = same && row[0] == whole[2 * p] && row[1] == whole[2 * p + 1] && row[2] == -1 && row[4] == -1;
    }
    CHECK(same);
    std::vector<float> single(whole.size());
    CHECK(malax_gaussian_grid_f32(&a, &g, &s.grid, 1, 2, single.data()) == MALAX_OK);
    CHECK(largest_difference(std::vector<double>(single.begin(), single.end()), whole) < 1e-6);
    const std::vector<double> points = s.points(), listed = s.at_points(points);
    CHECK(largest_difference(s.at_points(points, 4), listed) == 0);
    const std::vector<double> tail(points.begin() + 300, points.end());
    CHECK(largest_difference(s.at_points(tail), std::vector<double>(listed.begin() + 200, listed.end())) == 0);
}

TEST(adjoints_agree_and_are_slopes) {
    Setup s;
    const malax_gaussian g = s.gaussian();
    malax_atoms a = s.atoms();
    std::vector<double> gradient(2 * s.n());
    for (size_t i = 0; i < gradient.size(); ++i) gradient[i] = std::sin(0.7 * double(i));
    const std::vector<double> points = s.points();
    std::vector<double> x(9), y(9), strain(9), other(9), of_points(points.size());
    CHECK(malax_gaussian_grid_adjoint_f64(&a, &g, &s.grid, 2, 2, gradient.data(), x.data(), strain.data()) == MALAX_OK);
    CHECK(malax_gaussian_adjoint_f64(&a, &g, s.n(), points.data(), 1, 2, gradient.data(), y.data(), other.data(),
                                     of_points.data()) == MALAX_OK);
    CHECK(largest_difference(x, y) < 1e-11 && largest_difference(strain, other) < 1e-11);
    // a shift of atoms and points together changes nothing
    for (int d = 0; d < 3; ++d) {
        double sum = y[d] + y[3 + d] + y[6 + d];
        for (int64_t p = 0; p < s.n(); ++p) sum += of_points[3 * p + d];
        CHECK_CLOSE(sum, 0, 1e-10);
    }
    std::vector<float> single(gradient.begin(), gradient.end());
    CHECK(malax_gaussian_grid_adjoint_f32(&a, &g, &s.grid, 1, 2, single.data(), y.data(), other.data()) == MALAX_OK);
    CHECK(largest_difference(x, y) < 1e-4);
    CHECK(malax_gaussian_adjoint_f32(&a, &g, s.n(), points.data(), 1, 2, single.data(), y.data(), other.data(),
                                     nullptr) == MALAX_OK);
    CHECK(largest_difference(x, y) < 1e-4);
    double energy[2] = {};
    for (int sign = 0; sign < 2; ++sign) {
        s.positions[4] = 1.9 + (sign ? -1e-5 : 1e-5);
        const std::vector<double> values = s.on_grid();
        for (size_t i = 0; i < values.size(); ++i) energy[sign] += values[i] * gradient[i];
    }
    CHECK_CLOSE((energy[0] - energy[1]) / 2e-5, x[4], 1e-6);
}

TEST(gaussian_errors) {
    CHECK(Setup().status() == MALAX_OK);
    Setup s;
    for (const double bad : {0.0, -1.0, NAN_, 1e300}) {
        s = Setup();
        s.sigma[1] = bad;
        CHECK(s.status() == MALAX_INVALID_ARGUMENT);
        s = Setup();
        s.cutoff[0] = bad == 1e300 ? HUGE_VAL : bad;
        CHECK(s.status() == MALAX_INVALID_ARGUMENT);
    }
    s = Setup();
    s.weights[0] = NAN_;
    CHECK(s.status() == MALAX_INVALID_ARGUMENT);
    s = Setup();
    s.types[1] = 2;
    CHECK(s.status() == MALAX_INVALID_ARGUMENT);
    CHECK(std::string(malax_last_error()).find("type is out of range") != std::string::npos);
    s = Setup();
    s.positions[4] = NAN_;
    CHECK(s.status() == MALAX_INVALID_ARGUMENT);
    s = Setup();
    s.cell[8] = 0;
    CHECK(s.status() == MALAX_INVALID_ARGUMENT);
    s = Setup();
    s.types.clear();
    CHECK(s.status() == MALAX_INVALID_ARGUMENT);
}

TEST(gaussian_ranges_and_pointers) {
    const Setup s;
    const malax_atoms a = s.atoms();
    const malax_gaussian g = s.gaussian();
    std::vector<double> out(2 * s.n()), x(9), strain(9);
    const malax_grid bad[] = {{{0, 1, 1}, 0, 0}, {{2, 2, 2}, -1, 3}, {{2, 2, 2}, 5, 4}, {{2, 2, 2}, 0, 9},
                              {{1 << 21, 1, 1}, 0, 1}};
    for (const malax_grid &grid : bad) {
        CHECK(malax_gaussian_grid_f64(&a, &g, &grid, 1, 2, out.data()) == MALAX_INVALID_ARGUMENT);
    }
    const malax_grid none{{2, 2, 2}, 3, 3};
    CHECK(malax_gaussian_grid_f64(&a, &g, &none, 1, 2, nullptr) == MALAX_OK);
    CHECK(malax_gaussian_grid_adjoint_f64(&a, &g, &none, 1, 2, nullptr, x.data(), strain.data()) == MALAX_OK);
    CHECK(x[0] == 0 && strain[0] == 0);
    CHECK(malax_gaussian_grid_f64(&a, &g, &s.grid, 1, 1, out.data()) == MALAX_INVALID_ARGUMENT);
    CHECK(malax_gaussian_grid_f64(&a, &g, nullptr, 1, 2, out.data()) == MALAX_INVALID_ARGUMENT);
    CHECK(malax_gaussian_grid_f64(nullptr, &g, &s.grid, 1, 2, out.data()) == MALAX_INVALID_ARGUMENT);
    CHECK(malax_gaussian_grid_adjoint_f64(&a, &g, &s.grid, 1, 2, out.data(), nullptr, strain.data()) ==
          MALAX_INVALID_ARGUMENT);
    CHECK(malax_gaussian_f64(&a, &g, 0, nullptr, 1, 2, nullptr) == MALAX_OK);
    CHECK(malax_gaussian_f64(&a, &g, -1, x.data(), 1, 2, out.data()) == MALAX_INVALID_ARGUMENT);
    const double point[3] = {0, NAN_, 0};
    CHECK(malax_gaussian_f64(&a, &g, 1, point, 1, 2, out.data()) == MALAX_INVALID_ARGUMENT);
    CHECK(malax_gaussian_adjoint_f64(&a, &g, 1, point, 1, 2, out.data(), x.data(), strain.data(), nullptr) ==
          MALAX_INVALID_ARGUMENT);
}
