#include "neighbours.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "atom_bins.h"

namespace malax {

Neighbours::Neighbours(const malax_atoms &atoms, const double *type_weights, double cutoff, const Box &box)
    : cutoff_(cutoff), region_(box) {
    for (int d = 0; d < 3; ++d) {
        const double margin = cutoff * (1 + 1e-9);  // no neighbour is lost to rounding
        region_.low[d] -= margin;
        region_.high[d] += margin;
    }
    const std::vector<Image> images =
        atoms.prepared ? atoms.prepared->bins.images_in(region_) : AtomBins(atoms).images_in(region_);
    images_.reserve(4 * images.size());
    atoms_.reserve(images.size());
    for (const Image &image : images) {
        images_.insert(images_.end(), image.x, image.x + 3);
        images_.push_back(type_weights[atoms.types[image.atom]]);
        atoms_.push_back(int32_t(image.atom));
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
