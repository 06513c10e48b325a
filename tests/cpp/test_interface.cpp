// The C interface: values known in closed form, invariances, and every error code.
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>

#include "check.h"
#include "malax_kernels.h"

namespace {

const double NAN_ = std::numeric_limits<double>::quiet_NaN();

// One structure with its parameters, to be changed by a test.
struct Setup {
    std::vector<double> positions{0.1, 0.2, 0.3, 2.1, 1.9, 2.2, 0.4, 2.6, 1.1};
    std::vector<int32_t> types{0, 1, 0};
    std::vector<double> cell{4.0, 0.0, 0.0, 0.7, 3.8, 0.0, -0.4, 0.9, 4.3};
    std::vector<double> weights{1.0, 0.6};
    malax_atoms atoms{};
    malax_snap snap{};

    Setup() {
        snap.twojmax = 6;
        snap.switchflag = 1;
        snap.cutoff = 4.5;
        snap.rfac0 = 0.99363;
        link();
    }

    void link() {
        atoms.n_atoms = int64_t(types.size());
        atoms.positions = positions.data();
        atoms.types = types.data();
        atoms.cell = cell.data();
        for (int d = 0; d < 3; ++d) atoms.periodic[d] = 1;
        snap.n_types = int32_t(weights.size());
        snap.weights = weights.data();
    }

    std::vector<double> run(const std::vector<double> &points, int threads = 1) const {
        std::vector<double> out(points.size() / 3 * malax_bispectrum_size(snap.twojmax));
        CHECK(malax_bispectrum_f64(&atoms, &snap, int64_t(points.size() / 3), points.data(), threads,
                                   malax_bispectrum_size(snap.twojmax), out.data()) ==
              MALAX_OK);
        return out;
    }

    int status(const std::vector<double> &points = {0, 0, 0}) const {
        std::vector<double> out(1000);
        return malax_bispectrum_f64(&atoms, &snap, int64_t(points.size() / 3), points.data(), 1,
                                    malax_bispectrum_size(snap.twojmax), out.data());
    }
};

std::vector<double> many_points() {
    std::vector<double> points;
    for (int i = 0; i < 7; ++i) {
        for (int j = 0; j < 5; ++j) {
            for (int k = 0; k < 6; ++k) {
                points.insert(points.end(), {0.55 * i - 0.3, 0.71 * j, 0.66 * k + 0.01});
            }
        }
    }
    return points;
}

double largest_difference(const std::vector<double> &a, const std::vector<double> &b) {
    double largest = a.size() == b.size() ? 0 : NAN_;
    for (size_t i = 0; i < a.size() && i < b.size(); ++i) largest = std::fmax(largest, std::fabs(a[i] - b[i]));
    return largest;
}

}  // namespace

TEST(sizes) {
    CHECK(malax_bispectrum_size(2) == 5);
    CHECK(malax_bispectrum_size(10) == 91);
    CHECK(malax_bispectrum_size(14) == 204);
    CHECK(malax_bispectrum_size(1) == 0);
    CHECK(malax_bispectrum_size(15) == 0);
    CHECK(malax_bispectrum_size(-3) == 0);
}

// A neighbour at r = rmin0 is mapped to the identity, so U = (1 + w) 1 and B = (1 + w)^3 (j + 1).
TEST(neighbour_at_rmin0) {
    Setup s;
    s.positions = {1.5, 0.0, 0.0};
    s.types = {1};
    s.link();
    s.atoms.periodic[0] = s.atoms.periodic[1] = s.atoms.periodic[2] = 0;
    s.snap.rmin0 = 1.5;
    const std::vector<double> b = s.run({0, 0, 0});
    CHECK_CLOSE(b[0], 1.6 * 1.6 * 1.6, 1e-12);
    CHECK_CLOSE(b[b.size() - 1], 1.6 * 1.6 * 1.6 * 7, 1e-11);  // the last is (6, 6, 6)
}

