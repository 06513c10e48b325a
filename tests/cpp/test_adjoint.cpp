// The derivatives of the bispectrum through the C interface: closed forms, identities, threads, and error codes.
#include <cstring>
#include <limits>

#include "check.h"
#include "malax_kernels.h"

namespace {

struct Gradient {
    std::vector<double> atoms, strain, points;
};

// Some atoms and points with dE/dB and a displacement, to be changed by a test.
struct Setup {
    std::vector<double> positions{0.1, 0.2, 0.3, 2.1, 1.9, 2.2, 0.4, 2.6, 1.1};
    std::vector<int32_t> types{0, 1, 0};
    std::vector<double> cell{4.0, 0.0, 0.0, 0.7, 3.8, 0.0, -0.4, 0.9, 4.3};
    std::vector<double> weights{1.0, 0.6};
    std::vector<double> points, gradient;
    malax_atoms atoms{};
    malax_snap snap{};

    explicit Setup(int n_points, int twojmax = 6) {
        for (int i = 0; i < 3 * n_points; ++i) points.push_back(2 + 2 * std::sin(1.7 * i));
        for (int i = 0; i < n_points * malax_bispectrum_size(twojmax); ++i) gradient.push_back(std::cos(0.9 * i));
        snap.twojmax = twojmax;
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

    int64_t n_points() const { return int64_t(points.size() / 3); }

    Gradient adjoint(int threads = 1) const {
        Gradient g{std::vector<double>(positions.size()), std::vector<double>(9), std::vector<double>(points.size())};
        CHECK(malax_bispectrum_adjoint_f64(&atoms, &snap, n_points(), points.data(), gradient.data(), threads,
                                           g.atoms.data(), g.strain.data(), g.points.data()) == MALAX_OK);
        return g;
    }

    std::vector<double> jvp(const Gradient &change, int threads = 1) const {
        std::vector<double> out(gradient.size());
        CHECK(malax_bispectrum_jvp_f64(&atoms, &snap, n_points(), points.data(), change.atoms.data(),
                                       change.strain.data(), change.points.data(), threads, out.data()) == MALAX_OK);
        return out;
    }

    int status(const double *g, double *out) const {
        return malax_bispectrum_adjoint_f64(&atoms, &snap, n_points(), points.data(), g, 1, out, nullptr, nullptr);
    }
};

std::vector<double> waves(size_t n, double step) {
    std::vector<double> x(n);
    for (size_t i = 0; i < n; ++i) x[i] = std::sin(step * double(i) + 0.3);
    return x;
}

double dot(const std::vector<double> &a, const std::vector<double> &b) {
    double sum = 0;
    for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
}

double largest(const std::vector<double> &a) {
    double x = 0;
    for (const double v : a) x = std::fmax(x, std::fabs(v));
    return x;
}

}  // namespace

// B_000 = (1 + sum of w f(r))^3 needs no angles: its derivative is 3 (1 + ...)^2 w f'(r) along r.
TEST(first_component_in_closed_form) {
    Setup s(1, 2);
    s.positions = {1.0, 2.0, -0.5, 0.0, -2.0, 1.0};
    s.types = {0, 1};
    s.points = {0, 0, 0};
    s.link();
    s.atoms.periodic[0] = s.atoms.periodic[1] = s.atoms.periodic[2] = 0;
    s.gradient.assign(s.gradient.size(), 0.0);
    s.gradient[0] = 2.5;
    const double pi = std::acos(-1.0);
    double sum = 1, r[2], slope[2];
    for (int i = 0; i < 2; ++i) {
        const double *x = &s.positions[3 * i];
        r[i] = std::sqrt(x[0] * x[0] + x[1] * x[1] + x[2] * x[2]);
        sum += s.weights[i] * 0.5 * (1 + std::cos(pi * r[i] / 4.5));
        slope[i] = -s.weights[i] * 0.5 * pi / 4.5 * std::sin(pi * r[i] / 4.5);
    }
    const Gradient found = s.adjoint();
    for (int i = 0; i < 2; ++i) {
        for (int d = 0; d < 3; ++d) {
            const double wanted = 2.5 * 3 * sum * sum * slope[i] * s.positions[3 * i + d] / r[i];
            CHECK_CLOSE(found.atoms[3 * i + d], wanted, 1e-12);
        }
    }
    for (int d = 0; d < 3; ++d) CHECK_CLOSE(found.points[d], -found.atoms[d] - found.atoms[3 + d], 1e-12);
    double trace = 0;
    for (int i = 0; i < 2; ++i) trace += 2.5 * 3 * sum * sum * slope[i] * r[i];
    CHECK_CLOSE(found.strain[0] + found.strain[4] + found.strain[8], trace, 1e-12);
}

TEST(adjoint_and_product_agree) {
    for (int twojmax = 2; twojmax <= 14; ++twojmax) {
        const Setup s(21, twojmax);
        const Gradient change{waves(s.positions.size(), 1.1), waves(9, 2.3), waves(s.points.size(), 0.7)};
        const Gradient found = s.adjoint();
        const std::vector<double> jvp = s.jvp(change);
        const double right = dot(found.atoms, change.atoms) + dot(found.strain, change.strain) +
                             dot(found.points, change.points);
        CHECK_CLOSE(dot(s.gradient, jvp), right, 1e-12 * std::sqrt(dot(jvp, jvp) * dot(s.gradient, s.gradient)));
    }
}

TEST(product_is_the_finite_difference) {
    const Setup s(5);
    const Gradient change{waves(s.positions.size(), 1.1), std::vector<double>(9), waves(s.points.size(), 0.7)};
    const double h = 1e-6;
    std::vector<double> side[2];
    for (int k = 0; k < 2; ++k) {
        Setup moved = s;
        for (size_t i = 0; i < s.positions.size(); ++i) moved.positions[i] += (k ? h : -h) * change.atoms[i];
        for (size_t i = 0; i < s.points.size(); ++i) moved.points[i] += (k ? h : -h) * change.points[i];
        moved.link();
        side[k].resize(s.gradient.size());
        CHECK(malax_bispectrum_f64(&moved.atoms, &moved.snap, 5, moved.points.data(), 1, int64_t(side[k].size()) / 5,
                                   side[k].data()) == MALAX_OK);
    }
    const std::vector<double> found = s.jvp(change);
    for (size_t i = 0; i < found.size(); ++i) {
        CHECK_CLOSE(found[i], (side[1][i] - side[0][i]) / (2 * h), 1e-7 * largest(found));
    }
}

// More blocks than are held at a time, and more neighbours than go through the recursion side by side.
TEST(threads_give_the_same_bits) {
    Setup s(700, 3);
    s.snap.cutoff = 7.0;
    const Gradient one = s.adjoint(1), three = s.adjoint(3);
    CHECK(one.atoms == three.atoms && one.strain == three.strain && one.points == three.points);
    CHECK(s.jvp(one, 1) == s.jvp(one, 4));
}

TEST(single_precision_is_near_double) {
    const Setup s(50);
    const std::vector<float> gradient(s.gradient.begin(), s.gradient.end());
    const Gradient wanted = s.adjoint();
    Gradient found = wanted;
    CHECK(malax_bispectrum_adjoint_f32(&s.atoms, &s.snap, 50, s.points.data(), gradient.data(), 1, found.atoms.data(),
                                       found.strain.data(), found.points.data()) == MALAX_OK);
    for (size_t i = 0; i < wanted.atoms.size(); ++i) {
        CHECK_CLOSE(found.atoms[i], wanted.atoms[i], 2e-5 * largest(wanted.atoms));
    }
    for (size_t i = 0; i < 9; ++i) CHECK_CLOSE(found.strain[i], wanted.strain[i], 2e-5 * largest(wanted.strain));
    for (size_t i = 0; i < wanted.points.size(); ++i) {
        CHECK_CLOSE(found.points[i], wanted.points[i], 2e-5 * largest(wanted.points));
    }
    const std::vector<double> jvp = s.jvp(wanted);
    std::vector<float> single(jvp.size());
    CHECK(malax_bispectrum_jvp_f32(&s.atoms, &s.snap, 50, s.points.data(), wanted.atoms.data(), wanted.strain.data(),
                                   wanted.points.data(), 1, single.data()) == MALAX_OK);
    for (size_t i = 0; i < jvp.size(); ++i) CHECK_CLOSE(double(single[i]), jvp[i], 2e-5 * largest(jvp));
}

TEST(what_may_be_null) {
    const Setup s(9);
    const Gradient wanted = s.adjoint();
    std::vector<double> atoms(9, 7.0), out(s.gradient.size(), 7.0);
    CHECK(s.status(s.gradient.data(), atoms.data()) == MALAX_OK);
    CHECK(atoms == wanted.atoms);
    CHECK(malax_bispectrum_jvp_f64(&s.atoms, &s.snap, 9, s.points.data(), nullptr, nullptr, nullptr, 1, out.data()) ==
          MALAX_OK);
    CHECK(largest(out) == 0);
    CHECK(malax_bispectrum_adjoint_f64(&s.atoms, &s.snap, 0, nullptr, nullptr, 1, atoms.data(), nullptr, nullptr) ==
          MALAX_OK);
    CHECK(largest(atoms) == 0);
}

TEST(bad_arguments_have_a_status_and_a_message) {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    Setup s(3);
    std::vector<double> atoms(9), out(s.gradient.size());
    CHECK(s.status(s.gradient.data(), nullptr) == MALAX_INVALID_ARGUMENT);
    CHECK(s.status(nullptr, atoms.data()) == MALAX_INVALID_ARGUMENT);
    s.gradient[5] = nan;
    CHECK(s.status(s.gradient.data(), atoms.data()) == MALAX_INVALID_ARGUMENT);
    CHECK(std::strstr(malax_last_error(), "gradient is not finite") != nullptr);
    s.gradient[5] = 0;
    const double strain[9] = {0, nan};
    CHECK(malax_bispectrum_jvp_f64(&s.atoms, &s.snap, 3, s.points.data(), nullptr, strain, nullptr, 1, out.data()) ==
          MALAX_INVALID_ARGUMENT);
    CHECK(std::strstr(malax_last_error(), "strain is not finite") != nullptr);
    s.snap.twojmax = 1;
    CHECK(s.status(s.gradient.data(), atoms.data()) == MALAX_INVALID_ARGUMENT);
    CHECK(std::strstr(malax_last_error(), "twojmax must be 2 to 14") != nullptr);
}
