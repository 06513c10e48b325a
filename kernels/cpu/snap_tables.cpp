#include "snap_tables.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <mutex>

#include "sphere_rule.h"

namespace malax {

namespace {

const double PI = 3.14159265358979323846;

// exact in double up to 22!, more than twojmax = 14 needs
double factorial(int n) {
    double product = 1;
    for (int i = 2; i <= n; ++i) product *= i;
    return product;
}

long double binomial(int n, int k) {
    return k < 0 || k > n ? 0 : (long double)(factorial(n)) / (factorial(k) * factorial(n - k));
}

// The sum over k of C(j-mb, ma-k) C(mb, k) A^(k-a) (-B)^(min(ma, mb)-k): what remains of an element of U when the
// powers of a and b (and their signs) are taken out, with A = |a|^2 and B = 1 - A.
long double remainder(int j, int mb, int ma, long double A) {
    const int least = std::max(0, ma + mb - j), most = std::min(ma, mb);
    long double sum = 0;
    for (int k = least; k <= most; ++k) {
        sum += binomial(j - mb, ma - k) * binomial(mb, k) * std::pow(A, (long double)(k - least)) *
               std::pow(A - 1, (long double)(most - k));
    }
    return sum;
}

double norm(int j, int mb, int ma) {
    return std::sqrt(factorial(ma) * factorial(j - ma) / (factorial(mb) * factorial(j - mb)));
}

}  // namespace

int64_t snap_features(int twojmax) {
    if (twojmax < SNAP_SMALLEST || twojmax > SNAP_LARGEST) return 0;
    return snap_count(twojmax);
}

double wigner_d(int j, int mb, int ma, double beta) {
    const long double a = std::cos((long double)(beta) / 2), b = std::sin((long double)(beta) / 2);
    const int p = j - mb - ma, q = ma - mb;
    // powers of a* and -b*, or of their conjugates
    const long double powers = std::pow(a, (long double)std::abs(p)) * std::pow(b, (long double)std::abs(q));
    return double((q > 0 && (q & 1) ? -1 : 1) * powers * remainder(j, mb, ma, a * a) * norm(j, mb, ma));
}

template <class T>
SnapTables<T>::SnapTables(int twojmax) : twojmax_(twojmax) {
    add_layers();
    add_classes();
    add_sphere();
    add_angles();
    add_couplings();
}

template <class T>
void SnapTables<T>::add_layers() {
    for (int j = 0; j <= twojmax_; ++j) {
        first_row_.push_back(n_rows_);
        for (int i = 0; i <= j / 2; ++i) {
            row_target_.push_back(layers_size_);
            layers_size_ += 2 * (j + 1);
            sphere_size_ += (j % 2 == 0) + 4 * ((j + 1) / 2);
            ++n_rows_;
        }
    }
}

template <class T>
int32_t SnapTables<T>::target(int j, int twice_mu, int twice_m) const {
    const int32_t row = row_target_[first_row_[j] + twice_mu / 2];
    if (twice_m == 0) return row;
    return row + (j % 2 == 0 ? 2 + 4 * (twice_m / 2 - 1) : 4 * (twice_m / 2));
}

template <class T>
void SnapTables<T>::add_classes() {
    classes_.assign((twojmax_ + 1) * (twojmax_ + 1), -1);
    for (int p = 0; p <= twojmax_; ++p) {
        for (int q = 0; p + q <= twojmax_; ++q) {
            classes_[p * (twojmax_ + 1) + q] = expansion_size_;
            expansion_size_ += (p > 0 && q > 0 ? 4 : 2) * ((twojmax_ - p - q) / 2 + 1);
        }
    }
    for (int p = 0; p <= twojmax_; ++p) {
        for (int q = p; p + q <= twojmax_; ++q) add_elements(p, q);
    }
}

// Coefficients, in Chebyshev polynomials of 2A - 1, of the element of U with powers (p, q), or, if `second`, of the
// class' other sign, in layer p + q + 2n.
template <class T>
int32_t SnapTables<T>::add_radial(int p, int q, bool second, int n) {
    const int j = p + q + 2 * n;
    const int mb = !second ? n : p >= q ? n + q : n + p;
    const int ma = !second ? n + q : p >= q ? n : n + p + q;
    const int32_t offset = int32_t(radial_.size());
    // b to the power of mb - ma > 0 is (-1)^q times the conjugate's power
    const double factor = norm(j, mb, ma) * (second && p >= q && q % 2 ? -1 : 1);
    for (int k = 0; k <= n; ++k) {
        long double sum = 0;
        for (int i = 0; i <= n; ++i) {
            const long double angle = PI * (i + 0.5L) / (n + 1);
            sum += remainder(j, mb, ma, (1 + std::cos(angle)) / 2) * std::cos(k * angle);
        }
        radial_.push_back(T(factor * double(sum) * (k == 0 ? 1 : 2) / (n + 1)));
    }
    return offset;
}

template <class T>
void SnapTables<T>::add_elements(int p, int q) {
    const int32_t pq = classes_[p * (twojmax_ + 1) + q], qp = classes_[q * (twojmax_ + 1) + p];
    const int stride = p > 0 && q > 0 ? 4 : 2;
    for (int n = 0; p + q + 2 * n <= twojmax_; ++n) {
        const int j = p + q + 2 * n;
        SnapElement e = {};
        e.first_stride = e.second_stride = stride;
        e.n = n;
        e.first = pq;
        e.second = qp;
        e.first_radial = add_radial(p, q, false, n);
        e.second_radial = p == q ? e.first_radial : add_radial(q, p, false, n);
        e.kind = p == q ? SNAP_SINGLE : SNAP_PAIR;
        e.target = target(j, p + q, q - p);
        e.diagonal = p == 0;
        elements_.push_back(e);
        if (p == 0) continue;
        e.first += 2;
        e.second += 2;
        e.second_radial = add_radial(q, p, true, n);
        e.first_radial = p == q ? e.second_radial : add_radial(p, q, true, n);
        e.kind = p == q ? SNAP_MIRRORED : SNAP_PAIR;
        e.odd = q & 1;
        e.target = target(j, q - p, p + q);
        e.diagonal = 0;
        elements_.push_back(e);
    }
}

// One base for all points of the rule that differ in the signs of y and z.
template <class T>
void SnapTables<T>::add_sphere() {
    const int degree = 3 * twojmax_ / 2;
    half_angles_ = snap_half_angles(twojmax_);
    for (const SpherePoint &point : lebedev_rule(degree)) {
        if (point.y < 0 || point.z < 0) continue;
        const int both = point.y > 0 ? 3 : 1;
        bases_.push_back({both | (point.z > 0 ? both << 2 : 0)});
        const double alpha = std::atan2(point.y, point.x);
        const double beta = std::atan2(std::hypot(point.x, point.y), point.z);
        const double weight = std::cbrt(point.weight / (2 * half_angles_));
        for (int j = 0; j <= twojmax_; ++j) {
            for (int i = 0; i <= j / 2; ++i) {
                const int mb = j / 2 - i;
                if (j % 2 == 0) sphere_.push_back(T(weight * wigner_d(j, mb, j / 2, beta)));
                for (int m = 0; m < (j + 1) / 2; ++m) {
                    const int ma = (j + 2) / 2 + m;
                    const double plus = wigner_d(j, mb, ma, beta), minus = wigner_d(j, mb, j - ma, beta);
                    const double s = weight * (plus + minus) / 2, t = weight * (plus - minus) / 2;
                    const double angle = (ma - 0.5 * j) * alpha;
                    sphere_.push_back(T(s * std::cos(angle)));
                    sphere_.push_back(T(t * std::cos(angle)));
                    sphere_.push_back(T(s * std::sin(angle)));
                    sphere_.push_back(T(t * std::sin(angle)));
                }
            }
        }
    }
    // d(pi - beta) at m is `sign` times d(beta) at -m: any beta tells which
    for (int j = 0; j <= twojmax_; ++j) {
        for (int i = 0; i <= j / 2; ++i) {
            const int mb = j / 2 - i;
            signs_.push_back(T(wigner_d(j, mb, 0, PI - 1) * wigner_d(j, mb, j, 1) > 0 ? 1 : -1));
        }
    }
}

template <class T>
void SnapTables<T>::add_angles() {
    for (int twice_mu = 0; twice_mu <= twojmax_; ++twice_mu) {
        for (int l = 0; l < half_angles_; ++l) {
            const double gamma = PI * (l + 0.5) / half_angles_;
            const double factor = twice_mu == 0 ? 1 : 2;  // a row and its mirror image
            cosines_.push_back(T(factor * std::cos(0.5 * twice_mu * gamma)));
            sines_.push_back(T(factor * std::sin(0.5 * twice_mu * gamma)));
        }
    }
}

template <class T>
void SnapTables<T>::add_couplings() {
    couplings_ = snap_couplings(twojmax_);
    for (int j1 = 0; j1 <= twojmax_; ++j1) {
        for (int j2 = 0; j2 <= j1; ++j2) {
            for (int j = j1 - j2; j <= std::min(twojmax_, j1 + j2); j += 2) {
                if (j >= j1) scale_.push_back(T(j + 1));
            }
        }
    }
}

template <class T>
SnapTablesView<T> SnapTables<T>::view() const {
    SnapTablesView<T> v;
    v.twojmax = twojmax_;
    v.n_features = couplings_.n_features;
    v.n_rows = n_rows_;
    v.n_bases = int32_t(bases_.size());
    v.n_elements = int32_t(elements_.size());
    v.n_angles = 2 * half_angles_;
    v.expansion_size = expansion_size_;
    v.layers_size = layers_size_;
    v.classes = classes_.data();
    v.elements = elements_.data();
    v.radial = radial_.data();
    v.signs = signs_.data();
    v.bases = bases_.data();
    v.sphere = sphere_.data();
    v.sphere_size = sphere_size_;
    v.cosines = cosines_.data();
    v.sines = sines_.data();
    v.couplings = &couplings_;
    v.scale = scale_.data();
    return v;
}

template <class T>
const SnapTables<T> &SnapTables<T>::get(int twojmax) {
    static std::mutex mutex;
    static std::unique_ptr<const SnapTables> made[SNAP_LARGEST + 1];
    const std::lock_guard<std::mutex> lock(mutex);
    std::unique_ptr<const SnapTables> &tables = made[twojmax];
    if (!tables) tables.reset(new SnapTables(twojmax));
    return *tables;
}

template class SnapTables<float>;
template class SnapTables<double>;

}  // namespace malax
