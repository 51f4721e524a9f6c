// The sampler's randomness: a pure function of (seed, sample index, position, token id), so that a token's
// noise does not depend on the batch, on the device, or on which other tokens survive the filters.
//
// Generator: Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC
// 2011). Key:       {seed mod 2^32, seed / 2^32}. Counter:   {16 * (t / 64) + t % 16, position, sample index,
// 0} for token id t. Word:      t / 16 % 4 of the four that come out, so that 64 consecutive tokens take 16
// consecutive counters. Uniform:   u = (word + 1/2) / 2^32, exact in float64, inside (0, 1). Gumbel:    g =
// -log(-log(u)) in float64, between -3.14 and 22.88.
#pragma once

#include <bit>
#include <cstdint>

namespace tandem {

inline constexpr int kPhiloxRounds = 10;
inline constexpr uint32_t kPhiloxStep0 = 0x9e3779b9, kPhiloxStep1 = 0xbb67ae85;

// Ten rounds on N counters at once; c[w][i] is word w of counter i, before and after.
template <int N>
[[gnu::always_inline]] inline void philox4x32(uint32_t k0, uint32_t k1, uint32_t (&c)[4][N]) {
#pragma GCC unroll 10
    for (int round = 0; round < kPhiloxRounds; ++round) {
        for (int i = 0; i < N; ++i) {
            const uint64_t a = uint64_t{0xd2511f53} * c[0][i];
            const uint64_t b = uint64_t{0xcd9e8d57} * c[2][i];
            c[0][i] = static_cast<uint32_t>(b >> 32) ^ c[1][i] ^ k0;
            c[1][i] = static_cast<uint32_t>(b);
            c[2][i] = static_cast<uint32_t>(a >> 32) ^ c[3][i] ^ k1;
            c[3][i] = static_cast<uint32_t>(a);
        }
        k0 += kPhiloxStep0;
        k1 += kPhiloxStep1;
    }
}

struct NoiseStream {
    uint64_t seed;
    uint32_t sample_index;
    uint32_t position;
    uint64_t keys[kPhiloxRounds][2];  // of each round

    NoiseStream(uint64_t the_seed, uint32_t the_sample, uint32_t the_position)
        : seed(the_seed), sample_index(the_sample), position(the_position) {
        for (uint32_t round = 0; round < kPhiloxRounds; ++round) {
            keys[round][0] = static_cast<uint32_t>(seed) + round * kPhiloxStep0;
            keys[round][1] = static_cast<uint32_t>(seed >> 32) + round * kPhiloxStep1;
        }
    }

    // Words of the 64 tokens [64 * block, 64 * block + 64).
    [[gnu::always_inline]] inline void block(uint32_t block, uint32_t* words) const {
        uint32_t c[4][16];
        for (uint32_t i = 0; i < 16; ++i) {
            c[0][i] = 16 * block + i;
            c[1][i] = position;
            c[2][i] = sample_index;
            c[3][i] = 0;
        }
        philox4x32(static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), c);
        for (int w = 0; w < 4; ++w) {
            for (int i = 0; i < 16; ++i) words[16 * w + i] = c[w][i];
        }
    }

    uint32_t word(uint32_t token) const {
        uint32_t c[4][1] = {{16 * (token / 64) + token % 16}, {position}, {sample_index}, {0}};
        philox4x32(static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), c);
        return c[token / 16 % 4][0];
    }
};

// Natural logarithm of a positive normal number. One definition everywhere, in place of libm's: x = m * 2^e
// with m in (sqrt(1/2), sqrt(2)], s = (m - 1) / (m + 1), log x = e * log 2 + 2 * atanh(s), the series cut
// after s^21 (error under 2^-52 of the result).
inline double natural_log(double x) {
    const uint64_t bits = std::bit_cast<uint64_t>(x);
    int exponent = static_cast<int>(bits >> 52) - 1023;
    double m = std::bit_cast<double>((bits & 0xfffffffffffffULL) | 0x3ff0000000000000ULL);
    if (m > 1.4142135623730951) {
        m *= 0.5;
        ++exponent;
    }
    const double s = (m - 1.0) / (m + 1.0);
    const double z = s * s;
    double series = 1.0 / 21.0;
    for (int n = 19; n >= 1; n -= 2) series = series * z + 1.0 / n;
    return exponent * 0.6931471805599453 + 2.0 * s * series;
}

inline double gumbel(uint32_t word) {
    const double u = (static_cast<double>(word) + 0.5) * 0x1p-32;
    return -natural_log(-natural_log(u));
}

inline constexpr float kLargestGumbel = 22.9f;

}  // namespace tandem
