// The bispectrum on the CPU: points -> compact blocks -> neighbour lists -> inner loops of one ISA level.
#include <algorithm>
#include <atomic>
#include <chrono>

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

double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Stages of malax_bispectrum_stages_*.
enum Stage { SORTING, LISTS, SUMS, INVARIANTS, WRITING };

// What one thread writes to while it works on a block.
template <class T>
struct Workspace {
    T *scratch, *features;
    double *points;
    std::vector<int32_t> neighbours;
};

template <class T>
class Bispectrum {
   public:
    Bispectrum(const malax_atoms &atoms, const malax_snap &snap, int64_t n_points, const double *points, int threads)
        : isa_(current_isa().functions<T>()),
          tables_(SnapTables<T>::get(snap.twojmax).view()),
          constants_(snap_constants(snap)),
          n_points_(n_points),
          points_(points),
          neighbours_(atoms, snap.weights, snap.cutoff, bounding_box(n_points, points)),
          order_(compact_order(n_points, points, isa_.lanes, threads)) {}

    // seconds: null, or what the stages of the blocks need is added to it (one thread only)
    void run(int threads, int64_t row_stride, T *out, double *seconds) {
        const int64_t lanes = isa_.lanes, blocks = (n_points_ + lanes - 1) / lanes;
        const size_t scratch = rounded(size_t(lanes * snap_scratch(tables_)));
        const size_t features = rounded(size_t(lanes * tables_.n_features));
        threads = int(std::min<int64_t>(threads, blocks));
        const auto memory = aligned_array<T>(threads * (scratch + features));
        const auto coordinates = aligned_array<double>(threads * rounded(3 * lanes));
        std::vector<Workspace<T>> spaces(threads);
        for (int i = 0; i < threads; ++i) {
            spaces[i].scratch = memory.get() + i * (scratch + features);
            spaces[i].features = spaces[i].scratch + scratch;
            spaces[i].points = coordinates.get() + i * rounded(3 * lanes);
        }
        std::atomic<bool> failed(false);  // exceptions must not leave a parallel region
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4)
#endif
        for (int64_t b = 0; b < blocks; ++b) {
            if (guarded([&] { block(b, spaces[thread_index()], row_stride, out, seconds); }) != MALAX_OK) failed = true;
        }
        if (failed) throw std::bad_alloc();  // the only thing that can fail in a block
    }

   private:
    void block(int64_t b, Workspace<T> &space, int64_t row_stride, T *out, double *seconds) const {
        const double start = seconds ? now() : 0;
        const int64_t lanes = isa_.lanes, first = b * lanes, n = std::min(lanes, n_points_ - first);
        Box box;
        for (int d = 0; d < 3; ++d) {
            for (int64_t l = 0; l < lanes; ++l) {
                // lanes without a point of their own repeat the last one
                const double x = points_[3 * size_t(order_[first + std::min(l, n - 1)]) + d];
                space.points[d * lanes + l] = x;
                box.low[d] = l == 0 ? x : std::min(box.low[d], x);
                box.high[d] = l == 0 ? x : std::max(box.high[d], x);
            }
        }
        neighbours_.around(box, space.neighbours);
        SnapBlock<T> work;
        work.tables = &tables_;
        work.constants = &constants_;
        work.points = space.points;
        work.n_neighbours = int64_t(space.neighbours.size());
        work.neighbours = space.neighbours.data();
        work.images = neighbours_.images();
        work.scratch = space.scratch;
        work.out = space.features;
        work.clock = seconds ? now : nullptr;
        work.seconds = seconds ? seconds + SUMS : nullptr;
        if (seconds) seconds[LISTS] += now() - start;
        isa_.snap_block(work);
        const double computed = seconds ? now() : 0;
        for (int64_t l = 0; l < n; ++l) {
            T *row = out + int64_t(order_[first + l]) * row_stride;
            for (int f = 0; f < tables_.n_features; ++f) row[f] = space.features[f * lanes + l];
        }
        if (seconds) seconds[WRITING] += now() - computed;
    }

    IsaFunctions<T> isa_;
    SnapTablesView<T> tables_;
    SnapConstants constants_;
    int64_t n_points_;
    const double *points_;
    Neighbours neighbours_;
    std::vector<uint32_t> order_;
};

template <class T>
int bispectrum(const malax_atoms *atoms, const malax_snap *snap, int64_t n_points, const double *points,
               int32_t threads, int64_t row_stride, T *out, double *seconds = nullptr) {
    return guarded([&] {
        check_snap_input(atoms, snap, n_points, points, out != nullptr);
        require(row_stride >= snap_features(snap->twojmax), "the row stride is smaller than a row");
        if (n_points == 0) return;
        const int count = thread_count(threads);
        const double start = now();
        Bispectrum<T> kernel(*atoms, *snap, n_points, points, count);
        if (seconds) {
            for (int i = 0; i < MALAX_BISPECTRUM_STAGES; ++i) seconds[i] = 0;
            seconds[SORTING] = now() - start;
        }
        kernel.run(count, row_stride, out, seconds);
    });
}

}  // namespace

}  // namespace malax

int64_t malax_bispectrum_size(int32_t twojmax) { return malax::snap_features(twojmax); }

int malax_bispectrum_f64(const malax_atoms *atoms, const malax_snap *snap, int64_t n_points, const double *points,
                         int32_t threads, int64_t row_stride, double *out) {
    return malax::bispectrum(atoms, snap, n_points, points, threads, row_stride, out);
}

int malax_bispectrum_f32(const malax_atoms *atoms, const malax_snap *snap, int64_t n_points, const double *points,
                         int32_t threads, int64_t row_stride, float *out) {
    return malax::bispectrum(atoms, snap, n_points, points, threads, row_stride, out);
}

int malax_bispectrum_stages_f64(const malax_atoms *atoms, const malax_snap *snap, int64_t n_points,
                                const double *points, double *out, double *seconds) {
    return malax::bispectrum(atoms, snap, n_points, points, 1, malax_bispectrum_size(snap ? snap->twojmax : 0), out, seconds);
}

int malax_bispectrum_stages_f32(const malax_atoms *atoms, const malax_snap *snap, int64_t n_points,
                                const double *points, float *out, double *seconds) {
    return malax::bispectrum(atoms, snap, n_points, points, 1, malax_bispectrum_size(snap ? snap->twojmax : 0), out, seconds);
}
