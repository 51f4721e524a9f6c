// The sampler's loops over the vocabulary, compiled once per instruction set by sampler.cpp. Everything here
// is exact integer arithmetic or one IEEE operation per token, and sums are sums of integers, so no result
// depends on the instruction set or on the order of evaluation.
#pragma once

#include <bit>
#include <cstdint>

#include "src/philox.h"

namespace tandem {

// Tokens are handled in blocks; the largest logit of each block lets later passes skip most blocks.
inline constexpr int kTokenBlock = 64;

// Order-preserving map from float32 to int32 and back; -0 counts as +0. NaNs fall outside [key(-inf),
// key(inf)].
[[gnu::always_inline]] inline int32_t key_of(float x) {
    const auto bits = std::bit_cast<int32_t>(x + 0.0f);
    return bits ^ ((bits >> 31) & 0x7fffffff);
}
[[gnu::always_inline]] inline float value_of(int32_t key) {
    return std::bit_cast<float>(key ^ ((key >> 31) & 0x7fffffff));
}

struct KeyRange {
    int32_t lowest, highest;
};

// One row of logits with what the first pass found in it.
struct LogitRow {
    const float* x;
    const int32_t* block_keys;  // largest key of each block
    int32_t vocab, blocks;
    float highest;  // finite
    float inverse_temperature;

