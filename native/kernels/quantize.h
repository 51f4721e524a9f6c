// Activations to int8, once per row and block of 32 columns.
//
// amax = max |x|, scale = amax / 127, q = round-half-even(x * (127 / amax)), sum = sum of q. Where amax is at
// most 2^-120 (whose reciprocal would overflow) the block counts as zero: scale, q and sum are 0.
#pragma once

#include "kernels/packed_matrix.h"
#include "kernels/simd.h"

namespace tandem::TANDEM_ISA {

// `n` is a multiple of 32.
inline void quantize_row(const float* x, int64_t n, int8_t* q, float* scale, int32_t* sum) {
    for (int64_t b = 0; b < n / kBlockColumns; ++b, x += kBlockColumns, q += kBlockColumns) {
        const F32x16 first = load(x), second = load(x + kLanes);
        const float amax = reduce_max(max(abs(first), abs(second)));
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
