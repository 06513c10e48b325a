// Derivatives of the bispectrum on the CPU: points -> compact blocks -> neighbour lists -> inner loops of one ISA
// level, and from the blocks' sums to the atoms in an order that no number of threads changes.
#include <algorithm>
#include <atomic>
#include <cmath>

#include "api.h"
#include "blocks.h"
#include "isa.h"
#include "memory.h"
#include "neighbours.h"
#include "snap_input.h"
#include "snap_tables.h"
#include "threads.h"

namespace malax {

namespace {

constexpr int64_t WINDOW = 32;  // blocks whose sums are held at a time (per thread)

// What one thread writes to while it works on a block.
template <class T>
struct Workspace {
    T *scratch, *features;           // features: dE/dB or dB, (n_features, lanes)
    double *points, *points_change;  // (3, lanes)
    std::vector<int32_t> neighbours;
};

// Points in blocks, with all that the inner loops read.
template <class T>
class Blocks {
   public:
    Blocks(const malax_atoms &atoms, const malax_snap &snap, int64_t n_points, const double *points, int threads)
        : isa(current_isa().functions<T>()),
          tables(SnapTables<T>::get(snap.twojmax).view()),
          constants(snap_constants(snap)),
          neighbours(atoms, snap.weights, snap.cutoff, bounding_box(n_points, points)),
          lanes(isa.lanes),
          count((n_points + lanes - 1) / lanes),
          n_points_(n_points),
          points_(points),
          order_(compact_order(n_points, points, isa.lanes, threads)) {}

    // The workspaces of some threads; valid until the next call.
    std::vector<Workspace<T>> workspaces(int threads, int64_t scratch_per_lane) {
        const size_t scratch = rounded(size_t(lanes * scratch_per_lane));
        const size_t features = rounded(size_t(lanes * tables.n_features)), three = rounded(size_t(3 * lanes));
        memory_ = aligned_array<T>(threads * (scratch + features));
        coordinates_ = aligned_array<double>(threads * 2 * three);
        std::vector<Workspace<T>> spaces(threads);
        for (int i = 0; i < threads; ++i) {
            spaces[i].scratch = memory_.get() + i * (scratch + features);
            spaces[i].features = spaces[i].scratch + scratch;
            spaces[i].points = coordinates_.get() + i * 2 * three;
            spaces[i].points_change = spaces[i].points + three;
        }
        return spaces;
    }

    // How many lanes of block b have a point of their own.
    int64_t size(int64_t b) const { return std::min(lanes, n_points_ - b * lanes); }

    // The index of the point in a lane; lanes without a point of their own repeat the last one.
    size_t point(int64_t b, int64_t lane) const { return order_[b * lanes + std::min(lane, size(b) - 1)]; }

    // Fills in what both derivatives read of block b.
    void prepare(int64_t b, Workspace<T> &space, SnapPoints<T> &work) const {
        Box box;
        for (int d = 0; d < 3; ++d) {
            for (int64_t l = 0; l < lanes; ++l) {
                const double x = points_[3 * point(b, l) + d];
                space.points[d * lanes + l] = x;
                box.low[d] = l == 0 ? x : std::min(box.low[d], x);
                box.high[d] = l == 0 ? x : std::max(box.high[d], x);
            }
        }
        neighbours.around(box, space.neighbours);
        work.tables = &tables;
        work.constants = &constants;
        work.points = space.points;
        work.n_neighbours = int64_t(space.neighbours.size());
        work.neighbours = space.neighbours.data();
        work.images = neighbours.images();
        work.scratch = space.scratch;
    }

    const IsaFunctions<T> isa;
    const SnapTablesView<T> tables;
    const SnapConstants constants;
    const Neighbours neighbours;
    const int64_t lanes, count;

