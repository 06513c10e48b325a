// Aligned memory for the inner loops.
#pragma once

#include <cstdlib>
#include <memory>
#include <new>

namespace malax {

struct Free {
    void operator()(void *p) const { std::free(p); }
};

// 64-byte aligned, uninitialised
template <class T>
std::unique_ptr<T[], Free> aligned_array(size_t n) {
    void *p = nullptr;
    if (posix_memalign(&p, 64, n * sizeof(T)) != 0) throw std::bad_alloc();
    return std::unique_ptr<T[], Free>(static_cast<T *>(p));
}

// The next multiple of 16 values, 64 bytes or more: what stands behind n of them is aligned again.
inline size_t rounded(size_t n) { return (n + 15) / 16 * 16; }

}  // namespace malax