// B_000 needs no angles: it is (1 + sum of w f(r))^3.
TEST(first_component_is_the_density_cubed) {
    Setup s;
    s.positions = {1.0, 1.0, 0.0, 0.0, -2.0, 1.0, 0.0, 0.0, 4.5001};
    s.types = {0, 1, 0};
    s.link();
    s.atoms.periodic[0] = s.atoms.periodic[1] = s.atoms.periodic[2] = 0;
    const double pi = std::acos(-1.0);
    const double sum = 1 + 0.5 * (1 + std::cos(pi * std::sqrt(2.0) / 4.5)) +
                       0.6 * 0.5 * (1 + std::cos(pi * std::sqrt(5.0) / 4.5));
    CHECK_CLOSE(s.run({0, 0, 0})[0], sum * sum * sum, 1e-12);
}

TEST(bzero) {
    Setup s;
    const std::vector<double> with = s.run({0, 0, 0});
    s.snap.bzeroflag = 1;
    const std::vector<double> without = s.run({0, 0, 0});
    CHECK_CLOSE(with[0] - without[0], 1, 1e-9);
    CHECK_CLOSE(with[with.size() - 1] - without[with.size() - 1], 7, 1e-7);
}

TEST(single_precision_is_near_double) {
    const Setup s;
    const std::vector<double> points = many_points(), wanted = s.run(points);
    std::vector<float> found(wanted.size());
    const size_t features = size_t(malax_bispectrum_size(6)), n = points.size() / 3;
    CHECK(malax_bispectrum_f32(&s.atoms, &s.snap, int64_t(n), points.data(), 1, int64_t(features), found.data()) == MALAX_OK);
    for (size_t f = 0; f < features; ++f) {
        double largest = 0, error = 0;
        for (size_t p = 0; p < n; ++p) {
            largest = std::fmax(largest, std::fabs(wanted[p * features + f]));
            error = std::fmax(error, std::fabs(found[p * features + f] - wanted[p * features + f]));
        }
        CHECK(error < 2e-5 * largest);
    }
}

TEST(threads_and_parts_give_the_same_bits) {
    const Setup s;
    const std::vector<double> points = many_points(), whole = s.run(points);
    CHECK(s.run(points, 3) == whole);
    const size_t features = size_t(malax_bispectrum_size(6)), first = 3 * 17;
    const std::vector<double> part = s.run(std::vector<double>(points.begin() + first, points.end() - 6));
    CHECK(part == std::vector<double>(whole.begin() + 17 * features, whole.end() - 2 * features));
}

TEST(periodic_images) {
    Setup s;
    const std::vector<double> points = many_points(), wanted = s.run(points);
    std::vector<double> moved = points;
    for (size_t i = 0; i < moved.size(); ++i) moved[i] += 2 * s.cell[i % 3] - 3 * s.cell[3 + i % 3] + s.cell[6 + i % 3];
    CHECK(largest_difference(s.run(moved), wanted) < 1e-8);
    for (int d = 0; d < 3; ++d) s.positions[3 + d] += 5 * s.cell[6 + d] - s.cell[d];
    CHECK(largest_difference(s.run(points), wanted) < 1e-8);
    s.atoms.periodic[2] = 0;
    CHECK(largest_difference(s.run(points), wanted) > 1);
}

