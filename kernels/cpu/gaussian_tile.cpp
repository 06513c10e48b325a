// Gaussians on one tile of a grid: each image adds to the rows of points that its sphere reaches. Compiled once per
// ISA level; see common.h for what that forbids.
//
// A Gaussian is a product of exp(-alpha d1^2), the same for a plane of points, exp(-alpha d2^2), the same for a row, and
// exp(-alpha d3^2). Where the third axis is normal to the other two (Upright), the last is the same for all rows, and
// a pair costs a multiply-add and a comparison. Otherwise (Sheared) it costs an exponential.
// Geometry is done in double, so that the rounding of T does not decide which points lie inside the sphere.
#include "simd_exp.h"

MALAX_NAMESPACE_BEGIN

namespace {

// What both kinds of tile share: the rows of one plane under one image.
template <class T>
class Rows {
   public:
    static constexpr int W = Simd<T>::lanes;
    static constexpr int N = 16;  // at least a tile's rows, and a multiple of every vector's length
    typedef typename Simd<T>::type R;

    explicit Rows(const GaussianTile<T> &tile_) : tile(tile_) {}

    int first, last;  // rows that may hold points inside are first..last-1
    int from_vector, to_vector;
    double d1;
    alignas(64) double d2[N];

   protected:
    void start_image(const double *from) {
        alignas(64) double squared[N];
        for (int i = 0; i < N; ++i) {
            const double d = from[0] + i * tile.steps.s11;
            squared[i] = d * d;
        }
        exponentials(squared, plane_factor);
        const R *vectors = reinterpret_cast<const R *>(plane_factor);
        for (int v = 0; v < N / W; ++v) reinterpret_cast<R *>(plane_factor)[v] = vectors[v] * T(tile.type.scale);
        if (tile.steps.s12 == 0) make_rows(from[1]);
    }

    // False if no row of the plane is inside. `rest` is cutoff^2 - d1^2.
    bool start_plane(const double *from, int i) {
        d1 = from[0] + i * tile.steps.s11;
        rest = tile.type.cutoff_squared - d1 * d1;
        if (!(rest > 0)) return false;
        const double begin = from[1] + i * tile.steps.s12, half = __builtin_sqrt(rest);
        const double low = (-half - begin) / tile.steps.s22, high = (half - begin) / tile.steps.s22;
        first = low > tile.first_row[i] ? (low < N ? int(low) : N) : tile.first_row[i];
        last = high < tile.last_row[i] - 1 ? (high > -1 ? int(high) + 1 : 0) : tile.last_row[i];
        if (first >= last) return false;
        if (tile.steps.s12 != 0) make_rows(begin);
        for (int j = 0; j < N; ++j) factor[j] = row_factor[j] * plane_factor[i];
        return true;
    }

    const GaussianTile<T> &tile;
    double rest;
    alignas(64) double d2_squared[N];
    alignas(64) T factor[N];  // scale exp(-alpha (d1^2 + d2^2))

   private:
    void make_rows(double begin) {
        for (int j = 0; j < N; ++j) {
            d2[j] = begin + j * tile.steps.s22;
            d2_squared[j] = d2[j] * d2[j];
        }
        exponentials(d2_squared, row_factor);
    }

    void exponentials(const double *squared, T *out) const {
        for (int j = 0; j < N; ++j) out[j] = T(-tile.type.alpha * squared[j]);
        R *vectors = reinterpret_cast<R *>(out);
        for (int v = 0; v < N / W; ++v) vectors[v] = exp_negative<T>(vectors[v]);
    }

    alignas(64) T plane_factor[N], row_factor[N];
};

// The third axis is normal to the other two: the last factor is the same in all rows.
template <class T>
class Upright : public Rows<T> {
   public:
    using typename Rows<T>::R;
    using Rows<T>::W;
    using Rows<T>::N;
    using Rows<T>::tile;

    using Rows<T>::Rows;

