// The sampler's loops over the vocabulary. Everything here is exact integer arithmetic or one IEEE operation
// per token, and sums are sums of integers, so no result depends on the instruction set or on the order of
// evaluation.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "kernels/logit_row.h"
#include "kernels/simd.h"

namespace tandem::TANDEM_ISA {

// The block's 64 logits, the last block filled up with -infinity in `pad`.
TANDEM_INLINE const float* block_logits(const LogitRow& row, int32_t block, float* pad) {
    const float* x = row.x + int64_t{block} * kTokenBlock;
    const int32_t tokens = row.vocab - block * kTokenBlock;
    if (tokens >= kTokenBlock) return x;
    for (int i = 0; i < kTokenBlock; ++i) pad[i] = i < tokens ? x[i] : -__builtin_inff();
    return pad;
}

TANDEM_INLINE KeyRange scan(const float* x, int32_t vocab, int32_t* block_keys) {
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

TANDEM_INLINE KeyRange copy(const float* x, const uint32_t* mask, int32_t vocab, float* out) {
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

TANDEM_INLINE void bucket_masses(const LogitRow& row, int32_t block, int32_t* buckets, uint64_t* masses) {
    float pad[kTokenBlock];
    const float* x = block_logits(row, block, pad);
    for (int i = 0; i < kTokenBlock; ++i) {
        const float shifted = row.shifted(x[i]);
        buckets[i] = bucket_of(shifted);
        masses[i] = mass_of(shifted);
    }
}

TANDEM_INLINE bool find_bucket(const LogitRow& row, int32_t block, int32_t bucket, int32_t* buckets) {
    float pad[kTokenBlock];
    const float* x = block_logits(row, block, pad);
    int32_t found = 0;
    for (int i = 0; i < kTokenBlock; ++i) {
        buckets[i] = bucket_of(row.shifted(x[i]));
        found |= static_cast<int32_t>(buckets[i] == bucket);
    }
    return found != 0;
}

TANDEM_INLINE uint64_t total_mass(const LogitRow& row) {
    uint64_t total = 0;
    for (int32_t block = 0; block < row.blocks; ++block) {
        if (row.shifted(value_of(row.block_keys[block])) < kMasslessBelow) continue;
        float pad[kTokenBlock];
        const float* x = block_logits(row, block, pad);
        for (int i = 0; i < kTokenBlock; ++i) total += mass_of(row.shifted(x[i]));
    }
    return total;
}

TANDEM_INLINE int32_t count_before(const LogitRow& row, int32_t token) {
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

// Philox on 64-bit lanes, a counter's word in the lower half of each: then a round is two multiplications,
// two shifts and two exclusive ors, and no lane moves.
#if defined(__AVX2__)
#if defined(__AVX512F__)
typedef uint64_t Lanes __attribute__((vector_size(64)));
TANDEM_INLINE Lanes multiply(Lanes a, Lanes b) { return (Lanes)_mm512_mul_epu32((__m512i)a, (__m512i)b); }
inline constexpr Lanes kEven{0, 2, 4, 6, 8, 10, 12, 14};
#else
typedef uint64_t Lanes __attribute__((vector_size(32)));
TANDEM_INLINE Lanes multiply(Lanes a, Lanes b) { return (Lanes)_mm256_mul_epu32((__m256i)a, (__m256i)b); }
inline constexpr Lanes kEven{0, 2, 4, 6};
#endif

TANDEM_INLINE void noise_words(const NoiseStream& noise, uint32_t block, uint32_t* words) {
    constexpr int kAtOnce = sizeof(Lanes) / 4;
    for (int first = 0; first < 16; first += kAtOnce) {
        Lanes c[2][4];  // even and odd counters; what the upper halves hold is not read
        for (int odd = 0; odd < 2; ++odd) {
            c[odd][0] = kEven + (uint64_t{16} * block + static_cast<uint64_t>(first + odd));
            c[odd][1] = Lanes{} + noise.position;
            c[odd][2] = Lanes{} + noise.sample_index;
            c[odd][3] = Lanes{};
        }
#pragma GCC unroll 10
        for (int round = 0; round < kPhiloxRounds; ++round) {
            const uint64_t* key = noise.keys[round];
            for (auto& w : c) {
                const Lanes a = multiply(w[0], Lanes{} + 0xd2511f53u),
                            b = multiply(w[2], Lanes{} + 0xcd9e8d57u);
                w[0] = b >> 32 ^ w[1] ^ key[0];
                w[1] = b;
                w[2] = a >> 32 ^ w[3] ^ key[1];
                w[3] = a;
            }
        }
        for (int w = 0; w < 4; ++w) {
            const Lanes merged = (c[0][w] & 0xffffffffu) | c[1][w] << 32;
            std::memcpy(words + 16 * w + first, &merged, sizeof merged);
        }
    }
}
#else
TANDEM_INLINE void noise_words(const NoiseStream& noise, uint32_t block, uint32_t* words) {
    noise.block(block, words);
}
#endif

TANDEM_INLINE bool noise_bounds(const LogitRow& row, int32_t block, const NoiseStream& noise, float threshold,
                                uint32_t* words, float* bounds) {
    float pad[kTokenBlock];
    const float* x = block_logits(row, block, pad);
    noise_words(noise, static_cast<uint32_t>(block), words);
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

}  // namespace tandem::TANDEM_ISA
