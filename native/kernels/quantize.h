// Activations to int8, once per row and block of 32 columns.
//
// amax = max |x|, scale = amax / 127, q = round-half-even(x * (127 / amax)), sum = sum of q. Where amax is at
// most 2^-120 (whose reciprocal would overflow) the block counts as zero: scale, q and sum are 0.
#pragma once

#include "kernels/packed_matrix.h"
#include "kernels/simd.h"

namespace tandem::TANDEM_ISA {

TANDEM_INLINE float largest_lane(F32x16 a) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
    const __m256 m8 = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
#else
    const __m256 m8 = _mm256_max_ps(a.lo, a.hi);
#endif
    const __m128 m4 = _mm_max_ps(_mm256_castps256_ps128(m8), _mm256_extractf128_ps(m8, 1));
    const __m128 m2 = _mm_max_ps(m4, _mm_movehl_ps(m4, m4));
    return _mm_cvtss_f32(_mm_max_ss(m2, _mm_movehdup_ps(m2)));
#else
    return reduce_max(a);
#endif
}

// `n` is a multiple of 32.
inline void quantize_row(const float* x, int64_t n, int8_t* q, float* scale, int32_t* sum) {
    for (int64_t b = 0; b < n / kBlockColumns; ++b, x += kBlockColumns, q += kBlockColumns) {
        const F32x16 first = load(x), second = load(x + kLanes);
        const float amax = largest_lane(max(abs(first), abs(second)));
        const bool zero = amax <= 0x1p-120f;
        const F32x16 inverse = splat(zero ? 0.0f : 127.0f / amax);
        const F32x16 low = round(first * inverse), high = round(second * inverse);
        store_i8(q, low);
        store_i8(q + kLanes, high);
        scale[b] = zero ? 0.0f : amax / 127.0f;
        sum[b] = static_cast<int32_t>(reduce_add(low + high));  // exact in float32
    }
}

}  // namespace tandem::TANDEM_ISA
