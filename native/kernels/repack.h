// From GGUF's rows to the groups of 16 that packed_matrix.h describes: this file and packed_block.h are where
// that layout is written down in code. Bits are moved and nothing is computed, so all instruction sets write
// the same bytes.
#pragma once

#include "kernels/gguf_blocks.h"
#include "kernels/packed_matrix.h"
#include "kernels/words.h"

namespace tandem::TANDEM_ISA {

inline constexpr int kHalfRows = kGroupRows / 2;

// Word i of q[j] is quad j of the block's row i, a byte a column; these eight rows are one half of the group,
// and `out` is where its first row's quads go.
template <WeightType T>
TANDEM_INLINE void pack_quants(const Words (&q)[8], uint8_t* out) {
    if constexpr (quant_bits(T) == 8) {
        for (int j = 0; j < 8; ++j) store_words(out + 64 * j, q[j]);
        return;
    }
    for (int j = 0; j < 4; ++j) {
        store_words(out + 64 * j, (q[j] & 0x0f0f0f0fu) | (q[j + 4] & 0x0f0f0f0fu) << 4);
    }
    if constexpr (quant_bits(T) == 5) {
        Words bits{};
        for (int j = 0; j < 8; ++j) bits |= (q[j] >> 4 & 0x01010101u) << j;
        store_words(out + 256, bits);
    }
    if constexpr (quant_bits(T) == 6) {
        for (int upper = 0; upper < 2; ++upper) {
            Words bits{};
            for (int j = 0; j < 4; ++j) bits |= (q[4 * upper + j] >> 4 & 0x03030303u) << 2 * j;
            store_words(out + 256 + 64 * upper, bits);
        }
    }
}

// Writes row `i` of a panel's header from the row's source bytes, which hold `blocks` blocks of 32 columns.
template <WeightType T>
TANDEM_INLINE void pack_header(const uint8_t* source, int blocks, int i, uint8_t* panel) {
    if constexpr (T == WeightType::kQ6_K) {
        std::memcpy(panel + 2 * i, source + 208, 2);
        for (int k = 0; k < 16; ++k) panel[64 + 16 * k + i] = source[192 + k];
    } else if constexpr (is_k_quant(T)) {
        uint8_t scales[8], minimums[8];
        k_scales_minimums(source + 4, scales, minimums);
        for (int b = 0; b < 8; ++b) {
            panel[64 + 16 * b + i] = scales[b];
            panel[192 + 16 * b + i] = minimums[b];
        }
        std::memcpy(panel + 2 * i, source, 2);
        panel[32 + 2 * i] = source[2];
        panel[33 + 2 * i] = source[3] ^ 0x80;  // the sign, so that products add the minimum
    } else {
        for (int b = 0; b < blocks; ++b, source += source_block(T).bytes) {
            std::memcpy(panel + 32 * b + 2 * i, source, 2);
            if constexpr (has_minimum(T)) std::memcpy(panel + 256 + 32 * b + 2 * i, source + 2, 2);
        }
    }
}

// Asks for a stretch of source bytes early: sixteen rows at once are more streams than prefetchers follow.
// The next group's rows are one stretch, of which each panel asks for its part.
TANDEM_INLINE void prefetch(const uint8_t* p, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i, 0, 2);
}

template <WeightType T>
void repack_quantized(const PackedMatrix& w, const uint8_t* source, int64_t group) {
    constexpr SourceBlock kUnit = source_block(T);
    constexpr int64_t kPanelSource = kPanelBlocks * kBlockColumns / kUnit.columns * kUnit.bytes;
    const int64_t row_bytes = w.columns / kUnit.columns * kUnit.bytes;
    const int64_t left = w.rows - group * kGroupRows;
    const int rows = left < kGroupRows ? static_cast<int>(left) : kGroupRows;
    const uint8_t* panel_source = source;
    const uint8_t* next_source = panel_source + kGroupRows * row_bytes;
    uint8_t* target = w.data + group * w.group_bytes;
    alignas(64) uint8_t panel[panel_bytes(T)];
    for (int64_t block = 0; block < w.columns / kBlockColumns; block += kPanelBlocks) {
        const int64_t rest = w.columns / kBlockColumns - block;
        const int blocks = rest < kPanelBlocks ? static_cast<int>(rest) : kPanelBlocks;
        prefetch(next_source, kGroupRows * kPanelSource);
        std::memset(panel, 0, header_bytes(T));
        for (int i = 0; i < rows; ++i) pack_header<T>(panel_source + i * row_bytes, blocks, i, panel);
        uint8_t* out = panel + header_bytes(T);
        for (int b = 0; b < blocks; ++b, out += block_bytes(T)) {
            const uint8_t* p = panel_source + (is_k_quant(T) ? 0 : b * kUnit.bytes);
            const int j = is_k_quant(T) ? b : 0;
            for (int first = 0; first < kGroupRows; first += kHalfRows) {
                Words q[8] = {};
                if (first + kHalfRows <= rows) {
                    for (int i = 0; i < kHalfRows; ++i) q[i] = read_quants<T>(p + (first + i) * row_bytes, j);
                } else {
                    for (int i = 0; first + i < rows; ++i)
                        q[i] = read_quants<T>(p + (first + i) * row_bytes, j);
                }
                transpose(q);
                pack_quants<T>(q, out + 4 * first);
            }
        }
        for (const uint8_t* p = panel; p < out; p += 32, target += 32) stream_words(target, load_words(p));
        panel_source += kPanelSource;
        next_source += kGroupRows * kPanelSource;
    }
}

