#include "atom_bins.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "api.h"

namespace malax {

namespace {

constexpr double ATOMS_PER_BIN = 4;
// fractional coordinates are compared with this margin; what is inside a box is decided by positions
constexpr double MARGIN = 1e-6;

// Rows of the result are the reciprocal vectors: fractional coordinate d of x is reciprocal[d] . x
void invert(const double *cell, double *reciprocal) {
    double volume = 0, scale = 1;
    for (int d = 0; d < 3; ++d) {
        const double *u = cell + 3 * ((d + 1) % 3), *v = cell + 3 * ((d + 2) % 3);
        double *r = reciprocal + 3 * d;
        r[0] = u[1] * v[2] - u[2] * v[1];
        r[1] = u[2] * v[0] - u[0] * v[2];
        r[2] = u[0] * v[1] - u[1] * v[0];
        const double *a = cell + 3 * d;
        volume = a[0] * r[0] + a[1] * r[1] + a[2] * r[2];
        scale *= std::sqrt(a[0] * a[0] + a[1] * a[1] + a[2] * a[2]);
    }
    require(std::isfinite(volume) && std::fabs(volume) > 1e-12 * scale, "the cell is degenerate");
    for (int i = 0; i < 9; ++i) reciprocal[i] /= volume;
}

// The range of each fractional coordinate over a box.
void fractional_range(const double *reciprocal, const Box &box, double *low, double *high) {
    for (int d = 0; d < 3; ++d) {
        low[d] = high[d] = 0;
        for (int c = 0; c < 3; ++c) {
            const double a = reciprocal[3 * d + c] * box.low[c], b = reciprocal[3 * d + c] * box.high[c];
            low[d] += std::min(a, b);
            high[d] += std::max(a, b);
        }
    }
}

bool inside(const Box &box, const double *x) {
    for (int d = 0; d < 3; ++d) {
        if (x[d] < box.low[d] || x[d] > box.high[d]) return false;
    }
    return true;
}

}  // namespace

bool Image::operator<(const Image &other) const {
    for (int d = 0; d < 3; ++d) {
        if (cell[d] != other.cell[d]) return cell[d] < other.cell[d];
    }
    return atom < other.atom;
}

AtomBins::AtomBins(const malax_atoms &atoms) {
    require(atoms.n_atoms < std::numeric_limits<int32_t>::max(), "too many atoms");
    for (int i = 0; i < 9; ++i) cell_[i] = atoms.cell[i];
    for (int d = 0; d < 3; ++d) periodic_[d] = atoms.periodic[d] != 0;
    invert(cell_, reciprocal_);
    const size_t n = size_t(atoms.n_atoms);
    std::vector<double> fractions(3 * n);
    base_.resize(3 * n);
    for (size_t i = 0; i < n; ++i) {
        const double *x = atoms.positions + 3 * i;
        for (int d = 0; d < 3; ++d) {
            require(std::isfinite(x[d]), "a position is not finite");
            base_[3 * i + d] = x[d];
        }
        for (int d = 0; d < 3; ++d) {
            const double *r = reciprocal_ + 3 * d;
            const double fraction = r[0] * x[0] + r[1] * x[1] + r[2] * x[2];
            fractions[3 * i + d] = fraction;
            if (!periodic_[d]) continue;
            fractions[3 * i + d] -= std::floor(fraction);
            for (int c = 0; c < 3; ++c) base_[3 * i + c] -= std::floor(fraction) * cell_[3 * d + c];
        }
    }
    sort(fractions);
}

// Bins of about equal edges, ATOMS_PER_BIN atoms each on average.
void AtomBins::sort(const std::vector<double> &fractions) {
    const size_t n = fractions.size() / 3;
    double edges[3], volume = 1;
    for (int d = 0; d < 3; ++d) {
        low_[d] = 0;
        span_[d] = 1;
        if (!periodic_[d]) {
            double high = low_[d] = fractions[d];
            for (size_t i = 1; i < n; ++i) {
                low_[d] = std::min(low_[d], fractions[3 * i + d]);
                high = std::max(high, fractions[3 * i + d]);
            }
            span_[d] = std::max(high - low_[d], MARGIN);
        }
        const double *r = reciprocal_ + 3 * d;
        edges[d] = span_[d] / std::sqrt(r[0] * r[0] + r[1] * r[1] + r[2] * r[2]);
        volume *= edges[d];
    }
    const double edge = std::cbrt(volume * ATOMS_PER_BIN / double(n));
    for (int d = 0; d < 3; ++d) bins_[d] = int(std::min(std::max(1.0, edges[d] / edge), double(n)));
    // flat or long structures: never many more bins than atoms
    while (double(bins_[0]) * bins_[1] * bins_[2] > 2.0 * double(n) + 8) {
        int *most = std::max_element(bins_, bins_ + 3);
        *most = (*most + 1) / 2;
    }
    std::vector<int32_t> bin_of(n);
    start_.assign(size_t(bins_[0]) * bins_[1] * bins_[2] + 1, 0);
    for (size_t i = 0; i < n; ++i) {
        const double *f = &fractions[3 * i];
        bin_of[i] = int32_t((bin(0, f[0]) * bins_[1] + bin(1, f[1])) * bins_[2] + bin(2, f[2]));
        ++start_[bin_of[i] + 1];
    }
    for (size_t b = 1; b < start_.size(); ++b) start_[b] += start_[b - 1];
    std::vector<int64_t> next(start_.begin(), start_.end() - 1);
    std::vector<double> sorted(3 * n);
    atom_.resize(n);
    for (size_t i = 0; i < n; ++i) {
        const int64_t to = next[bin_of[i]]++;
        atom_[to] = int32_t(i);
        for (int d = 0; d < 3; ++d) sorted[3 * to + d] = base_[3 * i + d];
    }
    base_.swap(sorted);
}

int AtomBins::bin(int axis, double fraction) const {
    const double i = std::floor((fraction - low_[axis]) / span_[axis] * bins_[axis]);
    return int(std::min(std::max(i, 0.0), double(bins_[axis] - 1)));
}

std::vector<AtomBins::Range> AtomBins::ranges(int axis, double low, double high) const {
    low -= MARGIN;
    high += MARGIN;
    std::vector<Range> list;
    if (!periodic_[axis]) {
        if (high < low_[axis] || low > low_[axis] + span_[axis]) return list;
        return {{0, bin(axis, low), bin(axis, high)}};
    }
    for (double cell = std::floor(low); cell <= std::floor(high); ++cell) {
        list.push_back({int64_t(cell), bin(axis, low - cell), bin(axis, high - cell)});
    }
    return list;
}

void AtomBins::add(const Range *range, const Box &box, std::vector<Image> &images) const {
    Image image;
    for (int d = 0; d < 3; ++d) image.cell[d] = range[d].cell;
    for (int i = range[0].first; i <= range[0].last; ++i) {
        for (int j = range[1].first; j <= range[1].last; ++j) {
            const size_t row = (size_t(i) * bins_[1] + j) * bins_[2];
            for (int64_t k = start_[row + range[2].first]; k < start_[row + range[2].last + 1]; ++k) {
                for (int c = 0; c < 3; ++c) {
                    image.x[c] = base_[3 * k + c] + double(image.cell[0]) * cell_[c] +
                                 double(image.cell[1]) * cell_[3 + c] + double(image.cell[2]) * cell_[6 + c];
                }
                image.atom = atom_[k];
                if (inside(box, image.x)) images.push_back(image);
            }
        }
    }
}

std::vector<Image> AtomBins::images_in(const Box &box) const {
    double low[3], high[3];
    fractional_range(reciprocal_, box, low, high);
    std::vector<Range> axes[3];
    double cells = 1;
    for (int d = 0; d < 3; ++d) {
        require(std::isfinite(low[d]) && std::isfinite(high[d]) && std::fabs(low[d]) < 1e15 && std::fabs(high[d]) < 1e15,
                "a point is too far from the cell");
        if (periodic_[d]) cells *= high[d] - low[d] + 2;
        require(!periodic_[d] || high[d] - low[d] < 1e7, "too many neighbours for one call");
        axes[d] = ranges(d, low[d], high[d]);
    }
    require(cells < 1e9, "too many neighbours for one call");
    std::vector<Image> images;
    for (const Range &a : axes[0]) {
        for (const Range &b : axes[1]) {
            for (const Range &c : axes[2]) {
                const Range range[3] = {a, b, c};
                add(range, box, images);
            }
        }
    }
    require(images.size() < size_t(std::numeric_limits<int32_t>::max()), "too many neighbours for one call");
    std::sort(images.begin(), images.end());
    return images;
}

}  // namespace malax

int malax_structure_create(const malax_atoms *atoms, malax_structure **out) {
    return malax::guarded([&] {
        malax::require(atoms && out, "null pointer");
        malax::require(atoms->n_atoms > 0 && atoms->positions && atoms->cell, "at least one atom is needed");
        *out = new malax_structure(*atoms);
    });
}

void malax_structure_destroy(malax_structure *structure) { delete structure; }