TEST(bad_arguments_have_a_status_and_a_message) {
    const auto refused = [](const Setup &s, const char *message, const std::vector<double> &points = {0, 0, 0}) {
        CHECK(s.status(points) == MALAX_INVALID_ARGUMENT);
        CHECK(std::strstr(malax_last_error(), message) != nullptr);
    };
    CHECK(Setup().status() == MALAX_OK);
    CHECK(malax_bispectrum_f64(nullptr, nullptr, 0, nullptr, 1, 0, nullptr) == MALAX_INVALID_ARGUMENT);
    Setup s;
    s.snap.twojmax = 15;
    refused(s, "twojmax must be 2 to 14");
    s = Setup();
    s.link();
    s.snap.cutoff = NAN_;
    refused(s, "cutoff");
    s.snap.cutoff = 4.5;
    s.snap.rmin0 = 4.5;
    refused(s, "rmin0");
    s.snap.rmin0 = 0;
    s.snap.rfac0 = 0;
    refused(s, "rfac0");
    s.snap.rfac0 = 1;
    s.types[2] = 2;
    refused(s, "type is out of range");
    s.types[2] = 0;
    s.positions[4] = NAN_;
    refused(s, "position is not finite");
    s.positions[4] = 0;
    refused(s, "point is not finite", {0, 0, NAN_});
    for (int d = 0; d < 3; ++d) s.cell[6 + d] = s.cell[d] + s.cell[3 + d];
    refused(s, "cell is degenerate");
    s.atoms.n_atoms = 0;
    refused(s, "at least one atom");
}

TEST(isa_that_cannot_be_had) {
    const char *set = std::getenv("MALAX_ISA");
    const std::string before = set ? set : "";
    setenv("MALAX_ISA", "v99", 1);
    CHECK(malax_isa() == nullptr);
    CHECK(Setup().status() == MALAX_ISA_UNAVAILABLE);
    CHECK(std::strstr(malax_last_error(), "MALAX_ISA=v99") != nullptr);
    setenv("MALAX_ISA", before.c_str(), 1);
    CHECK(Setup().status() == MALAX_OK);
}

TEST(moments) {
    const int64_t n_points = 300, n_energies = 21, n_weights = 2;
    std::vector<double> ldos(n_points * n_energies), weights(n_weights * n_energies);
    for (size_t i = 0; i < ldos.size(); ++i) ldos[i] = std::sin(0.37 * double(i));
    for (size_t i = 0; i < weights.size(); ++i) weights[i] = std::cos(1.1 * double(i));
    std::vector<double> values(n_points * n_weights), sums(n_energies), again(n_energies);
    CHECK(malax_ldos_moments_f64(n_points, n_energies, n_weights, ldos.data(), weights.data(), 1, values.data(),
                                 sums.data()) == MALAX_OK);
    for (int64_t p = 0; p < n_points; ++p) {
        for (int64_t k = 0; k < n_weights; ++k) {
            double wanted = 0;
            for (int64_t e = 0; e < n_energies; ++e) wanted += ldos[p * n_energies + e] * weights[k * n_energies + e];
            CHECK_CLOSE(values[p * n_weights + k], wanted, 1e-12);
        }
    }
    for (int64_t e = 0; e < n_energies; ++e) {
        double wanted = 0;
        for (int64_t p = 0; p < n_points; ++p) wanted += ldos[p * n_energies + e];
        CHECK_CLOSE(sums[e], wanted, 1e-11);
    }
    CHECK(malax_ldos_moments_f64(n_points, n_energies, 0, ldos.data(), nullptr, 4, nullptr, again.data()) == MALAX_OK);
    CHECK(again == sums);
    CHECK(malax_ldos_moments_f64(-1, 1, 0, ldos.data(), nullptr, 1, nullptr, sums.data()) == MALAX_INVALID_ARGUMENT);
    CHECK(malax_ldos_moments_f64(1, 1, 1, ldos.data(), nullptr, 1, nullptr, sums.data()) == MALAX_INVALID_ARGUMENT);
}

