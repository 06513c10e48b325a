// Networks of dense layers on the CPU: weights packed once for the ISA level, rows dealt out to threads in blocks.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "api.h"
#include "isa.h"
#include "memory.h"
#include "threads.h"

namespace malax {

namespace {

template <class T>
class Network {
   public:
    Network(int32_t n_layers, const int64_t *widths, const int32_t *activations, const T *const *weights,
            const T *const *biases, const T *mean, const T *scale, NetworkBlockFunction<T> pairs)
        : block_(pairs ? pairs : current_isa().functions<T>().network_block),
          lanes_(current_isa().functions<T>().lanes) {
        require(n_layers >= 1, "a network needs at least one layer");
        require(widths && activations && weights && biases && mean && scale, "null pointer");
        for (int32_t l = 0; l <= n_layers; ++l) {
            require(widths[l] >= 1 && widths[l] <= 1 << 20, "a layer's width must be 1 to 1048576");
            width_ = std::max(width_, padded(widths[l]));
        }
        width_ += lanes_;  // rows a power of two apart would compete for the same lines of a cache
        mean_.assign(mean, mean + widths[0]);
        scale_.assign(scale, scale + widths[0]);
        for (int32_t l = 0; l < n_layers; ++l) {
            require(activations[l] >= 0 && activations[l] < ACTIVATIONS, "no such activation");
            require(weights[l] && biases[l], "null pointer");
            add(widths[l], widths[l + 1], activations[l], weights[l], biases[l], pairs && l > 0);
        }
    }

    int64_t n_in() const { return layers_.front().n_in; }
    int64_t n_out() const { return layers_.back().n_out; }

    void apply(int64_t n_rows, int64_t stride, const T *rows, int threads, T *out) const {
        const int64_t blocks = (n_rows + NETWORK_ROWS - 1) / NETWORK_ROWS;
        threads = int(std::max<int64_t>(1, std::min<int64_t>(threads, blocks)));
        const size_t scratch = size_t(2 * NETWORK_ROWS * width_);
        auto memory = aligned_array<T>(scratch * threads);  // here: nothing may throw in a parallel region
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(dynamic)
#endif
        for (int64_t b = 0; b < blocks; ++b) {
            const int64_t first = b * NETWORK_ROWS, n = std::min(NETWORK_ROWS, n_rows - first);
            block_({n, int64_t(layers_.size()), layers_.data(), mean_.data(), scale_.data(), stride,
                    rows + first * stride, memory.get() + scratch * thread_index(), width_, out + first * n_out()});
        }
    }

   private:
    int64_t padded(int64_t n) const { return (n + lanes_ - 1) / lanes_ * lanes_; }

    void add(int64_t n_in, int64_t n_out, int32_t activation, const T *weights, const T *biases, bool pairs) {
        const int64_t whole = padded(n_out), panel = 2 * lanes_, words = pairs ? (n_in + 1) / 2 : n_in;
        auto packed = aligned_array<T>(size_t(whole * (words + 1)));
        T *next = packed.get();
        for (int64_t first = 0; first < whole; first += panel) {
            const int64_t last = std::min(first + panel, whole);
            for (int64_t k = 0; k < words; ++k) {
                for (int64_t o = first; o < last; ++o) {
                    const T *row = weights + o * n_in;
                    if (pairs) {
                        const T second = o < n_out && 2 * k + 1 < n_in ? row[2 * k + 1] : T(0);
                        *next++ = pair(o < n_out ? row[2 * k] : T(0), second);
                    } else {
                        *next++ = o < n_out ? row[k] : T(0);
                    }
                }
            }
        }
        for (int64_t o = 0; o < whole; ++o) next[o] = o < n_out ? biases[o] : T(0);
        layers_.push_back({n_in, n_out, activation, packed.get(), next});
        memory_.push_back(std::move(packed));
    }

    // Two bfloat16 numbers in the bits of one of single precision, the first in the lower ones.
    static T pair(T first, T second) {
        const uint32_t bits = bfloat16(float(first)) | uint32_t(bfloat16(float(second))) << 16;
        float word;
        std::memcpy(&word, &bits, sizeof word);
        return T(word);
    }

    // The nearest, of two the even one.
    static uint16_t bfloat16(float value) {
        uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }

    NetworkBlockFunction<T> block_;
    int64_t lanes_, width_ = 0;
    std::vector<T> mean_, scale_;
    std::vector<NetworkLayer<T>> layers_;
    std::vector<std::unique_ptr<T[], Free>> memory_;
};

template <class T, class Handle>
void create(int32_t n_layers, const int64_t *widths, const int32_t *activations, const T *const *weights,
           const T *const *biases, const T *mean, const T *scale, NetworkBlockFunction<T> pairs, Handle **out) {
    require(out, "null pointer");
    *out = reinterpret_cast<Handle *>(
        new Network<T>(n_layers, widths, activations, weights, biases, mean, scale, pairs));
}

template <class T, class Handle>
int apply(const Handle *handle, int64_t n_rows, int64_t stride, const T *rows, int32_t threads, T *out) {
    return guarded([&] {
        require(handle, "null pointer");
        const auto &network = *reinterpret_cast<const Network<T> *>(handle);
        require(n_rows >= 0, "a negative size");
        require(n_rows == 0 || (rows && out), "null pointer");
        require(n_rows < 2 || stride >= network.n_in(), "rows overlap");
        network.apply(n_rows, stride, rows, thread_count(threads), out);
    });
}

}  // namespace

}  // namespace malax

int malax_network_create_f32(int32_t n_layers, const int64_t *widths, const int32_t *activations,
                             const float *const *weights, const float *const *biases, const float *mean,
                             const float *scale, int32_t bfloat16, malax_network_f32 **out) {
    return malax::guarded([&] {
        const auto pairs = bfloat16 ? malax::bfloat16_network_block() : nullptr;
        malax::create(n_layers, widths, activations, weights, biases, mean, scale, pairs, out);
    });
}

int malax_network_create_f64(int32_t n_layers, const int64_t *widths, const int32_t *activations,
                             const double *const *weights, const double *const *biases, const double *mean,
                             const double *scale, malax_network_f64 **out) {
    return malax::guarded([&] {
        const malax::NetworkBlockFunction<double> none = nullptr;
        malax::create(n_layers, widths, activations, weights, biases, mean, scale, none, out);
    });
}

void malax_network_destroy_f32(malax_network_f32 *network) {
    delete reinterpret_cast<malax::Network<float> *>(network);
}

void malax_network_destroy_f64(malax_network_f64 *network) {
    delete reinterpret_cast<malax::Network<double> *>(network);
}

int malax_network_apply_f32(const malax_network_f32 *network, int64_t n_rows, int64_t stride, const float *rows,
                            int32_t threads, float *out) {
    return malax::apply(network, n_rows, stride, rows, threads, out);
}

int malax_network_apply_f64(const malax_network_f64 *network, int64_t n_rows, int64_t stride, const double *rows,
                            int32_t threads, double *out) {
    return malax::apply(network, n_rows, stride, rows, threads, out);
}
