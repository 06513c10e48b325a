// Gaussians at one block of points, one point per lane. Compiled once per ISA level; see common.h for what that
// forbids.
#include "simd_exp.h"

MALAX_NAMESPACE_BEGIN

namespace {

// The vectors d from an image to all points of the block and the Gaussian's values there; geometry in double.
template <class T>
struct Pairs {
    static constexpr int W = Simd<T>::lanes;
    alignas(64) double d[3][W];
    alignas(64) T value[W];
};

template <class T>
inline void make_pairs(const GaussianBlock<T> &block, const double *image, const GaussianType &type, Pairs<T> &pairs) {
    constexpr int W = Simd<T>::lanes;
    typedef typename Simd<T>::type R;
    alignas(64) T exponent[W], scale[W];
    for (int l = 0; l < W; ++l) {
        const double x = block.points[l] - image[0], y = block.points[W + l] - image[1],
                     z = block.points[2 * W + l] - image[2], squared = x * x + y * y + z * z;
        pairs.d[0][l] = x;
        pairs.d[1][l] = y;
        pairs.d[2][l] = z;
        exponent[l] = T(-type.alpha * squared);
        scale[l] = squared < type.cutoff_squared ? T(type.scale) : T(0);
    }
    *reinterpret_cast<R *>(pairs.value) =
        exp_negative<T>(*reinterpret_cast<const R *>(exponent)) * *reinterpret_cast<const R *>(scale);
}

template <class T>
inline void sum(const GaussianBlock<T> &block) {
    typedef typename Simd<T>::type R;
    R *values = reinterpret_cast<R *>(block.values);
    for (int t = 0; t < block.n_types; ++t) values[t] = R();
    Pairs<T> pairs;
    for (int64_t n = 0; n < block.n_neighbours; ++n) {
        const double *image = block.images + 4 * int64_t(block.neighbours[n]);
        const int32_t t = block.types[int64_t(image[3])];
        make_pairs(block, image, block.kinds[t], pairs);
        values[t] += *reinterpret_cast<const R *>(pairs.value);
    }
}

template <class T>
inline void adjoint(const GaussianBlock<T> &block) {
    constexpr int W = Simd<T>::lanes;
    for (int l = 0; l < 3 * W; ++l) block.points_gradient[l] = 0;
    Pairs<T> pairs;
    for (int64_t n = 0; n < block.n_neighbours; ++n) {
        const double *image = block.images + 4 * int64_t(block.neighbours[n]);
        const int32_t t = block.types[int64_t(image[3])];
        const GaussianType &type = block.kinds[t];
        make_pairs(block, image, type, pairs);
        const T *gradient = block.values + t * W;
        double m[GAUSSIAN_MOMENTS][W];
        for (int l = 0; l < W; ++l) {
            const double g = double(gradient[l]) * double(pairs.value[l]);
            const double x = pairs.d[0][l], y = pairs.d[1][l], z = pairs.d[2][l];
            const double gx = g * x, gy = g * y, gz = g * z, factor = -2 * type.alpha;
            block.points_gradient[l] += factor * gx;
            block.points_gradient[W + l] += factor * gy;
            block.points_gradient[2 * W + l] += factor * gz;
            m[0][l] = gx;
            m[1][l] = gy;
            m[2][l] = gz;
            m[3][l] = gx * x;
            m[4][l] = gx * y;
            m[5][l] = gx * z;
            m[6][l] = gy * y;
            m[7][l] = gy * z;
            m[8][l] = gz * z;
        }
        for (int q = 0; q < GAUSSIAN_MOMENTS; ++q) {
            double total = 0;
            for (int l = 0; l < W; ++l) total += m[q][l];
            block.moments[n * GAUSSIAN_MOMENTS + q] = total;
        }
    }
}

}  // namespace

void gaussian_block_f32(const GaussianBlock<float> &block);
void gaussian_block_f64(const GaussianBlock<double> &block);
void gaussian_block_adjoint_f32(const GaussianBlock<float> &block);
void gaussian_block_adjoint_f64(const GaussianBlock<double> &block);

void gaussian_block_f32(const GaussianBlock<float> &block) { sum(block); }
void gaussian_block_f64(const GaussianBlock<double> &block) { sum(block); }
void gaussian_block_adjoint_f32(const GaussianBlock<float> &block) { adjoint(block); }
void gaussian_block_adjoint_f64(const GaussianBlock<double> &block) { adjoint(block); }

MALAX_NAMESPACE_END