    void start_image(const double *from) {
        Rows<T>::start_image(from);
        lowest = 1e300;
        for (int k = 0; k < GAUSSIAN_K; ++k) {
            const double d = from[2] + k * tile.steps.s33, s = d * d;
            d3[k] = T(d);
            // the order of two numbers survives rounding, unless it makes them equal
            squared[k] = T(s);
            exponential[k] = T(-tile.type.alpha * s);
            if (k < tile.n[2] && s < lowest) lowest = s;
        }
        R *vectors = reinterpret_cast<R *>(exponential);
        for (int v = 0; v < GAUSSIAN_K / W; ++v) vectors[v] = exp_negative<T>(vectors[v]);
    }

    bool start_plane(const double *from, int i) {
        if (!Rows<T>::start_plane(from, i) || !(this->rest > lowest)) return false;
        for (int j = 0; j < N; ++j) chord[j] = T(this->rest - this->d2_squared[j]);
        // vectors of the rows with any point nearer than the plane's longest chord
        const double half = __builtin_sqrt(this->rest), begin = from[2];
        const double low = (-half - begin) / tile.steps.s33, high = (half - begin) / tile.steps.s33;
        this->from_vector = low > 0 ? int(low) / W : 0;
        this->to_vector = (high < tile.n[2] - 1 ? int(high) : tile.n[2] - 1) / W + 1;
        return true;
    }

    bool start_row(int j) const { return chord[j] > T(0); }

    R value(int j, int v, R &d) const {
        d = reinterpret_cast<const R *>(d3)[v];
        const R inside = reinterpret_cast<const R *>(exponential)[v] * this->factor[j];
        return reinterpret_cast<const R *>(squared)[v] < chord[j] ? inside : R();
    }

   private:
    double lowest;
    alignas(64) T d3[GAUSSIAN_K], squared[GAUSSIAN_K], exponential[GAUSSIAN_K], chord[N];
};

// Nearest integers by adding and subtracting 1.5 x 2^52, which vectorises everywhere; |x| < 2^50.
inline __attribute__((always_inline)) double nearest(double x) {
    const double shift = 6755399441055744.0;
    return (x + shift) - shift;
}

inline __attribute__((always_inline)) double within(double x, double low, double high) {
    x = x < low ? low : x;
    return x > high ? high : x;
}

// Any cell.
template <class T>
class Sheared : public Rows<T> {
   public:
    using typename Rows<T>::R;
    using Rows<T>::W;
    using Rows<T>::N;
    using Rows<T>::tile;

    explicit Sheared(const GaussianTile<T> &tile_) : Rows<T>(tile_) {
        for (int k = 0; k < GAUSSIAN_K; ++k) lanes[k] = T(k);
    }

    void start_image(const double *from) { Rows<T>::start_image(from); }

    bool start_plane(const double *from, int i) {
        if (!Rows<T>::start_plane(from, i)) return false;
        const GridSteps &s = tile.steps;
        const double begin = from[2] + i * s.s13, inverse = 1 / s.s33, end = tile.n[2];
        for (int j = 0; j < N; ++j) {
            const double c = begin + j * s.s23, left = this->rest - this->d2_squared[j];
            const double half = __builtin_sqrt(left > 0 ? left : 0) * inverse, centre = -c * inverse;
            const double from_here = within(centre - half, 0, end), to_here = within(centre + half, -1, end - 1);
            const double above = nearest(from_here), below = nearest(to_here);
            low[j] = T(above < from_here ? above + 1 : above);
            high[j] = T(left > 0 ? (below > to_here ? below - 1 : below) : -1.0);
            middle[j] = T(nearest(within(centre, 0, end - 1)));
            offset[j] = T(c + nearest(within(centre, 0, end - 1)) * s.s33);
        }
        return true;
    }

    bool start_row(int j) {
        if (!(low[j] <= high[j])) return false;
        this->from_vector = int(low[j]) / W;
        this->to_vector = int(high[j]) / W + 1;
        return true;
    }

    R value(int j, int v, R &d) const {
        const R k = reinterpret_cast<const R *>(lanes)[v];
        d = (k - middle[j]) * T(tile.steps.s33) + offset[j];
        R inside = exp_negative<T>(d * d * T(-tile.type.alpha)) * this->factor[j];
        inside = k >= low[j] ? inside : R();
        return k <= high[j] ? inside : R();
    }