    // (x - highest) / temperature: at most 0, and -infinity for a masked token.
    [[gnu::always_inline]] inline float shifted(float logit) const {
        return (logit - highest) * inverse_temperature;
    }
};

// Probability mass relative to the likeliest token's, as a count of 2^-40: round(2^40 * exp(d)) for d <= 0.
//
// exp in float32: n = round(d / log 2), r = d - n * log 2 in two parts, Cephes' degree-6 polynomial, exponent
// bits shifted by n; multiplications and additions only. Below d = -28.5 the mass is 0; below -40 nothing is
// evaluated.
[[gnu::always_inline]] inline uint64_t mass_of(float d) {
    // Negative floats grow in magnitude with their bits; an integer minimum vectorizes where a float
    // comparison does not.
    const uint32_t bits = std::bit_cast<uint32_t>(d), lowest = std::bit_cast<uint32_t>(-40.0f);
    const float clamped = std::bit_cast<float>(bits < lowest ? bits : lowest);
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, ties to even
    const float t = clamped * 1.44269504088896341f + kRound;
    const float n = t - kRound;
    const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = (p * (r * r) + r) + 1.0f;
    const uint32_t shift = (std::bit_cast<uint32_t>(t) - std::bit_cast<uint32_t>(kRound)) << 23;
    const float e = std::bit_cast<float>(std::bit_cast<uint32_t>(p) + shift);
    constexpr double kFix = 6144.0;  // 1.5 * 2^12: the last mantissa bit of the sum is worth 2^-40
    return std::bit_cast<uint64_t>(static_cast<double>(e) + kFix) - std::bit_cast<uint64_t>(kFix);
}

inline constexpr float kMasslessBelow = -28.5f;
inline constexpr double kMassUnit = 0x1p-40;

namespace loops {

// The block's 64 logits, the last block filled up with -infinity in `pad`.
[[gnu::always_inline]] inline const float* block_logits(const LogitRow& row, int32_t block, float* pad) {
    const float* x = row.x + int64_t{block} * kTokenBlock;
    const int32_t tokens = row.vocab - block * kTokenBlock;
    if (tokens >= kTokenBlock) return x;
    for (int i = 0; i < kTokenBlock; ++i) pad[i] = i < tokens ? x[i] : -__builtin_inff();
    return pad;
}

[[gnu::always_inline]] inline KeyRange scan(const float* x, int32_t vocab, int32_t* block_keys) {
    KeyRange range{INT32_MAX, INT32_MIN};
    const auto scan_block = [&](const float* tokens, int count) __attribute__((always_inline)) {
        int32_t lowest = INT32_MAX, highest = INT32_MIN;
        for (int i = 0; i < count; ++i) {
            const int32_t key = key_of(tokens[i]);
            lowest = key < lowest ? key : lowest;
            highest = key > highest ? key : highest;
        }
        *block_keys++ = highest;
        range.lowest = lowest < range.lowest ? lowest : range.lowest;
        range.highest = highest > range.highest ? highest : range.highest;
    };
    const int32_t full = vocab / kTokenBlock * kTokenBlock;
    for (int32_t t = 0; t < full; t += kTokenBlock) scan_block(x + t, kTokenBlock);
    if (full < vocab) scan_block(x + full, vocab - full);
    return range;
}

// Copies a row; with a mask, tokens whose bit is clear become -infinity. Returns the range of the row before
// masking.
[[gnu::always_inline]] inline KeyRange copy(const float* x, const uint32_t* mask, int32_t vocab, float* out) {
    KeyRange range{INT32_MAX, INT32_MIN};
    const auto copy_word = [&](int32_t first, int count, uint32_t allowed) __attribute__((always_inline)) {
        for (int i = 0; i < count; ++i) {
            const float logit = x[first + i];
            const int32_t key = key_of(logit);
            range.lowest = key < range.lowest ? key : range.lowest;
            range.highest = key > range.highest ? key : range.highest;
            out[first + i] = allowed >> i & 1 ? logit : -__builtin_inff();
        }
    };
    const int32_t full = vocab / 32 * 32;
    for (int32_t t = 0; t < full; t += 32) copy_word(t, 32, mask ? mask[t / 32] : ~0u);
    if (full < vocab) copy_word(full, vocab - full, mask ? mask[full / 32] : ~0u);
    return range;
}

[[gnu::always_inline]] inline void block_masses(const LogitRow& row, int32_t block, float* shifted,
                                                uint64_t* masses) {
    float pad[kTokenBlock];
    const float* x = block_logits(row, block, pad);
    for (int i = 0; i < kTokenBlock; ++i) {
        shifted[i] = row.shifted(x[i]);
        masses[i] = mass_of(shifted[i]);
    }
}

[[gnu::always_inline]] inline uint64_t total_mass(const LogitRow& row) {
    uint64_t total = 0;
    for (int32_t block = 0; block < row.blocks; ++block) {
        if (row.shifted(value_of(row.block_keys[block])) < kMasslessBelow) continue;
        float pad[kTokenBlock];
        const float* x = block_logits(row, block, pad);
        for (int i = 0; i < kTokenBlock; ++i) total += mass_of(row.shifted(x[i]));
    }
    return total;
}

// Tokens that come before `token` when ordered by logit, highest first, then by id.
[[gnu::always_inline]] inline int32_t count_before(const LogitRow& row, int32_t token) {
    const int32_t key = key_of(row.x[token]);
    int32_t count = 0;
    for (int32_t block = 0; block < row.blocks; ++block) {
        if (row.block_keys[block] < key) continue;
        float pad[kTokenBlock];
        const float* x = block_logits(row, block, pad);
        const int32_t before = token - block * kTokenBlock;
        for (int i = 0; i < kTokenBlock; ++i) {
            const int32_t other = key_of(x[i]);
            count += static_cast<int32_t>(other > key) |
                     (static_cast<int32_t>(other == key) & static_cast<int32_t>(i < before));
        }
    }
    return count;
}

// The noise words of a block, and for each token an upper bound of shifted logit plus Gumbel noise, cheap and
// at most 0.07 too high where it matters: -log(-log u) <= -log(1 - u), and the bits of a float32 v, read as a
// fixed-point number, are at most log2(v). Returns whether any bound reaches `threshold`.
[[gnu::always_inline]] inline bool noise_bounds(const LogitRow& row, int32_t block, const NoiseStream& noise,
                                                float threshold, uint32_t* words, float* bounds) {
    float pad[kTokenBlock];
    const float* x = block_logits(row, block, pad);
    noise.block(static_cast<uint32_t>(block), words);
    constexpr float kLog2 = 0.693147181f;
    int32_t reached = 0;
    for (int i = 0; i < kTokenBlock; ++i) {
        const auto complement =
            static_cast<float>(static_cast<int32_t>(~words[i] >> 8));  // <= 2^24 * (1 - u)
        const auto log2_fixed = static_cast<float>(std::bit_cast<int32_t>(complement));
        const float bound = row.shifted(x[i]) + (kLog2 * 151.0f - log2_fixed * (kLog2 * 0x1p-23f));
        bounds[i] = bound;
        reached |= static_cast<int32_t>(bound >= threshold);
    }
    return reached != 0;
}

}  // namespace loops

struct SamplerKernels {
    const char* name;
    KeyRange (*scan)(const float* x, int32_t vocab, int32_t* block_keys);
    KeyRange (*copy)(const float* x, const uint32_t* mask, int32_t vocab, float* out);
    void (*block_masses)(const LogitRow& row, int32_t block, float* shifted, uint64_t* masses);
    uint64_t (*total_mass)(const LogitRow& row);
    int32_t (*count_before)(const LogitRow& row, int32_t token);
    bool (*noise_bounds)(const LogitRow& row, int32_t block, const NoiseStream& noise, float threshold,
                         uint32_t* words, float* bounds);
};

// Defines the table `isa::kernels` with every loop compiled for the given target.
#define TANDEM_SAMPLER_KERNELS(isa, target)                                                                 \
    namespace isa {                                                                                         \
    target KeyRange scan(const float* x, int32_t vocab, int32_t* block_keys) {                              \
        return loops::scan(x, vocab, block_keys);                                                           \
    }                                                                                                       \
    target KeyRange copy(const float* x, const uint32_t* mask, int32_t vocab, float* out) {                 \
        return loops::copy(x, mask, vocab, out);                                                            \
    }                                                                                                       \
    target void block_masses(const LogitRow& row, int32_t block, float* shifted, uint64_t* masses) {        \
        loops::block_masses(row, block, shifted, masses);                                                   \
    }                                                                                                       \
    target uint64_t total_mass(const LogitRow& row) { return loops::total_mass(row); }                      \
    target int32_t count_before(const LogitRow& row, int32_t token) {                                       \
        return loops::count_before(row, token);                                                             \
    }                                                                                                       \
    target bool noise_bounds(const LogitRow& row, int32_t block, const NoiseStream& noise, float threshold, \
                             uint32_t* words, float* bounds) {                                              \
        return loops::noise_bounds(row, block, noise, threshold, words, bounds);                            \
    }                                                                                                       \
    constexpr SamplerKernels kernels{                                                                       \
        #isa, scan, copy, block_masses, total_mass, count_before, noise_bounds};                            \
    }

}  // namespace tandem
