// Gaussians on one tile of a grid: each image adds to the rows of points that its sphere reaches. Compiled once per
// ISA level; see common.h for what that forbids.
#include "simd_exp.h"

MALAX_NAMESPACE_BEGIN

namespace {

// The rows of one plane of the tile under one image: row j's points first..last are inside the sphere.
template <class T>
struct Plane {
    // a multiple of every vector's length
    static constexpr int N = (GaussianTileSize<T>::rows + 15) / 16 * 16;
    alignas(64) T low[N], high[N];  // first and last point of the row inside; low > high if there is none
    alignas(64) T scale[N];         // the Gaussian's value where the row passes nearest, as if d3 were 0 there
    alignas(64) T middle[N];        // the point of the row nearest to the image, and d3 there
    alignas(64) T offset[N];
    alignas(64) double d2[N];
    double d1;
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

// Geometry in double, so that rounding never decides which points are inside. False if no row is.
template <class T>
inline bool make_plane(const GaussianTile<T> &tile, const double *from, int i, Plane<T> &plane) {
    typedef typename Simd<T>::type R;
    const GridSteps &s = tile.steps;
    const double d1 = from[0] + i * s.s11, rest = tile.type.cutoff_squared - d1 * d1;
    if (!(rest > 0)) return false;
    plane.d1 = d1;
    const double d2 = from[1] + i * s.s12, d3 = from[2] + i * s.s13, inverse = 1 / s.s33;
    const double last = tile.n[2] - 1, end = tile.n[2];
    for (int j = 0; j < Plane<T>::N; ++j) {
        const double b = d2 + j * s.s22, c = d3 + j * s.s23, chord = rest - b * b;
        const double half = __builtin_sqrt(chord > 0 ? chord : 0) * inverse, centre = -c * inverse;
        const double from_here = within(centre - half, 0, end), to_here = within(centre + half, -1, last);
        const double first = nearest(from_here), final = nearest(to_here);
        const double nearest_point = nearest(within(centre, 0, last));
        plane.d2[j] = b;
        plane.low[j] = T(first < from_here ? first + 1 : first);
        plane.high[j] = T(chord > 0 ? (final > to_here ? final - 1 : final) : -1.0);
        plane.middle[j] = T(nearest_point);
        plane.offset[j] = T(c + nearest_point * s.s33);
        plane.scale[j] = T(-tile.type.alpha * (d1 * d1 + b * b));
    }
    R *scale = reinterpret_cast<R *>(plane.scale);
    for (int v = 0; v < (tile.n[1] + Simd<T>::lanes - 1) / Simd<T>::lanes; ++v) {
        scale[v] = exp_negative<T>(scale[v]) * T(tile.type.scale);
    }
    return true;
}

// What is the same in all rows of an image where the third axis is normal to the other two.
template <class T>
struct Column {
    static constexpr int vectors = GAUSSIAN_K / Simd<T>::lanes;
    typename Simd<T>::type d3[vectors], exponential[vectors];
};

template <class T>
inline void make_column(const GaussianTile<T> &tile, double d3, Column<T> &column) {
    alignas(64) T z[GAUSSIAN_K], exponent[GAUSSIAN_K];
    for (int k = 0; k < GAUSSIAN_K; ++k) {
        const double d = d3 + k * tile.steps.s33;
        z[k] = T(d);
        exponent[k] = T(-tile.type.alpha * (d * d));
    }
    typedef typename Simd<T>::type R;
    for (int v = 0; v < Column<T>::vectors; ++v) {
        column.d3[v] = reinterpret_cast<const R *>(z)[v];
        column.exponential[v] = exp_negative<T>(reinterpret_cast<const R *>(exponent)[v]);
    }
}

template <class T>
struct Lanes {
    typename Simd<T>::type k[GAUSSIAN_K / Simd<T>::lanes];  // 0, 1, 2, ...