   private:
    alignas(64) T lanes[GAUSSIAN_K];
    alignas(64) T low[N], high[N];  // first and last point of a row inside; low > high if there is none
    alignas(64) T middle[N], offset[N];  // the point of the row nearest to the image, and d3 there
};

template <class Geometry, class T>
inline __attribute__((always_inline)) void sum(const GaussianTile<T> &tile) {
    typedef typename Simd<T>::type R;
    constexpr int ROWS = GaussianTileSize<T>::rows;
    Geometry rows(tile);
    for (int64_t n = 0; n < tile.n_images; ++n) {
        const double *from = tile.from + 3 * n;
        rows.start_image(from);
        for (int i = 0; i < tile.n[0]; ++i) {
            if (!rows.start_plane(from, i)) continue;
            for (int j = rows.first; j < rows.last; ++j) {
                if (!rows.start_row(j)) continue;
                R *values = reinterpret_cast<R *>(tile.values + (i * ROWS + j) * GAUSSIAN_K);
                for (int v = rows.from_vector; v < rows.to_vector; ++v) {
                    R d3;
                    values[v] += rows.value(j, v, d3);
                }
            }
        }
    }
}

template <class T>
inline double total(typename Simd<T>::type x) {
    double sum = 0;
    for (int l = 0; l < Simd<T>::lanes; ++l) sum += double(x[l]);
    return sum;
}

template <class Geometry, class T>
inline __attribute__((always_inline)) void adjoint(const GaussianTile<T> &tile) {
    typedef typename Simd<T>::type R;
    constexpr int ROWS = GaussianTileSize<T>::rows;
    Geometry rows(tile);
    for (int64_t n = 0; n < tile.n_images; ++n) {
        const double *from = tile.from + 3 * n;
        R m[GAUSSIAN_MOMENTS] = {};
        rows.start_image(from);
        for (int i = 0; i < tile.n[0]; ++i) {
            if (!rows.start_plane(from, i)) continue;
            for (int j = rows.first; j < rows.last; ++j) {
                if (!rows.start_row(j)) continue;
                const R *gradient = reinterpret_cast<const R *>(tile.values + (i * ROWS + j) * GAUSSIAN_K);
                R zeroth = {}, first = {}, second = {};
                for (int v = rows.from_vector; v < rows.to_vector; ++v) {
                    R d3;
                    const R g = gradient[v] * rows.value(j, v, d3);
                    zeroth += g;
                    first += g * d3;
                    second += g * d3 * d3;
                }
                const T d1 = T(rows.d1), d2 = T(rows.d2[j]);
                m[0] += zeroth * d1;
                m[1] += zeroth * d2;
                m[2] += first;
                m[3] += zeroth * (d1 * d1);
                m[4] += zeroth * (d1 * d2);
                m[5] += first * d1;
                m[6] += zeroth * (d2 * d2);
                m[7] += first * d2;
                m[8] += second;
            }
        }
        for (int q = 0; q < GAUSSIAN_MOMENTS; ++q) tile.moments[n * GAUSSIAN_MOMENTS + q] = total<T>(m[q]);
    }
}

template <class T>
inline void any_sum(const GaussianTile<T> &tile) {
    if (tile.steps.s13 == 0 && tile.steps.s23 == 0) {
        sum<Upright<T>>(tile);
    } else {
        sum<Sheared<T>>(tile);
    }
}

template <class T>
inline void any_adjoint(const GaussianTile<T> &tile) {
    if (tile.steps.s13 == 0 && tile.steps.s23 == 0) {
        adjoint<Upright<T>>(tile);
    } else {
        adjoint<Sheared<T>>(tile);
    }
}

}  // namespace

void gaussian_tile_f32(const GaussianTile<float> &tile);
void gaussian_tile_f64(const GaussianTile<double> &tile);
void gaussian_tile_adjoint_f32(const GaussianTile<float> &tile);
void gaussian_tile_adjoint_f64(const GaussianTile<double> &tile);

void gaussian_tile_f32(const GaussianTile<float> &tile) { any_sum(tile); }
void gaussian_tile_f64(const GaussianTile<double> &tile) { any_sum(tile); }
void gaussian_tile_adjoint_f32(const GaussianTile<float> &tile) { any_adjoint(tile); }
void gaussian_tile_adjoint_f64(const GaussianTile<double> &tile) { any_adjoint(tile); }

MALAX_NAMESPACE_END
