// Gaussians at a list of points on the CPU: points -> compact blocks -> neighbour lists -> inner loops of one ISA
// level; and the adjoint.
#include "gaussian.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <numeric>

#include "api.h"
#include "blocks.h"
#include "gaussian_cells.h"
#include "isa.h"
#include "neighbours.h"
#include "threads.h"

namespace malax {

template <class T>
std::vector<GaussianType> gaussian_types(const malax_atoms *atoms, const malax_gaussian *gaussian) {
    require(atoms && gaussian, "null pointer");
    require(atoms->n_atoms > 0 && atoms->positions && atoms->types && atoms->cell, "at least one atom is needed");
    require(gaussian->n_types > 0 && gaussian->sigma && gaussian->cutoff && gaussian->weights,
            "at least one type is needed");
    // Beyond these exponents a term is 4e-18 (float) or 1e-147 (double) of its peak: left out, so that no product
    // of two exponentials leaves the range of normal numbers
    const double largest_exponent = sizeof(T) == 4 ? 40 : 340;
    const double pi = 3.14159265358979323846;
    std::vector<GaussianType> types(gaussian->n_types);
    for (int32_t t = 0; t < gaussian->n_types; ++t) {
        const double sigma = gaussian->sigma[t], cutoff = gaussian->cutoff[t];
        require(sigma >= 1e-6 && sigma <= 1e6, "sigma must be 1e-6 to 1e6 A");
        require(std::isfinite(cutoff) && cutoff > 0, "the cutoff must be positive");
        require(std::isfinite(gaussian->weights[t]), "a weight is not finite");
        types[t].alpha = 1 / (2 * sigma * sigma);
        types[t].scale = gaussian->weights[t] / std::pow(sigma * std::sqrt(2 * pi), 3);
        // an atom exactly at the cutoff is outside, however its distance is rounded
        const double inside = std::min(cutoff, std::sqrt(largest_exponent / types[t].alpha)) * (1 - 1e-10);
        types[t].cutoff_squared = inside * inside;
    }
    for (int64_t i = 0; i < atoms->n_atoms; ++i) {
        require(atoms->types[i] >= 0 && atoms->types[i] < gaussian->n_types, "an atom's type is out of range");
        for (int d = 0; d < 3; ++d) require(std::isfinite(atoms->positions[3 * i + d]), "a position is not finite");
    }
    return types;
}

template std::vector<GaussianType> gaussian_types<float>(const malax_atoms *, const malax_gaussian *);
template std::vector<GaussianType> gaussian_types<double>(const malax_atoms *, const malax_gaussian *);

namespace {

constexpr int64_t GROUP = 32;   // blocks whose derivatives one thread gathers before they are added in order
constexpr int64_t WINDOW = 16;  // groups in flight per thread

double largest_reach(const std::vector<GaussianType> &types) {
    double largest = 0;
    for (const GaussianType &type : types) largest = std::max(largest, reach(type));
    return largest;
}

// The images around a set of points. Each atom is a type of its own with its number as weight, so that an image
// tells which atom it is.
Neighbours numbered_images(malax_atoms atoms, double cutoff, const Box &box) {
    require(atoms.n_atoms < std::numeric_limits<int32_t>::max(), "too many atoms for one call");
    // refused before the images are made: they may be more than memory holds
    const CellFrame frame(atoms.cell);
    double images = double(atoms.n_atoms), diagonal = 0;
    for (int d = 0; d < 3; ++d) diagonal = std::hypot(diagonal, box.high[d] - box.low[d]);
    for (int d = 0; d < 3; ++d) images *= atoms.periodic[d] ? 1 + (2 * cutoff + diagonal) / frame.height[d] : 1;
    require(images < 5e8, "too many neighbours for one call: the cutoff is very large for this cell");
    std::vector<int32_t> numbers(atoms.n_atoms);
    std::iota(numbers.begin(), numbers.end(), 0);
    const std::vector<double> weights(numbers.begin(), numbers.end());
    atoms.types = numbers.data();
    return Neighbours(atoms, weights.data(), cutoff, box);
}

// What one thread writes to while it works on a block.
template <class T>
struct Workspace {
    Workspace(int lanes, size_t n_types) : points(3 * lanes), values(n_types * lanes), points_gradient(3 * lanes) {}

    AlignedArray<double> points;
    AlignedArray<T> values;
    AlignedArray<double> points_gradient;
    std::vector<int32_t> neighbours;
    std::vector<double> moments;
};

// The derivatives of one group of blocks: the images around it, and their moments.
struct Group {
    std::vector<int32_t> images;
    std::vector<double> moments;
};

template <class T>
class GaussianPoints {
   public:
    GaussianPoints(const malax_atoms &atoms, std::vector<GaussianType> types, int64_t n_points, const double *points,
                   int64_t row_stride, int threads)
        : isa_(current_isa().functions<T>()),
          types_(std::move(types)),
          atom_types_(atoms.types),
          n_points_(n_points),
          row_stride_(row_stride),
          points_(points),
          images_(numbered_images(atoms, largest_reach(types_), bounding_box(n_points, points))),
          order_(compact_order(n_points, points, isa_.lanes, threads)),
          blocks_((n_points + isa_.lanes - 1) / isa_.lanes) {}

