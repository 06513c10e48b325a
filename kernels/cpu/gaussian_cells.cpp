#include "gaussian_cells.h"

#include <algorithm>
#include <cmath>

#include "api.h"

namespace malax {

namespace {

double dot(const double *a, const double *b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

void cross(const double *a, const double *b, double *c) {
    for (int d = 0; d < 3; ++d) c[d] = a[(d + 1) % 3] * b[(d + 2) % 3] - a[(d + 2) % 3] * b[(d + 1) % 3];
}

int64_t floor_divide(int64_t a, int64_t b) { return a / b - (a % b < 0); }

}  // namespace

CellFrame::CellFrame(const double *cell) {
    double scale = 1;
    for (int d = 0; d < 3; ++d) {
        cross(cell + 3 * ((d + 1) % 3), cell + 3 * ((d + 2) % 3), inverse + 3 * d);
        scale *= std::sqrt(dot(cell + 3 * d, cell + 3 * d));
    }
    const double volume = dot(cell, inverse);
    require(std::isfinite(volume) && std::fabs(volume) > 1e-12 * scale, "the cell is degenerate");
    for (int i = 0; i < 9; ++i) inverse[i] /= volume;
    for (int d = 0; d < 3; ++d) height[d] = 1 / std::sqrt(dot(inverse + 3 * d, inverse + 3 * d));
    // e3 along the third vector, e1 along the first reciprocal vector, which is normal to the other two
    const double length = std::sqrt(dot(cell + 6, cell + 6));
    for (int d = 0; d < 3; ++d) {
        axes[6 + d] = cell[6 + d] / length;
        axes[d] = inverse[d] * height[0];
    }
    cross(axes + 6, axes, axes + 3);
    if (dot(axes + 3, cell + 3) < 0) {
        for (int d = 0; d < 3; ++d) axes[3 + d] = -axes[3 + d];
    }
    for (int v = 0; v < 3; ++v) {
        to_frame(cell + 3 * v, vectors + 3 * v);
        // what is zero by construction, or would be for a cell with right angles
        const double tiny = 1e-13 * std::sqrt(dot(cell + 3 * v, cell + 3 * v));
        for (int d = 0; d < 3; ++d) {
            if (d < v || std::fabs(vectors[3 * v + d]) < tiny) vectors[3 * v + d] = 0;
        }
    }
}

void CellFrame::to_frame(const double *x, double *y) const {
    for (int d = 0; d < 3; ++d) y[d] = dot(axes + 3 * d, x);
}

void CellFrame::fractional(const double *x, double *f) const {
    for (int d = 0; d < 3; ++d) f[d] = dot(inverse + 3 * d, x);
}

GridSteps CellFrame::steps(const int32_t *shape) const {
    const double *v = vectors;
    return {v[0] / shape[0], v[1] / shape[0], v[2] / shape[0], v[4] / shape[1], v[5] / shape[1], v[8] / shape[2]};
}

GaussianCells::GaussianCells(const malax_atoms &atoms, int32_t type, double cutoff, const CellFrame &frame)
    : frame_(frame), cutoff_(cutoff) {
    for (int d = 0; d < 3; ++d) {
        periodic_[d] = atoms.periodic[d] != 0;
        margin_[d] = cutoff / frame.height[d];
    }
    std::vector<Atom> mine;
    for (int64_t i = 0; i < atoms.n_atoms; ++i) {
        if (atoms.types[i] != type) continue;
        Atom atom;
        atom.number = i;
        double x[3];
        std::copy_n(atoms.positions + 3 * i, 3, x);
        frame.fractional(x, atom.fraction);
        bool near = true;
        for (int d = 0; d < 3; ++d) {
            double &f = atom.fraction[d];
            if (periodic_[d]) {
                const double cells = std::floor(f);
                f -= cells;
                for (int c = 0; c < 3; ++c) x[c] -= cells * atoms.cell[3 * d + c];
            }
            // the grid fills the cell: an atom far outside of an open one touches no point
            near = near && (periodic_[d] || (f > -margin_[d] - 1e-9 && f < 1 + margin_[d] + 1e-9));
        }
        frame.to_frame(x, atom.place);
        if (near) mine.push_back(atom);
    }
    choose_bins(mine);
}

void GaussianCells::choose_bins(const std::vector<Atom> &atoms) {
    double volume = 1, length[3];
    for (int d = 0; d < 3; ++d) {
        low_[d] = periodic_[d] ? 0 : -margin_[d] - 1e-9;
        width_[d] = periodic_[d] ? 1 : 1 + 2 * (margin_[d] + 1e-9);
        length[d] = width_[d] * frame_.height[d];
        volume *= length[d];
    }
    // bins of half the cutoff, but not many more bins than atoms
    const double edge = std::max(cutoff_ / 2, std::cbrt(volume / double(atoms.size() + 1)));
    double images = double(atoms.size());  // those in a box around one sphere, which a tile lists
    for (int d = 0; d < 3; ++d) {
        bins_[d] = std::max<int64_t>(1, int64_t(std::min(length[d] / edge, 1024.0)));
        width_[d] /= double(bins_[d]);
        if (periodic_[d]) images *= 2 * margin_[d];
    }
    require(images < 3e7, "too many neighbours for one call: the cutoff is very large for this cell");
    std::vector<int64_t> bin_of(atoms.size());
    start_.assign(size_t(bins_[0] * bins_[1] * bins_[2]) + 1, 0);
    for (size_t i = 0; i < atoms.size(); ++i) {
        const double *f = atoms[i].fraction;
        int64_t b[3];
        for (int d = 0; d < 3; ++d) b[d] = std::min(std::max<int64_t>(bin(d, f[d]), 0), bins_[d] - 1);
        bin_of[i] = (b[0] * bins_[1] + b[1]) * bins_[2] + b[2];
        ++start_[bin_of[i] + 1];
    }
    for (size_t b = 1; b < start_.size(); ++b) start_[b] += start_[b - 1];
    atoms_.resize(atoms.size());
    std::vector<int64_t> next(start_.begin(), start_.end() - 1);
    for (size_t i = 0; i < atoms.size(); ++i) atoms_[next[bin_of[i]]++] = atoms[i];
}

int64_t GaussianCells::bin(int axis, double fraction) const {
    return int64_t(std::floor((fraction - low_[axis]) / width_[axis]));
}

void GaussianCells::around(const TileRegion &region, std::vector<int64_t> &atoms, std::vector<double> &from) const {
    atoms.clear();
    from.clear();
    int64_t first[3], last[3], b[3], cell[3], local[3];
    for (int d = 0; d < 3; ++d) {
        // a hair more, so that none is lost to rounding
        first[d] = bin(d, region.low[d] - margin_[d] - 1e-9);
        last[d] = bin(d, region.high[d] + margin_[d] + 1e-9);
        if (!periodic_[d]) {
            first[d] = std::max<int64_t>(first[d], 0);
            last[d] = std::min(last[d], bins_[d] - 1);
        }
    }
    for (b[0] = first[0]; b[0] <= last[0]; ++b[0]) {
        for (b[1] = first[1]; b[1] <= last[1]; ++b[1]) {
            for (b[2] = first[2]; b[2] <= last[2]; ++b[2]) {
                for (int d = 0; d < 3; ++d) {
                    cell[d] = floor_divide(b[d], bins_[d]);
                    local[d] = b[d] - cell[d] * bins_[d];
                }
                add_bin(cell, size_t((local[0] * bins_[1] + local[1]) * bins_[2] + local[2]), region, atoms, from);
            }
        }
    }
}

void GaussianCells::add_bin(const int64_t *cell, size_t bin, const TileRegion &region, std::vector<int64_t> &atoms,
                            std::vector<double> &from) const {
    double shifted[3];
    for (int d = 0; d < 3; ++d) {
        shifted[d] = region.first[d];
        for (int v = 0; v < 3; ++v) shifted[d] -= double(cell[v]) * frame_.vectors[3 * v + d];
    }
    for (int64_t i = start_[bin]; i < start_[bin + 1]; ++i) {
        const Atom &atom = atoms_[i];
        double vector[3], squared = 0;
        for (int d = 0; d < 3; ++d) {
            vector[d] = shifted[d] - atom.place[d];
            // the image is at -vector from the region's first point
            const double outside =
                std::max({region.frame_low[d] + vector[d], 0.0, -vector[d] - region.frame_high[d]});
            squared += outside * outside;
        }
        if (squared > cutoff_ * cutoff_) continue;
        atoms.push_back(atom.number);
        from.insert(from.end(), vector, vector + 3);
    }
}

}  // namespace malax
