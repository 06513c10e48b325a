// Gaussians on a grid on the CPU: tiles of the whole grid -> images around a tile -> inner loops of one ISA level;
// and the adjoint. Tiles are always cut from the whole grid, so a value does not depend on the range asked for.
#include <algorithm>
#include <atomic>

#include "api.h"
#include "gaussian.h"
#include "gaussian_cells.h"
#include "isa.h"
#include "threads.h"

namespace malax {

namespace {

constexpr int64_t WINDOW = 64;  // tiles in flight per thread of the adjoint

// One tile: its first point, its size, and which of its rows hold points of the range.
template <class T>
struct Tile {
    static constexpr int ROWS = GaussianTileSize<T>::rows;
    int32_t first[3], n[3];
    int32_t first_row[ROWS], last_row[ROWS];
};

// What one thread writes to while it works on a tile.
template <class T>
struct Workspace {
    Workspace() : values(size_t(Tile<T>::ROWS) * Tile<T>::ROWS * GAUSSIAN_K) {}

    AlignedArray<T> values;
    std::vector<int64_t> atoms;
    std::vector<double> from;
};

// The derivatives of one tile: for each type the images around it, and their moments.
struct TileMoments {
    std::vector<int64_t> atoms;
    std::vector<double> moments;
};

template <class T>
class GaussianGrid {
   public:
    GaussianGrid(const malax_atoms &atoms, std::vector<GaussianType> types, const malax_grid &grid,
                 int64_t row_stride)
        : isa_(current_isa().functions<T>()),
          types_(std::move(types)),
          atom_types_(atoms.types),
          grid_(grid),
          row_stride_(row_stride),
          frame_(atoms.cell),
          steps_(frame_.steps(grid.shape)) {
        for (size_t t = 0; t < types_.size(); ++t) cells_.emplace_back(atoms, int32_t(t), reach(types_[t]), frame_);
        const int32_t size[3] = {ROWS, ROWS, GAUSSIAN_K};
        for (int d = 0; d < 3; ++d) tiles_[d] = (grid.shape[d] + size[d] - 1) / size[d];
        // planes of points that lie in the range
        const int64_t plane = int64_t(grid.shape[1]) * grid.shape[2];
        const int64_t per_slab = tiles_[1] * tiles_[2];
        first_tile_ = grid.start / plane / ROWS * per_slab;
        last_tile_ = grid.stop == grid.start ? first_tile_ : ((grid.stop - 1) / plane / ROWS + 1) * per_slab;
    }

    void sum(int threads, T *out) {
        parallel(threads, first_tile_, last_tile_, [&](int64_t index, Workspace<T> &space) {
            Tile<T> tile;
            if (!make_tile(index, tile)) return;
            const TileRegion region = region_of(tile);
            for (size_t t = 0; t < types_.size(); ++t) {
                std::fill_n(space.values.data(), size_t(tile.n[0]) * ROWS * GAUSSIAN_K, T(0));
                const GaussianTile<T> work = prepare(tile, region, t, space);
                if (work.n_images > 0) isa_.gaussian_tile(work);
                for_each_part(tile, [&](int64_t point, int64_t n, T *values) {
                    T *to = out + point * row_stride_ + t;
                    if (row_stride_ == 1) {
                        std::copy_n(values, n, to);
                    } else {
                        for (int64_t k = 0; k < n; ++k) to[k * row_stride_] = values[k];
                    }
                }, space);
            }
        });
    }

    // Windows of tiles at a time: derivatives are added tile by tile, in an order that knows no threads.
    void adjoint(int threads, const T *gradient, double *positions_gradient, double *strain_gradient, int64_t n_atoms) {
        GaussianGradient result;
        result.positions = positions_gradient;
        const int64_t window = WINDOW * threads;
        for (int64_t start = first_tile_; start < last_tile_; start += window) {
            const int64_t end = std::min(last_tile_, start + window);
            std::vector<TileMoments> parts(end - start);
            parallel(threads, start, end, [&](int64_t index, Workspace<T> &space) {
                adjoint_of_tile(index, gradient, space, parts[index - start]);
            });
            for (const TileMoments &part : parts) {
                for (size_t n = 0; n < part.atoms.size(); ++n) {
                    const int64_t atom = part.atoms[n];
                    result.add(atom, types_[atom_types_[atom]], &part.moments[n * GAUSSIAN_MOMENTS]);
                }
            }
        }
        to_cartesian(result, n_atoms, strain_gradient);
    }

   private:
    static constexpr int ROWS = Tile<T>::ROWS;

    template <class F>
    void parallel(int threads, int64_t first, int64_t last, const F &work) {
        if (last <= first) return;
        threads = int(std::min<int64_t>(threads, last - first));
        std::vector<Workspace<T>> spaces(threads);
        std::atomic<bool> failed(false);  // exceptions must not leave a parallel region
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
#endif
        for (int64_t i = first; i < last; ++i) {
            if (guarded([&] { work(i, spaces[thread_index()]); }) != MALAX_OK) failed = true;
        }
        if (failed) throw std::bad_alloc();  // the only thing that can fail there
    }