    void sum(int threads, T *out) {
        parallel(threads, 0, blocks_, [&](int64_t b, Workspace<T> &space) {
            isa_.gaussian_block(block(b, space));
            for (int64_t l = 0; l < points_in(b); ++l) {
                T *row = out + int64_t(point(b, l)) * row_stride_;
                for (size_t t = 0; t < types_.size(); ++t) row[t] = space.values.data()[t * isa_.lanes + l];
            }
        });
    }

    // Windows of groups at a time: derivatives are added group by group, in an order that knows no threads.
    void adjoint(int threads, const T *gradient, GaussianGradient &result, double *points_gradient) {
        const int64_t groups = (blocks_ + GROUP - 1) / GROUP, window = WINDOW * threads;
        for (int64_t start = 0; start < groups; start += window) {
            const int64_t end = std::min(groups, start + window);
            std::vector<Group> parts(end - start);
            parallel(threads, start, end, [&](int64_t g, Workspace<T> &space) {
                adjoint_of_group(g, gradient, space, parts[g - start], points_gradient);
            });
            for (const Group &part : parts) {
                for (size_t n = 0; n < part.images.size(); ++n) {
                    const int64_t atom = int64_t(images_.images()[4 * size_t(part.images[n]) + 3]);
                    result.add(atom, types_[atom_types_[atom]], &part.moments[n * GAUSSIAN_MOMENTS]);
                }
            }
        }
    }

   private:
    int64_t points_in(int64_t b) const { return std::min<int64_t>(isa_.lanes, n_points_ - b * isa_.lanes); }
    uint32_t point(int64_t b, int64_t lane) const {
        return order_[b * isa_.lanes + std::min(lane, points_in(b) - 1)];  // lanes to spare repeat the last point
    }

    template <class F>
    void parallel(int threads, int64_t first, int64_t last, const F &work) {
        threads = int(std::min<int64_t>(threads, last - first));
        std::vector<Workspace<T>> spaces;
        for (int i = 0; i < threads; ++i) spaces.emplace_back(isa_.lanes, types_.size());
        std::atomic<bool> failed(false);  // exceptions must not leave a parallel region
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4)
#endif
        for (int64_t i = first; i < last; ++i) {
            if (guarded([&] { work(i, spaces[thread_index()]); }) != MALAX_OK) failed = true;
        }
        if (failed) throw std::bad_alloc();  // the only thing that can fail there
    }

    Box box_of(int64_t first, int64_t n) const {
        Box box;
        for (int64_t i = 0; i < n; ++i) {
            for (int d = 0; d < 3; ++d) {
                const double x = points_[3 * size_t(order_[first + i]) + d];
                box.low[d] = i == 0 ? x : std::min(box.low[d], x);
                box.high[d] = i == 0 ? x : std::max(box.high[d], x);
            }
        }
        return box;
    }

    GaussianBlock<T> block(int64_t b, Workspace<T> &space) const {
        const int lanes = isa_.lanes;
        for (int d = 0; d < 3; ++d) {
            for (int l = 0; l < lanes; ++l) {
                space.points.data()[d * lanes + l] = points_[3 * size_t(point(b, l)) + d];
            }
        }
        images_.around(box_of(b * lanes, points_in(b)), space.neighbours);
        GaussianBlock<T> work{};
        work.kinds = types_.data();
        work.n_types = int32_t(types_.size());
        work.points = space.points.data();
        work.n_neighbours = int64_t(space.neighbours.size());
        work.neighbours = space.neighbours.data();
        work.images = images_.images();
        work.types = atom_types_;
        work.values = space.values.data();
        work.points_gradient = space.points_gradient.data();
        return work;
    }

