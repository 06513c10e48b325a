#include "snap_tables.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <mutex>

namespace malax {

namespace {

// exact in double up to 22!, the largest that twojmax = 14 needs
double factorial(int n) {
    double product = 1;
    for (int i = 2; i <= n; ++i) product *= i;
    return product;
}

}  // namespace

int64_t snap_features(int twojmax) {
    if (twojmax < SNAP_SMALLEST || twojmax > SNAP_LARGEST) return 0;
    int64_t count = 0;
    for (int j1 = 0; j1 <= twojmax; ++j1) {
        for (int j2 = 0; j2 <= j1; ++j2) {
            for (int j = j1 - j2; j <= std::min(twojmax, j1 + j2); j += 2) count += j >= j1;
        }
    }
    return count;
}

// Racah's formula: Varshalovich et al., Quantum Theory of Angular Momentum (1988), 8.2.1 (3).
double clebsch_gordan(int ja, int ma, int jb, int mb, int jc) {
    const int shift = (ja + jb - jc) / 2, mc = ma + mb - shift;
    if (mc < 0 || mc > jc) return 0;
    const int a = ja - ma, b = mb;  // ja/2 - alpha and jb/2 + beta
    const int c = ma - shift, d = jb - mb - shift;
    double sum = 0;
    for (int z = std::max({0, -c, -d}); z <= std::min({shift, a, b}); ++z) {
        const double term = 1 / (factorial(z) * factorial(shift - z) * factorial(a - z) * factorial(b - z) *
                                 factorial(c + z) * factorial(d + z));
        sum += z % 2 ? -term : term;
    }
    const double triangle = factorial(shift) * factorial((ja - jb + jc) / 2) * factorial((jb - ja + jc) / 2) /
                            factorial((ja + jb + jc) / 2 + 1);
    const double states = factorial(ma) * factorial(ja - ma) * factorial(mb) * factorial(jb - mb) *
                          factorial(mc) * factorial(jc - mc);
    return sum * std::sqrt(triangle * states * (jc + 1));
}

template <class T>
SnapTables<T>::SnapTables(int twojmax) : twojmax_(twojmax) {
    int elements = 0;
    for (int j = 0; j <= twojmax; ++j) {
        layer_.push_back(elements);
        elements += (j + 1) * (j + 1);
        for (int mb = 0; mb <= j; ++mb) {
            for (int ma = 0; ma <= j; ++ma) {
                norm_.push_back(T(std::sqrt(factorial(ma) * factorial(j - ma) / (factorial(mb) * factorial(j - mb)))));
            }
        }
    }
    for (int j1 = 0; j1 <= twojmax; ++j1) {
        for (int j2 = 0; j2 <= j1; ++j2) {
            for (int j = j1 - j2; j <= std::min(twojmax, j1 + j2); j += 2) {
                if (j >= j1) add_triple(j1, j2, j);
            }
        }
    }
}

template <class T>
void SnapTables<T>::add_triple(int j1, int j2, int j) {
    SnapTriple t;
    // two equal layers go to a and b; else the largest is a and the smallest b
    t.ja = j;
    t.jb = j2;
    t.jc = j1;
    if (j1 == j) {
        t.jb = j1;
        t.jc = j2;
    } else if (j1 == j2) {
        t.ja = j1;
        t.jc = j;
    }
    t.same = t.ja == t.jb;
    t.feature = int32_t(triples_.size());
    t.cg = int32_t(cg_.size());
    t.scale = 2.0 * (j + 1) / (t.jc + 1);  // B_{j1 j2 j} / (j + 1) is symmetric in the three
    t.bzero = j + 1;
    for (int ma = 0; ma <= t.ja; ++ma) {
        for (int mb = 0; mb <= t.jb; ++mb) {
            const double c = clebsch_gordan(t.ja, ma, t.jb, mb, t.jc);
            const double pairs = !t.same || ma == mb ? 1 : ma < mb ? 2 : 0;
            cg_.push_back(T(c));
            cg_rows_.push_back(T(c * pairs));
        }
    }
    triples_.push_back(t);
}

template <class T>
SnapTablesView<T> SnapTables<T>::view() const {
    SnapTablesView<T> v;
    v.twojmax = twojmax_;
    v.n_features = int32_t(triples_.size());
    v.n_elements = int32_t(norm_.size());
    v.layer = layer_.data();
    v.norm = norm_.data();
    v.triples = triples_.data();
    v.cg = cg_.data();
    v.cg_rows = cg_rows_.data();
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
