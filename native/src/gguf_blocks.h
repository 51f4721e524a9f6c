// GGUF's quantized blocks taken apart: integer values and scales of 32 columns at a time.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/packed_matrix.h"

namespace tandem {

// Scale and minimum of sub-block `j` of 8 from the 12 bytes that hold eight 6-bit pairs (Q4_K, Q5_K).
inline void k_scale_min(const uint8_t* s, int j, uint8_t* scale, uint8_t* minimum) {
    if (j < 4) {
        *scale = s[j] & 63;
        *minimum = s[j + 4] & 63;
    } else {
        *scale = static_cast<uint8_t>((s[j + 4] & 15) | ((s[j - 4] >> 2) & 0x30));
        *minimum = static_cast<uint8_t>((s[j + 4] >> 4) | ((s[j] >> 2) & 0x30));
    }
}

// The stored unsigned values of 32 columns: block `j` of the source block at `p` (j is 0 but for K types,
// 0..7 there).
template <WeightType T>
inline void read_quants(const uint8_t* p, int j, uint8_t* q) {
    if constexpr (T == WeightType::kQ8_0) {
        for (int c = 0; c < 32; ++c) q[c] = p[2 + c] ^ 0x80;
    } else if constexpr (T == WeightType::kQ6_K) {
        const uint8_t* low = p + 64 * (j / 4) + 32 * (j % 2);
        const uint8_t* high = p + 128 + 32 * (j / 4);
        const int low_shift = 4 * ((j / 2) % 2), high_shift = 2 * (j % 4);
        for (int c = 0; c < 32; ++c) {
            q[c] = static_cast<uint8_t>(((low[c] >> low_shift) & 15) | (((high[c] >> high_shift) & 3) << 4));
        }
    } else if constexpr (is_k_quant(T)) {
        const uint8_t* low = p + (T == WeightType::kQ5_K ? 48 : 16) + 32 * (j / 2);
        const int shift = 4 * (j % 2);
        for (int c = 0; c < 32; ++c) q[c] = (low[c] >> shift) & 15;
        if constexpr (T == WeightType::kQ5_K) {
            for (int c = 0; c < 32; ++c) q[c] |= static_cast<uint8_t>(((p[16 + c] >> j) & 1) << 4);
        }
    } else {
        constexpr int kScales = has_minimum(T) ? 4 : 2;
        const uint8_t* low = p + kScales + (quant_bits(T) == 5 ? 4 : 0);
        for (int c = 0; c < 16; ++c) {
            q[c] = low[c] & 15;
            q[16 + c] = low[c] >> 4;
        }
        if constexpr (quant_bits(T) == 5) {
            for (int byte = 0; byte < 4; ++byte) {
                // Eight bits to eight bytes: each byte keeps its own bit, then 16 where that is set.
                constexpr uint64_t kEach = 0x0101010101010101, kOwnBit = 0x8040201008040201;
                const uint64_t bits = (p[kScales + byte] * kEach) & kOwnBit;
                const uint64_t fifth = ((bits + 0x7f * kEach) >> 3) & (0x10 * kEach);
                uint64_t low_bits;
                std::memcpy(&low_bits, q + 8 * byte, sizeof low_bits);
                low_bits |= fifth;
                std::memcpy(q + 8 * byte, &low_bits, sizeof low_bits);
            }
        }
    }
}

}  // namespace tandem
