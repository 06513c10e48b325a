// Coefficients and index tables of the bispectrum, made once per twojmax.
#pragma once

#include <cstdint>
#include <vector>

#include "formulas/snap_types.h"

namespace malax {

// The number of triples j >= j1 >= j2 of layers up to twojmax; 0 out of range.
int64_t snap_features(int twojmax);

// d_j[mb, ma](beta), all indices counted from 0 and j doubled: the element of U for the rotation
// a = cos(beta/2), b = sin(beta/2).
double wigner_d(int j, int mb, int ma, double beta);

template <class T>
class SnapTables {
   public:
    // Tables live until the process ends: below 2 MB for all twojmax together.
    static const SnapTables &get(int twojmax);

    SnapTablesView<T> view() const;

   private:
    explicit SnapTables(int twojmax);
    void add_layers();
    void add_classes();
    void add_elements(int p, int q);
    int32_t add_radial(int p, int q, bool second, int n);
    void add_sphere();
    void add_angles();
    void add_couplings();

    int32_t target(int j, int twice_mu, int twice_m) const;

    int twojmax_, n_rows_ = 0, half_angles_ = 0;
    int32_t expansion_size_ = 0, layers_size_ = 0, sphere_size_ = 0;
    std::vector<int32_t> classes_, row_target_, first_row_;
    std::vector<SnapElement> elements_;
    std::vector<SnapBase> bases_;
    SnapCouplings couplings_;
    std::vector<T> radial_, signs_, sphere_, cosines_, sines_, scale_;
};

}  // namespace malax