    void adjoint_of_group(int64_t g, const T *gradient, Workspace<T> &space, Group &part, double *points_gradient) {
        const int64_t lanes = isa_.lanes, first = g * GROUP, last = std::min(blocks_, first + GROUP);
        images_.around(box_of(first * lanes, std::min(last * lanes, n_points_) - first * lanes), part.images);
        part.moments.assign(part.images.size() * GAUSSIAN_MOMENTS, 0.0);
        for (int64_t b = first; b < last; ++b) {
            GaussianBlock<T> work = block(b, space);
            space.moments.resize(space.neighbours.size() * GAUSSIAN_MOMENTS);
            work.moments = space.moments.data();
            for (int64_t l = 0; l < lanes; ++l) {
                const T *row = gradient + int64_t(point(b, l)) * row_stride_;
                for (size_t t = 0; t < types_.size(); ++t) {
                    space.values.data()[t * lanes + l] = l < points_in(b) ? row[t] : T(0);
                }
            }
            isa_.gaussian_block_adjoint(work);
            // both lists ascend, and a block's is part of its group's
            auto place = part.images.begin();
            for (size_t n = 0; n < space.neighbours.size(); ++n) {
                place = std::lower_bound(place, part.images.end(), space.neighbours[n]);
                double *sum = &part.moments[size_t(place - part.images.begin()) * GAUSSIAN_MOMENTS];
                for (int q = 0; q < GAUSSIAN_MOMENTS; ++q) sum[q] += space.moments[n * GAUSSIAN_MOMENTS + q];
            }
            if (!points_gradient) continue;
            for (int64_t l = 0; l < points_in(b); ++l) {
                for (int d = 0; d < 3; ++d) {
                    points_gradient[3 * size_t(point(b, l)) + d] = space.points_gradient.data()[d * lanes + l];
                }
            }
        }
    }

    IsaFunctions<T> isa_;
    std::vector<GaussianType> types_;
    const int32_t *atom_types_;
    int64_t n_points_, row_stride_;
    const double *points_;
    Neighbours images_;
    std::vector<uint32_t> order_;
    int64_t blocks_;
};

void check_points(int64_t n_points, const double *points, int64_t row_stride, const malax_gaussian &gaussian,
                  const void *values) {
    require(n_points >= 0 && n_points < std::numeric_limits<int32_t>::max(), "too many points for one call");
    require(n_points == 0 || (points && values), "null pointer");
    require(row_stride >= gaussian.n_types, "the row stride must be at least the number of types");
    for (int64_t i = 0; i < 3 * n_points; ++i) require(std::isfinite(points[i]), "a point is not finite");
}

template <class T>
int sum_at_points(const malax_atoms *atoms, const malax_gaussian *gaussian, int64_t n_points, const double *points,
                  int32_t threads, int64_t row_stride, T *out) {
    return guarded([&] {
        std::vector<GaussianType> types = gaussian_types<T>(atoms, gaussian);
        check_points(n_points, points, row_stride, *gaussian, out);
        if (n_points == 0) return;
        const int count = thread_count(threads);
        GaussianPoints<T>(*atoms, std::move(types), n_points, points, row_stride, count).sum(count, out);
    });
}

template <class T>
int adjoint_at_points(const malax_atoms *atoms, const malax_gaussian *gaussian, int64_t n_points,
                      const double *points, int32_t threads, int64_t row_stride, const T *gradient,
                      double *positions_gradient, double *strain_gradient, double *points_gradient) {
    return guarded([&] {
        std::vector<GaussianType> types = gaussian_types<T>(atoms, gaussian);
        check_points(n_points, points, row_stride, *gaussian, gradient);
        require(positions_gradient && strain_gradient, "null pointer");
        GaussianGradient result;
        result.positions = positions_gradient;
        std::fill(positions_gradient, positions_gradient + 3 * atoms->n_atoms, 0.0);
        if (n_points > 0) {
            const int count = thread_count(threads);
            GaussianPoints<T>(*atoms, std::move(types), n_points, points, row_stride, count)
                .adjoint(count, gradient, result, points_gradient);
        }
        result.write_strain(strain_gradient);
    });
}

}  // namespace

}  // namespace malax

int malax_gaussian_f64(const malax_atoms *atoms, const malax_gaussian *gaussian, int64_t n_points,
                       const double *points, int32_t threads, int64_t row_stride, double *out) {
    return malax::sum_at_points(atoms, gaussian, n_points, points, threads, row_stride, out);
}

int malax_gaussian_f32(const malax_atoms *atoms, const malax_gaussian *gaussian, int64_t n_points,
                       const double *points, int32_t threads, int64_t row_stride, float *out) {
    return malax::sum_at_points(atoms, gaussian, n_points, points, threads, row_stride, out);
}

int malax_gaussian_adjoint_f64(const malax_atoms *atoms, const malax_gaussian *gaussian, int64_t n_points,
                               const double *points, int32_t threads, int64_t row_stride, const double *gradient,
                               double *positions_gradient, double *strain_gradient, double *points_gradient) {
    return malax::adjoint_at_points(atoms, gaussian, n_points, points, threads, row_stride, gradient,
                                    positions_gradient, strain_gradient, points_gradient);
}

int malax_gaussian_adjoint_f32(const malax_atoms *atoms, const malax_gaussian *gaussian, int64_t n_points,
                               const double *points, int32_t threads, int64_t row_stride, const float *gradient,
                               double *positions_gradient, double *strain_gradient, double *points_gradient) {
    return malax::adjoint_at_points(atoms, gaussian, n_points, points, threads, row_stride, gradient,
                                    positions_gradient, strain_gradient, points_gradient);
}
