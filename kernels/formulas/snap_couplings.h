// Which triples of layers make a feature, and in which order their integrals are done.
#pragma once

#include <cstdint>

namespace malax {

constexpr int SNAP_SMALLEST = 2, SNAP_LARGEST = 14;  // twojmax
constexpr int SNAP_MOST_FEATURES = 204, SNAP_MOST_PRODUCTS = 56;

// The common twojmax, for which there is code of their own: all index ranges are constants there.
#ifdef MALAX_FEW_CONSTANTS  // with sanitizers each of them takes minutes to compile
constexpr bool snap_special(int twojmax) { return twojmax == 8; }
#else
constexpr bool snap_special(int twojmax) { return twojmax >= 6 && twojmax <= 12 && twojmax % 2 == 0; }
#endif

// Half the number of angles gamma: 3 twojmax / 2 + 1 are needed. The code for any twojmax has them in three sizes.
constexpr int snap_half_angles(int twojmax) {
    return snap_special(twojmax) ? 3 * twojmax / 4 + 1 : twojmax <= 5 ? 4 : twojmax <= 9 ? 7 : 11;
}

// f_a f_b is multiplied by f_c; feature: index in LAMMPS order
struct SnapThird {
    int32_t c, feature;
};

// The products f_a f_b, and for which c they are multiplied by f_c.
struct SnapProduct {
    int32_t a, b, first, last;  // thirds first .. last - 1
};

struct SnapCouplings {
    int32_t n_features, n_products;
    SnapProduct products[SNAP_MOST_PRODUCTS];
    SnapThird thirds[SNAP_MOST_FEATURES];
    int32_t squares[SNAP_LARGEST + 1];  // feature B_{j 0 j}: needs no integral
};

// Of the three layers of a triple, the one that is multiplied last. A pair of layers of one kind, odd, 0 or 2
// modulo 4, is in each triple, so products within a kind are enough, a fifth to a half of all.
constexpr int snap_third(int j1, int j2, int j) {
    const int k1 = j1 & 1 ? 1 : j1 & 2, k2 = j2 & 1 ? 1 : j2 & 2, k = j & 1 ? 1 : j & 2;
    return k1 == k2 ? j : k1 == k ? j2 : j1;
}

// The number of triples j >= j1 >= j2 that couple.
constexpr int32_t snap_count(int twojmax) {
    int32_t count = 0;
    for (int j1 = 0; j1 <= twojmax; ++j1) {
        for (int j2 = 0; j2 <= j1; ++j2) {
            for (int j = j1 - j2; j <= j1 + j2 && j <= twojmax; j += 2) count += j >= j1;
        }
    }
    return count;
}

constexpr SnapCouplings snap_couplings(int twojmax) {
    SnapCouplings t{};
    t.n_features = snap_count(twojmax);
    int n_thirds = 0;
    for (int a = 0; a <= twojmax; ++a) {
        for (int b = a; b <= twojmax; ++b) {
            SnapProduct product{a, b, n_thirds, n_thirds};
            int feature = 0;
            for (int j1 = 0; j1 <= twojmax; ++j1) {
                for (int j2 = 0; j2 <= j1; ++j2) {
                    for (int j = j1 - j2; j <= j1 + j2 && j <= twojmax; j += 2) {
                        if (j < j1) continue;
                        const int c = snap_third(j1, j2, j);
                        const int x = c == j ? j2 : c == j1 ? j2 : j1, y = c == j ? j1 : j;
                        if (j2 == 0) {
                            t.squares[j] = feature;
                        } else if (x == a && y == b) {
                            t.thirds[n_thirds].c = c;
                            t.thirds[n_thirds].feature = feature;
                            ++n_thirds;
                        }
                        ++feature;
                    }
                }
            }
            product.last = n_thirds;
            if (product.last > product.first) t.products[t.n_products++] = product;
        }
    }
    return t;
}

// The same as a constant for one twojmax.
template <int TWOJMAX>
struct SnapCouplingsOf {
    static constexpr SnapCouplings value = snap_couplings(TWOJMAX);
};

}  // namespace malax