TEST(cube_columns) {
    const char text[] = "  0.12345E-02 -1.00000E+01\n  0.50000-102  0.00000E+00\n";
    const int64_t length = int64_t(sizeof text) - 1;
    double values[4];
    int32_t matches = 0;
    CHECK(malax_cube_columns(2, 2, length, text, values, &matches) == MALAX_OK && matches == 1);
    CHECK(values[0] == 0.0012345 && values[1] == -10.0 && values[3] == 0.0);
    CHECK_CLOSE(values[2] * 1e102, 0.5, 1e-15);
    CHECK(malax_cube_columns(1, 4, length, text, values, &matches) == MALAX_OK && matches == 0);
    CHECK(malax_cube_columns(2, 2, length - 1, text, values, &matches) == MALAX_INVALID_ARGUMENT);
    CHECK(malax_cube_columns(2, 0, length, text, values, &matches) == MALAX_INVALID_ARGUMENT);
    CHECK(malax_cube_columns(-1, 2, length, text, values, &matches) == MALAX_INVALID_ARGUMENT);
    CHECK(malax_cube_columns(2, 2, length, nullptr, values, &matches) == MALAX_INVALID_ARGUMENT);
}

// two layers against the same by hand
TEST(networks) {
    const int64_t widths[] = {2, 2, 1};
    const int32_t activations[] = {MALAX_RELU, MALAX_TANH};
    const double w0[] = {1, 1, 0, 2}, b0[] = {0, 1}, w1[] = {0.5, -0.25}, b1[] = {0.125};
    const double *weights[] = {w0, w1}, *biases[] = {b0, b1}, mean[] = {1, 0}, scale[] = {2, 1};
    malax_network_f64 *network = nullptr;
    CHECK(malax_network_create_f64(2, widths, activations, weights, biases, mean, scale, &network) == MALAX_OK);
    const int64_t n = 211, stride = 3;  // more rows than a block, and what lies between them is not looked at
    std::vector<double> rows(n * stride, 1e300), out(n, -7.0);
    for (int64_t p = 0; p < n; ++p) {
        rows[p * stride] = std::sin(double(p));
        rows[p * stride + 1] = std::cos(2.0 * double(p));
    }
    CHECK(malax_network_apply_f64(network, n, stride, rows.data(), 3, out.data()) == MALAX_OK);
    for (int64_t p = 0; p < n; ++p) {
        const double x = (rows[p * stride] - 1) / 2, y = rows[p * stride + 1];
        const double h0 = std::max(0.0, x + y), h1 = std::max(0.0, 2 * y + 1);
        CHECK_CLOSE(out[p], std::tanh(0.5 * h0 - 0.25 * h1 + 0.125), 1e-15);
    }
    CHECK(malax_network_apply_f64(network, 0, 0, nullptr, 1, nullptr) == MALAX_OK);
    CHECK(malax_network_apply_f64(network, -1, 2, rows.data(), 1, out.data()) == MALAX_INVALID_ARGUMENT);
    CHECK(malax_network_apply_f64(network, 2, 1, rows.data(), 1, out.data()) == MALAX_INVALID_ARGUMENT);
    CHECK(malax_network_apply_f64(nullptr, 1, 2, rows.data(), 1, out.data()) == MALAX_INVALID_ARGUMENT);
    malax_network_destroy_f64(network);
    malax_network_destroy_f64(nullptr);
    const int64_t no_width[] = {2, 0, 1};
    const int32_t unknown[] = {MALAX_RELU, 6};
    CHECK(malax_network_create_f64(2, no_width, activations, weights, biases, mean, scale, &network) ==
          MALAX_INVALID_ARGUMENT);
    CHECK(malax_network_create_f64(2, widths, unknown, weights, biases, mean, scale, &network) ==
          MALAX_INVALID_ARGUMENT);
    CHECK(std::strstr(malax_last_error(), "activation") != nullptr);
    CHECK(malax_network_create_f64(0, widths, activations, weights, biases, mean, scale, &network) ==
          MALAX_INVALID_ARGUMENT);
    CHECK(malax_network_create_f64(2, widths, activations, weights, nullptr, mean, scale, &network) ==
          MALAX_INVALID_ARGUMENT);
}

TEST(versions) {
    CHECK(malax_abi_version() == MALAX_ABI_VERSION);
    CHECK(std::strcmp(malax_version(), MALAX_VERSION) == 0);
    CHECK(std::strstr(malax_isa_levels(), "baseline") != nullptr);
}