   private:
    const int64_t n_points_;
    const double *points_;
    const std::vector<uint32_t> order_;
    std::unique_ptr<T[], Free> memory_;
    std::unique_ptr<double[], Free> coordinates_;
};

// Values may be null.
template <class T>
void check_finite(int64_t n, const T *values, const char *message) {
    for (int64_t i = 0; values && i < n; ++i) require(std::isfinite(values[i]), message);
}

// The gradient that a block of points gives to the images around it, and to the strain.
struct BlockSums {
    std::vector<int32_t> neighbours;
    std::vector<double> gradient;  // (n_neighbours, 3)
    double strain[9];
};

// Where the sums over all points go. Blocks are added one after the other, in their order; threads share the atoms,
// not the blocks, so that each atom's sum is the same whatever their number.
struct Totals {
    int64_t n_atoms;
    double *atoms, *strain;  // (n_atoms, 3), (3, 3); strain may be null

    void add(const std::vector<BlockSums> &blocks, int64_t n_blocks, const int32_t *atom_of, int threads) const {
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(static, 1)
#endif
        for (int part = 0; part < threads; ++part) {
            const int64_t first = n_atoms * part / threads, last = n_atoms * (part + 1) / threads;
            for (int64_t b = 0; b < n_blocks; ++b) add_block(blocks[b], atom_of, first, last);
        }
        for (int64_t b = 0; strain && b < n_blocks; ++b) {
            for (int k = 0; k < 9; ++k) strain[k] += blocks[b].strain[k];
        }
    }

    void add_block(const BlockSums &block, const int32_t *atom_of, int64_t first, int64_t last) const {
        for (size_t n = 0; n < block.neighbours.size(); ++n) {
            const int64_t atom = atom_of[block.neighbours[n]];
            if (atom < first || atom >= last) continue;
            for (int k = 0; k < 3; ++k) atoms[3 * atom + k] += block.gradient[3 * n + k];
        }
    }
};

template <class T>
void adjoint_block(const Blocks<T> &blocks, int64_t b, const T *gradient, Workspace<T> &space, BlockSums &sums,
                   double *points_out) {
    const int64_t lanes = blocks.lanes, n_features = blocks.tables.n_features;
    SnapAdjointBlock<T> work;
    blocks.prepare(b, space, work);
    for (int64_t l = 0; l < lanes; ++l) {
        const T *row = gradient + blocks.point(b, l) * n_features;
        for (int64_t f = 0; f < n_features; ++f) space.features[f * lanes + l] = l < blocks.size(b) ? row[f] : T(0);
    }
    sums.neighbours = space.neighbours;
    sums.gradient.resize(3 * space.neighbours.size());
    work.gradient = space.features;
    work.neighbours_out = sums.gradient.data();
    work.points_out = space.points_change;
    work.strain_out = sums.strain;
    blocks.isa.snap_adjoint_block(work);
    for (int64_t l = 0; points_out && l < blocks.size(b); ++l) {
        for (int d = 0; d < 3; ++d) points_out[3 * blocks.point(b, l) + d] = space.points_change[d * lanes + l];
    }
}

template <class T>
int adjoint(const malax_atoms *atoms, const malax_snap *snap, int64_t n_points, const double *points,
            const T *gradient, int32_t threads, double *atoms_out, double *strain_out, double *points_out) {
    return guarded([&] {
        check_snap_input(atoms, snap, n_points, points, gradient != nullptr);
        require(atoms_out, "null pointer");
        check_finite(n_points * snap_features(snap->twojmax), gradient, "a gradient is not finite");
        const Totals totals{atoms->n_atoms, atoms_out, strain_out};
        std::fill(atoms_out, atoms_out + 3 * atoms->n_atoms, 0.0);
        if (strain_out) std::fill(strain_out, strain_out + 9, 0.0);
        if (n_points == 0) return;
        Blocks<T> blocks(*atoms, *snap, n_points, points, thread_count(threads));
        const int count = int(std::min<int64_t>(thread_count(threads), blocks.count));
        auto spaces = blocks.workspaces(count, snap_adjoint_scratch(blocks.tables));
        std::vector<BlockSums> sums(std::min(blocks.count, WINDOW * count));
        std::atomic<bool> failed(false);  // exceptions must not leave a parallel region
        for (int64_t start = 0; start < blocks.count; start += int64_t(sums.size())) {
            const int64_t end = std::min(blocks.count, start + int64_t(sums.size()));
#ifdef _OPENMP
#pragma omp parallel for num_threads(count) schedule(dynamic, 1)
#endif
            for (int64_t b = start; b < end; ++b) {
                const auto work = [&] {
                    adjoint_block(blocks, b, gradient, spaces[thread_index()], sums[b - start], points_out);
                };
                if (guarded(work) != MALAX_OK) failed = true;
            }
            if (failed) throw std::bad_alloc();  // the only thing that can fail in a block
            totals.add(sums, end - start, blocks.neighbours.atoms(), count);
        }
    });
}

template <class T>
void jvp_block(const Blocks<T> &blocks, int64_t b, const double *atoms_change, const double *strain,
               const double *points_change, Workspace<T> &space, T *out) {
    const int64_t lanes = blocks.lanes, n_features = blocks.tables.n_features;
    SnapJvpBlock<T> work;
    blocks.prepare(b, space, work);
    for (int d = 0; d < 3; ++d) {
        for (int64_t l = 0; l < lanes; ++l) {
            space.points_change[d * lanes + l] = points_change ? points_change[3 * blocks.point(b, l) + d] : 0.0;
        }
    }
    work.atoms = blocks.neighbours.atoms();
    work.atoms_change = atoms_change;
    work.strain = strain;
    work.points_change = space.points_change;
    work.out = space.features;
    blocks.isa.snap_jvp_block(work);
    for (int64_t l = 0; l < blocks.size(b); ++l) {
        T *row = out + blocks.point(b, l) * n_features;
        for (int64_t f = 0; f < n_features; ++f) row[f] = space.features[f * lanes + l];
    }
}

template <class T>
int jvp(const malax_atoms *atoms, const malax_snap *snap, int64_t n_points, const double *points,
        const double *atoms_change, const double *strain, const double *points_change, int32_t threads, T *out) {
    return guarded([&] {
        check_snap_input(atoms, snap, n_points, points, out != nullptr);
        check_finite(3 * atoms->n_atoms, atoms_change, "a change of a position is not finite");
        check_finite(9, strain, "the strain is not finite");
        check_finite(3 * n_points, points_change, "a change of a point is not finite");
        if (n_points == 0) return;
        const double none[9] = {};
        Blocks<T> blocks(*atoms, *snap, n_points, points, thread_count(threads));
        const int count = int(std::min<int64_t>(thread_count(threads), blocks.count));
        auto spaces = blocks.workspaces(count, snap_jvp_scratch(blocks.tables));
        std::atomic<bool> failed(false);
#ifdef _OPENMP
#pragma omp parallel for num_threads(count) schedule(dynamic, 4)
#endif
        for (int64_t b = 0; b < blocks.count; ++b) {
            const auto work = [&] {
                jvp_block(blocks, b, atoms_change, strain ? strain : none, points_change, spaces[thread_index()], out);
            };
            if (guarded(work) != MALAX_OK) failed = true;
        }
        if (failed) throw std::bad_alloc();
    });
}

}  // namespace

}  // namespace malax

