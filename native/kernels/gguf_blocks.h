// GGUF's quantized blocks taken apart: integer values and scales of 32 columns at a time.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/packed_matrix.h"
#include "kernels/words.h"

namespace tandem::TANDEM_ISA {

// The eight 6-bit scales and minimums that 12 bytes hold (Q4_K, Q5_K).
inline void k_scales_minimums(const uint8_t* p, uint8_t (&scales)[8], uint8_t (&minimums)[8]) {
    uint32_t s[3];
    std::memcpy(s, p, sizeof s);
    const uint32_t scale[2] = {s[0] & 0x3f3f3f3f, (s[2] & 0x0f0f0f0f) | ((s[0] >> 2) & 0x30303030)};
    const uint32_t minimum[2] = {s[1] & 0x3f3f3f3f, ((s[2] >> 4) & 0x0f0f0f0f) | ((s[1] >> 2) & 0x30303030)};
    std::memcpy(scales, scale, sizeof scale);
    std::memcpy(minimums, minimum, sizeof minimum);
}

// The stored unsigned values of 32 columns, a byte each: block `j` of the source block at `p` (j is 0 but for
// K types, 0..7 there).
template <WeightType T>
TANDEM_INLINE Words read_quants(const uint8_t* p, int j) {
    if constexpr (T == WeightType::kQ8_0) {
        return load_words(p + 2) ^ 0x80808080u;
    } else if constexpr (T == WeightType::kQ6_K) {
        const Words low = load_words(p + 64 * (j / 4) + 32 * (j % 2)) >> 4 * (j / 2 % 2);
        const Words high = load_words(p + 128 + 32 * (j / 4)) >> 2 * (j % 4);
        return (low & 0x0f0f0f0fu) | (high & 0x03030303u) << 4;
    } else if constexpr (is_k_quant(T)) {
        const Words low = load_words(p + (T == WeightType::kQ5_K ? 48 : 16) + 32 * (j / 2)) >> 4 * (j % 2);
        const Words q = low & 0x0f0f0f0fu;
        if constexpr (T != WeightType::kQ5_K) return q;
        return q | (load_words(p + 16) >> j & 0x01010101u) << 4;
    } else {
        constexpr int kScales = has_minimum(T) ? 4 : 2;
        // The low nibbles are the first 16 columns, the high ones the others.
        const HalfWords bytes = load_half_words(p + kScales + (quant_bits(T) == 5 ? 4 : 0));
        const Words q = join(bytes & 0x0f0f0f0fu, bytes >> 4 & 0x0f0f0f0fu);
        if constexpr (quant_bits(T) != 5) return q;
        return q | (spread_bits(p + kScales) & 0x10101010u);
    }
}

}  // namespace tandem::TANDEM_ISA