    Lanes() {
        for (int i = 0; i < GAUSSIAN_K; ++i) reinterpret_cast<T *>(k)[i] = T(i);
    }
};

// Calls visit(i, j, plane) for each row that the sphere of an image reaches.
template <class T, class Visit>
inline __attribute__((always_inline)) void for_each_row(const GaussianTile<T> &tile, const double *from,
                                                        const Visit &visit) {
    Plane<T> plane;
    for (int i = 0; i < tile.n[0]; ++i) {
        if (tile.first_row[i] >= tile.last_row[i] || !make_plane(tile, from, i, plane)) continue;
        for (int j = tile.first_row[i]; j < tile.last_row[i]; ++j) {
            if (plane.low[j] <= plane.high[j]) visit(i, j, plane);
        }
    }
}

// d3 and the Gaussian's value at the points of vector v of row j; zero outside the sphere.
template <bool SEPARABLE, class T>
inline __attribute__((always_inline)) typename Simd<T>::type row_values(
    const GaussianTile<T> &tile, const Column<T> &column, const Plane<T> &plane, const Lanes<T> &lanes, int j, int v,
    typename Simd<T>::type &d3) {
    typedef typename Simd<T>::type R;
    const R k = lanes.k[v];
    R value;
    if (SEPARABLE) {
        d3 = column.d3[v];
        value = column.exponential[v] * plane.scale[j];
    } else {
        d3 = (k - plane.middle[j]) * T(tile.steps.s33) + plane.offset[j];
        value = exp_negative<T>(d3 * d3 * T(-tile.type.alpha)) * plane.scale[j];
    }
    value = k >= plane.low[j] ? value : R();
    return k <= plane.high[j] ? value : R();
}

template <bool SEPARABLE, class T>
inline void sum(const GaussianTile<T> &tile) {
    typedef typename Simd<T>::type R;
    constexpr int W = Simd<T>::lanes, ROWS = GaussianTileSize<T>::rows;
    const Lanes<T> lanes;
    Column<T> column;
    for (int64_t n = 0; n < tile.n_images; ++n) {
        const double *from = tile.from + 3 * n;
        if (SEPARABLE) make_column(tile, from[2], column);
        for_each_row(tile, from, [&](int i, int j, const Plane<T> &plane) {
            R *values = reinterpret_cast<R *>(tile.values + (i * ROWS + j) * GAUSSIAN_K);
            for (int v = int(plane.low[j]) / W; v <= int(plane.high[j]) / W; ++v) {
                R d3;
                values[v] += row_values<SEPARABLE>(tile, column, plane, lanes, j, v, d3);
            }
        });
    }
}

template <class T>
inline double total(typename Simd<T>::type x) {
    double sum = 0;
    for (int l = 0; l < Simd<T>::lanes; ++l) sum += double(x[l]);
    return sum;
}

template <bool SEPARABLE, class T>
inline void adjoint(const GaussianTile<T> &tile) {
    typedef typename Simd<T>::type R;
    constexpr int W = Simd<T>::lanes, ROWS = GaussianTileSize<T>::rows;
    const Lanes<T> lanes;
    Column<T> column;
    for (int64_t n = 0; n < tile.n_images; ++n) {
        const double *from = tile.from + 3 * n;
        if (SEPARABLE) make_column(tile, from[2], column);
        R m[GAUSSIAN_MOMENTS] = {};
        for_each_row(tile, from, [&](int i, int j, const Plane<T> &plane) {
            const R *gradient = reinterpret_cast<const R *>(tile.values + (i * ROWS + j) * GAUSSIAN_K);
            R zeroth = {}, first = {}, second = {};
            for (int v = int(plane.low[j]) / W; v <= int(plane.high[j]) / W; ++v) {
                R d3;
                const R g = gradient[v] * row_values<SEPARABLE>(tile, column, plane, lanes, j, v, d3);
                zeroth += g;
                first += g * d3;
                second += g * d3 * d3;
            }
            const T d1 = T(plane.d1), d2 = T(plane.d2[j]);
            m[0] += zeroth * d1;
            m[1] += zeroth * d2;
            m[2] += first;
            m[3] += zeroth * (d1 * d1);
            m[4] += zeroth * (d1 * d2);
            m[5] += first * d1;
            m[6] += zeroth * (d2 * d2);
            m[7] += first * d2;
            m[8] += second;
        });
        for (int q = 0; q < GAUSSIAN_MOMENTS; ++q) tile.moments[n * GAUSSIAN_MOMENTS + q] = total<T>(m[q]);
    }
}

template <class T>
inline bool separable(const GaussianTile<T> &tile) {
    return tile.steps.s13 == 0 && tile.steps.s23 == 0;
}

}  // namespace

void gaussian_tile_f32(const GaussianTile<float> &tile);
void gaussian_tile_f64(const GaussianTile<double> &tile);
void gaussian_tile_adjoint_f32(const GaussianTile<float> &tile);
void gaussian_tile_adjoint_f64(const GaussianTile<double> &tile);

void gaussian_tile_f32(const GaussianTile<float> &tile) { separable(tile) ? sum<true>(tile) : sum<false>(tile); }
void gaussian_tile_f64(const GaussianTile<double> &tile) { separable(tile) ? sum<true>(tile) : sum<false>(tile); }

void gaussian_tile_adjoint_f32(const GaussianTile<float> &tile) {
    separable(tile) ? adjoint<true>(tile) : adjoint<false>(tile);
}

void gaussian_tile_adjoint_f64(const GaussianTile<double> &tile) {
    separable(tile) ? adjoint<true>(tile) : adjoint<false>(tile);
}

MALAX_NAMESPACE_END
