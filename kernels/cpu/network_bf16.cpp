// Networks whose hidden layers multiply bfloat16 numbers, with sums in single precision, where processor and compiler
// have instructions for that. A word is two bfloat16 numbers: a row's inputs 2 k and 2 k + 1, or their two weights.
#include "network_layers.h"

MALAX_NAMESPACE_BEGIN

namespace {

struct Pairs {
    typedef float Word;
    typedef Float R;
    static constexpr int per_word = 2;
    static inline __attribute__((always_inline)) R add(R sum, R weights, float input) {
        return (R)_mm512_dpbf16_ps((__m512)sum, (__m512bh)weights, (__m512bh)_mm512_set1_ps(input));
    }
    static inline __attribute__((always_inline)) void store(R value, float *row, int64_t first) {
        typedef float Half __attribute__((vector_size(VECTOR_BYTES / 2)));
        *reinterpret_cast<Half *>(row + first / 2) = (Half)_mm512_cvtneps_pbh((__m512)value);
    }
};

}  // namespace

void network_block_bf16(const NetworkBlock<float> &);

void network_block_bf16(const NetworkBlock<float> &block) { network_layers<Pairs>(block); }

MALAX_NAMESPACE_END
