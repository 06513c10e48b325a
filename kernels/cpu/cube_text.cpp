// Fortran's 6E13.5, as pp.x writes cubes: numbers at known places, so no search for the next word.
#include <array>
#include <cmath>
#include <cstdint>

#include "api.h"

namespace malax {

namespace {

constexpr int64_t WIDTH = 13, PER_LINE = 6;
constexpr int LARGEST = 308;  // power of ten of a double

std::array<double, LARGEST + 1> powers_of_ten() {
    std::array<double, LARGEST + 1> powers;
    for (int n = 0; n <= LARGEST; ++n) powers[n] = std::pow(10.0, n);
    return powers;
}

// mantissa times a power of ten: exact where the power is (up to 22), to rounding beyond
inline double scaled(double mantissa, int exponent, const double *powers) {
    const int size = exponent < 0 ? -exponent : exponent;
    if (size <= LARGEST) return exponent < 0 ? mantissa / powers[size] : mantissa * powers[size];
    const double rest = powers[size - LARGEST < LARGEST ? size - LARGEST : LARGEST];
    return exponent < 0 ? mantissa / powers[LARGEST] / rest : mantissa * powers[LARGEST] * rest;
}

// `  0.12345E-02`, ` -1.23450E+01`, and with three digits of the exponent, which leave no room for the E,
// `  0.12345-102`; sets `bad` if it is none of these
inline double number(const unsigned char *c, const double *powers, unsigned &bad) {
    const unsigned d2 = c[2] - '0', d4 = c[4] - '0', d5 = c[5] - '0', d6 = c[6] - '0', d7 = c[7] - '0',
                   d8 = c[8] - '0', d11 = c[11] - '0', d12 = c[12] - '0';
    const bool negative = c[1] == '-', wide = c[9] != 'E';
    // no short cuts: one jump per line is cheaper than one per character
    bad |= unsigned(d2 > 9) | unsigned(d4 > 9) | unsigned(d5 > 9) | unsigned(d6 > 9) | unsigned(d7 > 9) |
           unsigned(d8 > 9) | unsigned(d11 > 9) | unsigned(d12 > 9) | unsigned(c[0] != ' ') |
           unsigned(c[3] != '.') | unsigned(!negative & (c[1] != ' '));
    const unsigned char sign = c[wide ? 9 : 10];
    const unsigned hundreds = wide ? c[10] - '0' : 0;
    bad |= unsigned(hundreds > 9) | unsigned((sign != '-') & (sign != '+'));
    if (bad) return 0.0;  // a power of what is no number may not exist
    const int mantissa = int(((((d2 * 10 + d4) * 10 + d5) * 10 + d6) * 10 + d7) * 10 + d8);
    const int size = int(hundreds * 100 + d11 * 10 + d12);
    const double value = scaled(mantissa, (sign == '-' ? -size : size) - 5, powers);
    return negative ? -value : value;
}

bool columns(const unsigned char *text, int64_t n_runs, int64_t nz, double *out) {
    static const std::array<double, LARGEST + 1> powers = powers_of_ten();
    for (int64_t run = 0; run < n_runs; ++run) {
        for (int64_t start = 0; start < nz; start += PER_LINE) {
            const int64_t n = nz - start < PER_LINE ? nz - start : PER_LINE;
            unsigned bad = text[n * WIDTH] != '\n';
            for (int64_t i = 0; i < n; ++i) out[i] = number(text + i * WIDTH, powers.data(), bad);
            if (bad) return false;
            text += n * WIDTH + 1;
            out += n;
        }
    }
    return true;
}

}  // namespace

}  // namespace malax

int malax_cube_columns(int64_t n_runs, int64_t nz, int64_t length, const char *text, double *out, int32_t *matches) {
    return malax::guarded([&] {
        malax::require(n_runs >= 0 && nz >= 1, "a negative size");
        malax::require(text && out && matches, "null pointer");
        const int64_t lines = (nz + malax::PER_LINE - 1) / malax::PER_LINE;
        malax::require(length / (nz * malax::WIDTH + lines) >= n_runs, "the text is too short");
        *matches = malax::columns(reinterpret_cast<const unsigned char *>(text), n_runs, nz, out);
    });
}