    // False if the tile holds no point of the range.
    bool make_tile(int64_t index, Tile<T> &tile) const {
        const int64_t place[3] = {index / tiles_[2] / tiles_[1], index / tiles_[2] % tiles_[1], index % tiles_[2]};
        const int32_t size[3] = {ROWS, ROWS, GAUSSIAN_K};
        for (int d = 0; d < 3; ++d) {
            tile.first[d] = int32_t(place[d]) * size[d];
            tile.n[d] = std::min(size[d], grid_.shape[d] - tile.first[d]);
        }
        const int64_t ny = grid_.shape[1], nz = grid_.shape[2];
        // rows of the whole grid: those that hold a point of the range
        const int64_t first = grid_.start / nz, last = (grid_.stop - 1) / nz + 1;
        bool any = false;
        for (int32_t i = 0; i < tile.n[0]; ++i) {
            const int64_t row = (tile.first[0] + i) * ny + tile.first[1];
            tile.first_row[i] = int32_t(std::min<int64_t>(std::max<int64_t>(first - row, 0), tile.n[1]));
            tile.last_row[i] = int32_t(std::min<int64_t>(std::max<int64_t>(last - row, 0), tile.n[1]));
            any = any || tile.first_row[i] < tile.last_row[i];
        }
        return any;
    }

    TileRegion region_of(const Tile<T> &tile) const {
        TileRegion region;
        const double *v = frame_.vectors;
        for (int d = 0; d < 3; ++d) {
            region.low[d] = double(tile.first[d]) / grid_.shape[d];
            region.high[d] = double(tile.first[d] + tile.n[d] - 1) / grid_.shape[d];
        }
        for (int d = 0; d < 3; ++d) {
            region.first[d] = region.frame_low[d] = region.frame_high[d] = 0;
            for (int a = 0; a < 3; ++a) {
                region.first[d] += region.low[a] * v[3 * a + d];
                const double extent = (region.high[a] - region.low[a]) * v[3 * a + d];
                (extent < 0 ? region.frame_low[d] : region.frame_high[d]) += extent;
            }
        }
        return region;
    }

    GaussianTile<T> prepare(const Tile<T> &tile, const TileRegion &region, size_t type, Workspace<T> &space) const {
        cells_[type].around(region, space.atoms, space.from);
        GaussianTile<T> work{};
        work.steps = steps_;
        work.type = types_[type];
        std::copy_n(tile.n, 3, work.n);
        work.first_row = tile.first_row;
        work.last_row = tile.last_row;
        work.n_images = int64_t(space.atoms.size());
        work.from = space.from.data();
        work.values = space.values.data();
        return work;
    }

    // Calls visit(first point counted from the range's start, number of points, their place in the tile's values)
    // for the part of each row that lies in the range.
    template <class F>
    void for_each_part(const Tile<T> &tile, const F &visit, Workspace<T> &space) const {
        for (int32_t i = 0; i < tile.n[0]; ++i) {
            for (int32_t j = tile.first_row[i]; j < tile.last_row[i]; ++j) {
                const int64_t row = (int64_t(tile.first[0]) + i) * grid_.shape[1] + tile.first[1] + j;
                const int64_t base = row * grid_.shape[2] + tile.first[2];
                const int64_t low = std::max(base, grid_.start), high = std::min(base + tile.n[2], grid_.stop);
                if (low >= high) continue;
                visit(low - grid_.start, high - low,
                      space.values.data() + (int64_t(i) * ROWS + j) * GAUSSIAN_K + (low - base));
            }
        }
    }

    void adjoint_of_tile(int64_t index, const T *gradient, Workspace<T> &space, TileMoments &part) const {
        Tile<T> tile;
        if (!make_tile(index, tile)) return;
        const TileRegion region = region_of(tile);
        for (size_t t = 0; t < types_.size(); ++t) {
            GaussianTile<T> work = prepare(tile, region, t, space);
            if (work.n_images == 0) continue;
            std::fill_n(space.values.data(), size_t(tile.n[0]) * ROWS * GAUSSIAN_K, T(0));
            for_each_part(tile, [&](int64_t point, int64_t n, T *values) {
                const T *from = gradient + point * row_stride_ + t;
                for (int64_t k = 0; k < n; ++k) values[k] = from[k * row_stride_];
            }, space);
            const size_t before = part.atoms.size();
            part.atoms.insert(part.atoms.end(), space.atoms.begin(), space.atoms.end());
            part.moments.resize(part.atoms.size() * GAUSSIAN_MOMENTS);
            work.moments = part.moments.data() + before * GAUSSIAN_MOMENTS;
            isa_.gaussian_tile_adjoint(work);
        }
    }

