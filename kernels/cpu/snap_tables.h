// Clebsch-Gordan coefficients and index tables of the bispectrum, made once per twojmax.
#pragma once

#include <cstdint>
#include <vector>

#include "formulas/snap_types.h"

namespace malax {

constexpr int SNAP_SMALLEST = 2, SNAP_LARGEST = 14;  // twojmax

// The number of triples j >= j1 >= j2 of layers up to twojmax; 0 out of range.
int64_t snap_features(int twojmax);

// <ja/2 ma jb/2 mb | jc/2 mc> with ma counted from 0 to ja, and ma + mb = mc in the same sense.
double clebsch_gordan(int ja, int ma, int jb, int mb, int jc);

template <class T>
class SnapTables {
   public:
    // Tables live until the process ends: a few hundred kB for all twojmax together.
    static const SnapTables &get(int twojmax);

    SnapTablesView<T> view() const;

   private:
    explicit SnapTables(int twojmax);
    void add_triple(int j1, int j2, int j);

    int twojmax_;
    std::vector<int32_t> layer_;
    std::vector<T> norm_, cg_, cg_rows_;
    std::vector<SnapTriple> triples_;
};

}  // namespace malax
