// A row of logits as the sampler sees it, and the table of its loops over the vocabulary, one per instruction
// set.
#pragma once

#include <bit>
#include <cstdint>

#include "kernels/philox.h"

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

// Top-p sorts tokens into buckets of equal width by their shifted logit, from 0 down to kMasslessBelow; the
// one behind the last takes what has no mass.
inline constexpr int kBuckets = 4096;

// |shifted| times this is the bucket: monotonic, so a token of a higher logit is never in a later bucket.
inline constexpr float kBucketsPerUnit = kBuckets / -kMasslessBelow;

[[gnu::always_inline]] inline int32_t bucket_of(float shifted) {
    const float magnitude = std::bit_cast<float>(std::bit_cast<uint32_t>(shifted) & 0x7fffffffu);
    const auto at = std::bit_cast<uint32_t>(magnitude * kBucketsPerUnit);  // as in mass_of
    const auto last = std::bit_cast<uint32_t>(static_cast<float>(kBuckets));
    return static_cast<int32_t>(std::bit_cast<float>(at < last ? at : last));
}
inline constexpr double kMassUnit = 0x1p-40;

struct SamplerKernels {
    // Writes the largest key of each block.
    KeyRange (*scan)(const float* x, int32_t vocab, int32_t* block_keys);
    // Copies a row; with a mask, tokens whose bit is clear become -infinity. Returns the range of the row
    // before masking.
    KeyRange (*copy)(const float* x, const uint32_t* mask, int32_t vocab, float* out);
    uint64_t (*total_mass)(const LogitRow& row);
    // The bucket and the mass of each token of a block.
    void (*bucket_masses)(const LogitRow& row, int32_t block, int32_t* buckets, uint64_t* masses);
    // The buckets alone; returns whether any is `bucket`.
    bool (*find_bucket)(const LogitRow& row, int32_t block, int32_t bucket, int32_t* buckets);
    // Tokens that come before `token` when ordered by logit, highest first, then by id.
    int32_t (*count_before)(const LogitRow& row, int32_t token);
    // The noise words of a block, and for each token an upper bound of shifted logit plus Gumbel noise, cheap
    // and at most 0.07 too high where it matters: -log(-log u) <= -log(1 - u), and the bits of a float32 v,
    // read as a fixed-point number, are at most log2(v). Returns whether any bound reaches `threshold`.
    bool (*noise_bounds)(const LogitRow& row, int32_t block, const NoiseStream& noise, float threshold,
                         uint32_t* words, float* bounds);
};

}  // namespace tandem