    // From the frame of the cell to x, y, z: row vectors times the matrix whose rows are the axes.
    void to_cartesian(GaussianGradient &result, int64_t n_atoms, double *strain) const {
        const double *axes = frame_.axes;
        for (int64_t i = 0; i < n_atoms; ++i) {
            double *g = result.positions + 3 * i;
            const double old[3] = {g[0], g[1], g[2]};
            for (int d = 0; d < 3; ++d) g[d] = old[0] * axes[d] + old[1] * axes[3 + d] + old[2] * axes[6 + d];
        }
        double turned[9];
        result.write_strain(turned);
        for (int c = 0; c < 3; ++c) {
            for (int d = 0; d < 3; ++d) {
                strain[3 * c + d] = 0;
                for (int a = 0; a < 3; ++a) {
                    for (int b = 0; b < 3; ++b) strain[3 * c + d] += axes[3 * a + c] * turned[3 * a + b] * axes[3 * b + d];
                }
            }
        }
    }

    IsaFunctions<T> isa_;
    std::vector<GaussianType> types_;
    const int32_t *atom_types_;
    malax_grid grid_;
    int64_t row_stride_;
    CellFrame frame_;
    GridSteps steps_;
    std::vector<GaussianCells> cells_;
    int64_t tiles_[3], first_tile_, last_tile_;
};

void check_grid(const malax_grid *grid, int64_t row_stride, const malax_gaussian &gaussian, const void *values) {
    require(grid != nullptr, "null pointer");
    int64_t points = 1;
    for (int d = 0; d < 3; ++d) {
        require(grid->shape[d] > 0 && grid->shape[d] <= (1 << 20), "a grid has 1 to 2^20 points along each axis");
        points *= grid->shape[d];
    }
    require(grid->start >= 0 && grid->start <= grid->stop && grid->stop <= points, "the range is not in the grid");
    require(grid->start == grid->stop || values, "null pointer");
    require(row_stride >= gaussian.n_types, "the row stride must be at least the number of types");
}

template <class T>
int sum_on_grid(const malax_atoms *atoms, const malax_gaussian *gaussian, const malax_grid *grid, int32_t threads,
                int64_t row_stride, T *out) {
    return guarded([&] {
        std::vector<GaussianType> types = gaussian_types<T>(atoms, gaussian);
        check_grid(grid, row_stride, *gaussian, out);
        GaussianGrid<T>(*atoms, std::move(types), *grid, row_stride).sum(thread_count(threads), out);
    });
}

template <class T>
int adjoint_on_grid(const malax_atoms *atoms, const malax_gaussian *gaussian, const malax_grid *grid, int32_t threads,
                    int64_t row_stride, const T *gradient, double *positions_gradient, double *strain_gradient) {
    return guarded([&] {
        std::vector<GaussianType> types = gaussian_types<T>(atoms, gaussian);
        check_grid(grid, row_stride, *gaussian, gradient);
        require(positions_gradient && strain_gradient, "null pointer");
        std::fill(positions_gradient, positions_gradient + 3 * atoms->n_atoms, 0.0);
        GaussianGrid<T>(*atoms, std::move(types), *grid, row_stride)
            .adjoint(thread_count(threads), gradient, positions_gradient, strain_gradient, atoms->n_atoms);
    });
}

}  // namespace

}  // namespace malax

int malax_gaussian_grid_f64(const malax_atoms *atoms, const malax_gaussian *gaussian, const malax_grid *grid,
                            int32_t threads, int64_t row_stride, double *out) {
    return malax::sum_on_grid(atoms, gaussian, grid, threads, row_stride, out);
}

int malax_gaussian_grid_f32(const malax_atoms *atoms, const malax_gaussian *gaussian, const malax_grid *grid,
                            int32_t threads, int64_t row_stride, float *out) {
    return malax::sum_on_grid(atoms, gaussian, grid, threads, row_stride, out);
}

int malax_gaussian_grid_adjoint_f64(const malax_atoms *atoms, const malax_gaussian *gaussian, const malax_grid *grid,
                                    int32_t threads, int64_t row_stride, const double *gradient,
                                    double *positions_gradient, double *strain_gradient) {
    return malax::adjoint_on_grid(atoms, gaussian, grid, threads, row_stride, gradient, positions_gradient,
                                  strain_gradient);
}

int malax_gaussian_grid_adjoint_f32(const malax_atoms *atoms, const malax_gaussian *gaussian, const malax_grid *grid,
                                    int32_t threads, int64_t row_stride, const float *gradient,
                                    double *positions_gradient, double *strain_gradient) {
    return malax::adjoint_on_grid(atoms, gaussian, grid, threads, row_stride, gradient, positions_gradient,
                                  strain_gradient);
}
