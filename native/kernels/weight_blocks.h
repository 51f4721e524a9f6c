// Rows of float32 weights as GGUF stores them: the types that need no search, bit for bit what ggml's
// reference writes (ggml-quants.c, quantize_row_*_ref), and the layouts that a search fills too.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/packed_matrix.h"
#include "kernels/simd.h"

namespace tandem::TANDEM_ISA {

TANDEM_INLINE void put_f16(uint8_t* p, float x) {
    const uint16_t half = f16_bits(x);
    std::memcpy(p, &half, sizeof half);
}

// Rounded down, for 0 <= x < 2^22.
TANDEM_INLINE F32x16 floor_positive(F32x16 x) {
    const F32x16 nearest = round(x);
    return nearest - keep_above(nearest, x, splat(1.0f));
}

// The first of 32 values with the largest magnitude; 0 where all are zeros.
TANDEM_INLINE float extreme(const float* x) {
    const F32x16 a = load(x), b = load(x + 16), zero = splat(0.0f);
    const float high = reduce_max(max(a, b)), low = reduce_max(max(zero - a, zero - b));
    if (high != low) return high > low ? high : -low;
    for (int i = 0; i < kBlockColumns && high > 0.0f; ++i) {
        if (std::fabs(x[i]) == high) return x[i];
    }
    return 0.0f;
}

// The smallest of 32 values; of zeros, whose sign is stored, the first.
TANDEM_INLINE float smallest(const float* x) {
    const F32x16 zero = splat(0.0f);
    const float low = -reduce_max(max(zero - load(x), zero - load(x + 16)));
    for (int i = 0; i < kBlockColumns && low == 0.0f; ++i) {
        if (x[i] == 0.0f) return x[i];
    }
    return low;
}

// One block of 32 columns: its scale, its minimum where the type has one, and its stored unsigned values.
template <WeightType T>
TANDEM_INLINE void put_block(uint8_t* out, float scale, float minimum, const uint8_t* q) {
    put_f16(out, scale);
    uint8_t* p = out + 2;
    if constexpr (has_minimum(T)) {
        put_f16(p, minimum);
        p += 2;
    }
    if constexpr (quant_bits(T) == 5) {
        uint32_t fifth = 0;
        for (int i = 0; i < kBlockColumns; ++i) fifth |= static_cast<uint32_t>(q[i] >> 4) << i;
        std::memcpy(p, &fifth, sizeof fifth);
        p += 4;
    }
    for (int i = 0; i < 16; ++i) p[i] = static_cast<uint8_t>((q[i] & 15) | q[i + 16] << 4);
}

// Q4_0, Q5_0: the extreme value becomes the lowest quant. Q4_1, Q5_1: from the smallest value to the largest.
template <WeightType T>
TANDEM_INLINE void quantize_block(const float* x, uint8_t* out) {
    constexpr int kMost = (1 << quant_bits(T)) - 1;
    float scale, minimum = 0.0f, offset;
    if constexpr (has_minimum(T)) {
        minimum = smallest(x);
        scale = (reduce_max(max(load(x), load(x + 16))) - minimum) / static_cast<float>(kMost);
        offset = 0.5f;
    } else {
        scale = extreme(x) / static_cast<float>(-zero_point(T));
        offset = static_cast<float>(zero_point(T)) + 0.5f;
    }
    const float inverse = scale != 0.0f ? 1.0f / scale : 0.0f;
    uint8_t q[kBlockColumns];
    for (int i = 0; i < kBlockColumns; i += kLanes) {
        F32x16 v = load(x + i);
        if constexpr (has_minimum(T)) v = v - splat(minimum);
        // Never negative, but NaN where the scale is so small that its inverse is infinite.
        v = max(v * splat(inverse) + splat(offset), splat(0.0f));
        v = floor_positive(min(v, splat(static_cast<float>(kMost))));
        store_i8(reinterpret_cast<int8_t*>(q) + i, v);
    }
    put_block<T>(out, scale, minimum, q);
}

template <>
TANDEM_INLINE void quantize_block<WeightType::kQ8_0>(const float* x, uint8_t* out) {
    const float scale = reduce_max(max(abs(load(x)), abs(load(x + 16)))) / 127.0f;
    const float inverse = scale != 0.0f ? 1.0f / scale : 0.0f;
    const F32x16 zero = splat(0.0f);
    put_f16(out, scale);
    for (int i = 0; i < kBlockColumns; i += kLanes) {
        const F32x16 v = load(x + i) * splat(inverse);
        // Halves away from zero, as C's roundf: the largest float below a half decides.
        const F32x16 magnitude = min(max(abs(v), zero), splat(127.0f)), whole = floor_positive(magnitude);
        const F32x16 q = whole + keep_above(magnitude - whole, splat(0x1.fffffep-2f), splat(1.0f));
        store_i8(reinterpret_cast<int8_t*>(out) + 2 + i, q - keep_above(zero, v, q + q));
    }
}

// `n` values of a float type, widened.
inline void read_floats(WeightType type, const uint8_t* source, int64_t n, float* out) {
    if (type == WeightType::kF32) {
        std::memcpy(out, source, static_cast<size_t>(n) * sizeof(float));
        return;
    }
    for (int64_t i = 0; i < n; i += kLanes) {
        const int64_t count = n - i < kLanes ? n - i : kLanes;
        uint16_t halves[kLanes] = {};
        std::memcpy(halves, source + 2 * i, static_cast<size_t>(count) * 2);
        const F32x16 v = type == WeightType::kF16 ? load_f16(halves) : load_bf16(halves);
        float lanes[kLanes];
        store(lanes, v);
        std::memcpy(out + i, lanes, static_cast<size_t>(count) * sizeof(float));
    }
}

inline void write_floats(WeightType type, const float* x, int64_t n, uint8_t* out) {
    if (type == WeightType::kF32) {
        std::memcpy(out, x, static_cast<size_t>(n) * sizeof(float));
    } else if (type == WeightType::kF16) {
        for (int64_t i = 0; i < n; ++i) put_f16(out + 2 * i, x[i]);
    } else {
        for (int64_t i = 0; i < n; ++i) {
            uint32_t bits;
            std::memcpy(&bits, x + i, sizeof bits);
            // 0x7fff, and one more where the kept part is odd, carries into it exactly when it rounds up.
            const auto half = static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
            std::memcpy(out + 2 * i, &half, sizeof half);
        }
    }
}

}  // namespace tandem::TANDEM_ISA