int malax_bispectrum_adjoint_f64(const malax_atoms *atoms, const malax_snap *snap, int64_t n_points,
                                 const double *points, const double *gradient, int32_t threads, double *atoms_out,
                                 double *strain_out, double *points_out) {
    return malax::adjoint(atoms, snap, n_points, points, gradient, threads, atoms_out, strain_out, points_out);
}

int malax_bispectrum_adjoint_f32(const malax_atoms *atoms, const malax_snap *snap, int64_t n_points,
                                 const double *points, const float *gradient, int32_t threads, double *atoms_out,
                                 double *strain_out, double *points_out) {
    return malax::adjoint(atoms, snap, n_points, points, gradient, threads, atoms_out, strain_out, points_out);
}

int malax_bispectrum_jvp_f64(const malax_atoms *atoms, const malax_snap *snap, int64_t n_points, const double *points,
                             const double *atoms_change, const double *strain, const double *points_change,
                             int32_t threads, double *out) {
    return malax::jvp(atoms, snap, n_points, points, atoms_change, strain, points_change, threads, out);
}

int malax_bispectrum_jvp_f32(const malax_atoms *atoms, const malax_snap *snap, int64_t n_points, const double *points,
                             const double *atoms_change, const double *strain, const double *points_change,
                             int32_t threads, float *out) {
    return malax::jvp(atoms, snap, n_points, points, atoms_change, strain, points_change, threads, out);
}
