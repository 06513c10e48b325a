#include "neighbours.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "api.h"

namespace malax {

namespace {

struct Image {
    int64_t cell[3];
    int64_t atom;
    double x[3];

    bool operator<(const Image &other) const {
        for (int d = 0; d < 3; ++d) {
            if (cell[d] != other.cell[d]) return cell[d] < other.cell[d];
        }
        return atom < other.atom;
    }
};

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

// All images inside the box of atom i: cell numbers are absolute and count from the atom moved into the cell.
void add_images(const malax_atoms &atoms, int64_t i, const double *reciprocal, const Box &box, const double *low,
                const double *high, std::vector<Image> &images) {
    Image image;
    image.atom = i;
    double base[3];
    int64_t first[3], last[3];
    for (int d = 0; d < 3; ++d) base[d] = atoms.positions[3 * i + d];
    for (int d = 0; d < 3; ++d) {
        first[d] = last[d] = 0;
        if (!atoms.periodic[d]) continue;
        const double *r = reciprocal + 3 * d, *x = atoms.positions + 3 * i;
        const double fraction = r[0] * x[0] + r[1] * x[1] + r[2] * x[2];
        const double wrapped = fraction - std::floor(fraction);
        for (int c = 0; c < 3; ++c) base[c] -= std::floor(fraction) * atoms.cell[3 * d + c];
        first[d] = int64_t(std::floor(low[d] - wrapped));
        last[d] = int64_t(std::ceil(high[d] - wrapped));
    }
    for (image.cell[0] = first[0]; image.cell[0] <= last[0]; ++image.cell[0]) {
        for (image.cell[1] = first[1]; image.cell[1] <= last[1]; ++image.cell[1]) {
            for (image.cell[2] = first[2]; image.cell[2] <= last[2]; ++image.cell[2]) {
                for (int c = 0; c < 3; ++c) {
                    image.x[c] = base[c] + double(image.cell[0]) * atoms.cell[c] +
                                 double(image.cell[1]) * atoms.cell[3 + c] + double(image.cell[2]) * atoms.cell[6 + c];
                }
                if (inside(box, image.x)) images.push_back(image);
            }
        }
    }
}

}  // namespace

Neighbours::Neighbours(const malax_atoms &atoms, const double *type_weights, double cutoff, const Box &box)
    : cutoff_(cutoff), region_(box) {
    double reciprocal[9], low[3], high[3];
    invert(atoms.cell, reciprocal);
    for (int d = 0; d < 3; ++d) {
        const double margin = cutoff * (1 + 1e-9);  // no neighbour is lost to rounding
        region_.low[d] -= margin;
        region_.high[d] += margin;
    }
    fractional_range(reciprocal, region_, low, high);
    std::vector<Image> images;
    for (int64_t i = 0; i < atoms.n_atoms; ++i) {
        add_images(atoms, i, reciprocal, region_, low, high, images);
    }
    require(images.size() < size_t(std::numeric_limits<int32_t>::max()), "too many neighbours for one call");
    std::sort(images.begin(), images.end());
    images_.reserve(4 * images.size());
    for (const Image &image : images) {
        images_.insert(images_.end(), image.x, image.x + 3);
        images_.push_back(type_weights[atoms.types[image.atom]]);
    }
    sort_into_bins();
}

int Neighbours::bin(int axis, double x) const {
    const double i = std::floor((x - region_.low[axis]) / bin_size_[axis]);
    return int(std::min(std::max(i, 0.0), double(bins_[axis] - 1)));
}

void Neighbours::sort_into_bins() {
    const int64_t n = int64_t(images_.size()) / 4;
    // bins of a third of the cutoff, but not many more bins than images
    double edge = cutoff_ / 3, volume = 1;
    for (int d = 0; d < 3; ++d) volume *= region_.high[d] - region_.low[d];
    edge = std::max(edge, std::cbrt(volume / double(2 * n + 64)));
    for (int d = 0; d < 3; ++d) {
        const double length = region_.high[d] - region_.low[d];
        bins_[d] = std::max(1, int(length / edge));
        bin_size_[d] = length / bins_[d];
    }
    std::vector<int32_t> bin_of(n);
    bin_start_.assign(size_t(bins_[0]) * bins_[1] * bins_[2] + 1, 0);
    for (int64_t i = 0; i < n; ++i) {
        const double *x = &images_[4 * i];
        bin_of[i] = int32_t((bin(0, x[0]) * bins_[1] + bin(1, x[1])) * bins_[2] + bin(2, x[2]));
        ++bin_start_[bin_of[i] + 1];
    }
    for (size_t b = 1; b < bin_start_.size(); ++b) bin_start_[b] += bin_start_[b - 1];
    binned_.resize(n);
    std::vector<int32_t> next(bin_start_.begin(), bin_start_.end() - 1);
    for (int64_t i = 0; i < n; ++i) binned_[next[bin_of[i]]++] = int32_t(i);
}

void Neighbours::around(const Box &box, std::vector<int32_t> &list) const {
    list.clear();
    int first[3], last[3];
    for (int d = 0; d < 3; ++d) {
        first[d] = bin(d, box.low[d] - cutoff_);
        last[d] = bin(d, box.high[d] + cutoff_);
    }
    const double limit = cutoff_ * cutoff_ * (1 + 1e-9);
    for (int i = first[0]; i <= last[0]; ++i) {
        for (int j = first[1]; j <= last[1]; ++j) {
            const size_t row = (size_t(i) * bins_[1] + j) * bins_[2];
            for (int32_t k = bin_start_[row + first[2]]; k < bin_start_[row + last[2] + 1]; ++k) {
                const double *x = &images_[4 * size_t(binned_[k])];
                double squared = 0;
                for (int d = 0; d < 3; ++d) {
                    const double outside = std::max({box.low[d] - x[d], 0.0, x[d] - box.high[d]});
                    squared += outside * outside;
                }
                if (squared <= limit) list.push_back(binned_[k]);
            }
        }
    }
    std::sort(list.begin(), list.end());
}

}  // namespace malax
