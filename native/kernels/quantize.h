// Activations to int8, once per row and block of 32 columns.
//
// amax = max |x|, scale = amax / 127, q = round-half-even(x * (127 / amax)), sum = sum of q. Where amax is at most 2^-120
// (whose reciprocal would overflow) the block counts as zero: scale, q and sum are 0.
#pragma once

#include "kernels/packed_matrix.h"
#include "kernels/simd.h"

namespace tandem::TANDEM_ISA {

TANDEM_INLINE int32_t sum_block(const int8_t* q) {
#if defined(__AVX2__)
    // Sums of absolute differences add unsigned bytes: shift by 128, take 32 * 128 off again.
    const __m256i bytes = _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(q)),
                                           _mm256_set1_epi8(static_cast<char>(0x80)));
    const __m256i sums = _mm256_sad_epu8(bytes, _mm256_setzero_si256());
    const __m128i pair = _mm_add_epi64(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    return _mm_cvtsi128_si32(pair) + _mm_extract_epi32(pair, 2) - 128 * kBlockColumns;
#else
    int32_t sum = 0;
    for (int c = 0; c < kBlockColumns; ++c) sum += q[c];
    return sum;
#endif
}

// `n` is a multiple of 32.
inline void quantize_row(const float* x, int64_t n, int8_t* q, float* scale, int32_t* sum) {
    for (int64_t b = 0; b < n / kBlockColumns; ++b, x += kBlockColumns, q += kBlockColumns) {
        const F32x16 first = load(x), second = load(x + kLanes);
        const float amax = reduce_max(max(abs(first), abs(second)));
        const bool zero = amax <= 0x1p-120f;
        const F32x16 inverse = splat(zero ? 0.0f : 127.0f / amax);
        store_i8(q, round(first * inverse));
        store_i8(q + kLanes, round(second * inverse));
        scale[b] = zero ? 0.0f : amax / 127.0f;
        sum[b] = sum_block(q);
    }
}

}  // namespace tandem::TANDEM_ISA