// Sixteen rows of 32-bit or 16-bit values, columns in order.
template <typename Value>
void repack_float(const PackedMatrix& w, const uint8_t* source, int64_t group) {
    constexpr int64_t kSize = sizeof(Value), kStep = 32 / kSize;  // columns that a row gives to one vector
    const int64_t row_bytes = w.columns * kSize;
    const int64_t left = w.rows - group * kGroupRows;
    const int rows = left < kGroupRows ? static_cast<int>(left) : kGroupRows;
    const uint8_t* next = source + kGroupRows * row_bytes;
    uint8_t* out = w.data + group * w.group_bytes;
    int64_t column = 0;
    for (; rows == kGroupRows && column + kStep <= w.columns; column += kStep) {
        Words v[2][8];
        prefetch(next + kGroupRows * column * kSize, kGroupRows * 32);
        for (int half = 0; half < 2; ++half) {
            for (int i = 0; i < kHalfRows; ++i) {
                v[half][i] = load_words(source + (half * kHalfRows + i) * row_bytes + column * kSize);
            }
            transpose(v[half]);
        }
        for (int k = 0; k < 8; ++k, out += 64) {
            stream_words(out, kSize == 4 ? v[0][k] : lower_halves(v[0][k], v[1][k]));
            stream_words(out + 32, kSize == 4 ? v[1][k] : upper_halves(v[0][k], v[1][k]));
        }
    }
    std::memset(out, 0, static_cast<size_t>(w.data + (group + 1) * w.group_bytes - out));
    for (; column < w.columns; ++column, out += kGroupRows * kSize) {
        for (int i = 0; i < rows; ++i) {
            std::memcpy(out + i * kSize, source + i * row_bytes + column * kSize, kSize);
        }
    }
}

// `source`: the rows of the groups, from group_begin's first.
inline void repack(const PackedMatrix& w, const uint8_t* source, int64_t group_begin, int64_t group_end) {
    const int64_t group_source = kGroupRows * source_bytes(w.type, 1, w.columns);
    for (int64_t group = group_begin; group < group_end; ++group, source += group_source) {
        switch (w.type) {
            case WeightType::kF32:
                repack_float<uint32_t>(w, source, group);
                break;
            case WeightType::kF16:
            case WeightType::kBF16:
                repack_float<uint16_t>(w, source, group);
                break;
            case WeightType::kQ4_0:
                repack_quantized<WeightType::kQ4_0>(w, source, group);
                break;
            case WeightType::kQ4_1:
                repack_quantized<WeightType::kQ4_1>(w, source, group);
                break;
            case WeightType::kQ5_0:
                repack_quantized<WeightType::kQ5_0>(w, source, group);
                break;
            case WeightType::kQ5_1:
                repack_quantized<WeightType::kQ5_1>(w, source, group);
                break;
            case WeightType::kQ8_0:
                repack_quantized<WeightType::kQ8_0>(w, source, group);
                break;
            case WeightType::kQ4_K:
                repack_quantized<WeightType::kQ4_K>(w, source, group);
                break;
            case WeightType::kQ5_K:
                repack_quantized<WeightType::kQ5_K>(w, source, group);
                break;
            case WeightType::kQ6_K:
                repack_quantized<WeightType::kQ6_K>(w, source, group);
                break;
        }
    }
    finish_streaming();
}

}  // namespace tandem::TANDEM_ISA
