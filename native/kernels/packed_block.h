// Reads single blocks of a PackedMatrix one weight at a time: the layout's plain statement, for the scalar
// products and for taking out single rows.
#pragma once

#include "kernels/packed_matrix.h"
#include "kernels/simd.h"

namespace tandem::TANDEM_ISA {

// One row's 32 columns: weight = scale[c / 16] * q[c] + minimum (0 where the type has none).
struct RowBlock {
    int32_t q[kBlockColumns];
    float scale[2];
    float minimum;
};

TANDEM_INLINE float read_f16(const uint8_t* p) {
    uint16_t h;
    std::memcpy(&h, p, sizeof h);
    return f16_to_f32(h);
}

template <WeightType T>
inline RowBlock read_block(const PackedMatrix& w, int64_t group, int row, int64_t block) {
    const uint8_t* panel = w.data + group * w.group_bytes + block / kPanelBlocks * panel_bytes(T);
    const int b = static_cast<int>(block % kPanelBlocks);
    const uint8_t* quants = panel + header_bytes(T) + b * block_bytes(T);
    RowBlock out;
    for (int c = 0; c < kBlockColumns; ++c) {
        const int quad = c / 4, half = quad / 4, byte = 4 * row + c % 4;
        int value;
        if (quant_bits(T) == 8) {
            value = quants[64 * quad + byte];
        } else {
            value = (quants[64 * (quad % 4) + byte] >> (4 * half)) & 15;
            const uint8_t* high = quants + 256 + byte;
            if (quant_bits(T) == 5) value |= ((high[0] >> quad) & 1) << 4;
            if (quant_bits(T) == 6) value |= ((high[64 * half] >> (2 * (quad % 4))) & 3) << 4;
        }
        out.q[c] = value - zero_point(T);
    }
    out.minimum = 0.0f;
    if (T == WeightType::kQ6_K) {
        const float d = read_f16(panel + 2 * row);
        const auto* scales = reinterpret_cast<const int8_t*>(panel + 64);
        out.scale[0] = d * static_cast<float>(scales[32 * b + row]);
        out.scale[1] = d * static_cast<float>(scales[32 * b + 16 + row]);
        return out;
    }
    if (is_k_quant(T)) {
        out.scale[0] = read_f16(panel + 2 * row) * static_cast<float>(panel[64 + 16 * b + row]);
        out.minimum = read_f16(panel + 32 + 2 * row) * static_cast<float>(panel[192 + 16 * b + row]);
    } else {
        out.scale[0] = read_f16(panel + 32 * b + 2 * row);
        if (has_minimum(T)) out.minimum = read_f16(panel + 256 + 32 * b + 2 * row);
    }
    out.scale[1] = out.scale[0];
    return out;
}

// Weight `column` of a float type's row.
inline float read_float(const PackedMatrix& w, int64_t group, int row, int64_t column) {
    const uint8_t* p = w.data + group * w.group_bytes + (column * kGroupRows + row) * float_bytes(w.type);
    if (w.type == WeightType::kF16) return read_f16(p);
    uint32_t bits = 0;
    if (w.type == WeightType::kBF16) {
        uint16_t upper;
        std::memcpy(&upper, p, sizeof upper);
        bits = static_cast<uint32_t>(upper) << 16;
    } else {
        std::memcpy(&bits, p, sizeof bits);
    }
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

}  // namespace tandem::TANDEM_ISA
