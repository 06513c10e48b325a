#include "isa.h"

#include <cstdlib>
#include <cstring>
#include <string>

#include "api.h"

#ifdef MALAX_HAVE_BF16
#include <cpuid.h>
#endif

namespace malax {

template <>
const IsaFunctions<float> &IsaLevel::functions<float>() const {
    return f32;
}

template <>
const IsaFunctions<double> &IsaLevel::functions<double>() const {
    return f64;
}

namespace {

bool always() { return true; }

#if defined(MALAX_HAVE_V3) || defined(MALAX_HAVE_V4)
bool has_v3() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
           __builtin_cpu_supports("bmi2");
}
#endif

#ifdef MALAX_HAVE_V4
bool has_v4() {
    return has_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}
#endif

#define MALAX_FUNCTIONS(level, type)                                                                           \
    {level::lanes_##type, level::snap_block_##type, level::moments_block_##type, level::snap_adjoint_block_##type, \
     level::snap_jvp_block_##type, level::gaussian_block_##type, level::gaussian_block_adjoint_##type,         \
     level::gaussian_tile_##type, level::gaussian_tile_adjoint_##type, level::network_block_##type}
#define MALAX_LEVEL(level, test) {#level, test, MALAX_FUNCTIONS(level, f32), MALAX_FUNCTIONS(level, f64)}

// best first
const IsaLevel *levels() {
    static const IsaLevel all[] = {
#ifdef MALAX_HAVE_V4
        MALAX_LEVEL(v4, has_v4),
#endif
#ifdef MALAX_HAVE_V3
        MALAX_LEVEL(v3, has_v3),
#endif
        MALAX_LEVEL(baseline, always),
        {nullptr, nullptr, {}, {}},
    };
    return all;
}

std::string available() {
    std::string names;
    for (const IsaLevel *level = levels(); level->name; ++level) {
        if (level->runs_here()) names += (names.empty() ? "" : " ") + std::string(level->name);
    }
    return names;
}

}  // namespace

const IsaLevel &current_isa() {
    const char *forced = std::getenv("MALAX_ISA");
    const bool any = forced == nullptr || *forced == '\0';
    for (const IsaLevel *level = levels(); level->name; ++level) {
        if (level->runs_here() && (any || std::strcmp(forced, level->name) == 0)) return *level;
    }
    throw Error(MALAX_ISA_UNAVAILABLE, "MALAX_ISA=" + std::string(forced) +
                                           " cannot be had: this build runs here with " + available());
}

NetworkBlockFunction<float> bfloat16_network_block() {
#ifdef MALAX_HAVE_BF16
    // older compilers cannot name avx512_bf16 in __builtin_cpu_supports
    unsigned a = 0, b = 0, c = 0, d = 0;
    const bool there = __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & (1u << 5)) != 0;
    if (there && std::strcmp(current_isa().name, "v4") == 0) return v4_bf16::network_block_bf16;
#endif
    throw Error(MALAX_ISA_UNAVAILABLE,
                "bfloat16 needs a processor with avx512_bf16, a compiler that knows it, and the ISA level v4");
}

}  // namespace malax

using namespace malax;

int malax_has_bfloat16(void) {
    return malax::guarded([] { malax::bfloat16_network_block(); }) == MALAX_OK ? 1 : 0;
}

const char *malax_isa_levels(void) {
    static const std::string names = available();
    return names.c_str();
}

const char *malax_isa(void) {
    const char *name = nullptr;
    guarded([&] { name = current_isa().name; });
    return name;
}
