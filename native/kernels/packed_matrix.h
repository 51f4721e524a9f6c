// Weights in the CPU's own layout: groups of 16 output rows interleaved, so that one load feeds the dot
// products of 16 (AVX-512) or 8 (AVX2) rows. Repacked at load, read-only afterwards.
//
// A group of a quantized type is a sequence of panels of 256 columns (the last may have fewer blocks of 32).
// A panel is a header of fixed size, then one run of bytes for each block of 32 columns. Byte 4 i + t of a
// 64-byte vector belongs to row i of the group and to column 4 j + t of the block, where j is the vector's
// quad:
//   4 bits   4 vectors; vector j holds quad j in the low nibbles and quad j + 4 in the high ones
//   5 bits   as 4 bits, then 1 vector whose bit j is the fifth bit of quad j
//   6 bits   as 4 bits, then 2 vectors: bits 2 j and 2 j + 1 of the first are the upper bits of quad j, those
//   of the
//            second of quad j + 4
//   8 bits   8 vectors, one a quad, as value + 128
// Headers, all by group row last:
//   Q4_0 Q5_0 Q8_0   d f16 [8][16]
//   Q4_1 Q5_1        d f16 [8][16], m f16 [8][16]
//   Q4_K Q5_K        d f16 [16], -dmin f16 [16], scales u8 [8][16], minimums u8 [8][16]
//   Q6_K             d f16 [16], 32 unused bytes, scales i8 [16][16]
// Values are stored unsigned: Q4_0 plus 8, Q5_0 plus 16, Q6_K plus 32, Q8_0 plus 128. Rows that the matrix
// does not have are zero bytes. A group of a float type is [columns][16] values, padded to 64 bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace tandem {

// GGUF numbers of the types that products take.
enum class WeightType : int {
    kF32 = 0,
    kF16 = 1,
    kQ4_0 = 2,
    kQ4_1 = 3,
    kQ5_0 = 6,
    kQ5_1 = 7,
    kQ8_0 = 8,
    kQ4_K = 12,
    kQ5_K = 13,
    kQ6_K = 14,
    kBF16 = 30,
};

inline constexpr int kGroupRows = 16;
inline constexpr int kBlockColumns = 32;
inline constexpr int kPanelBlocks = 8;

// Whether products of this type read int8 activations (or float32 ones).
constexpr bool is_quantized(WeightType t) {
    return t != WeightType::kF32 && t != WeightType::kF16 && t != WeightType::kBF16;
}

// Whether weights are scale * q + minimum, rather than scale * (q - zero point).
constexpr bool has_minimum(WeightType t) {
    return t == WeightType::kQ4_1 || t == WeightType::kQ5_1 || t == WeightType::kQ4_K ||
           t == WeightType::kQ5_K;
}

// Whether d and dmin are shared by 256 columns and multiplied by small integers.
constexpr bool is_k_quant(WeightType t) {
    return t == WeightType::kQ4_K || t == WeightType::kQ5_K || t == WeightType::kQ6_K;
}

constexpr int quant_bits(WeightType t) {
    switch (t) {
        case WeightType::kQ5_0:
        case WeightType::kQ5_1:
        case WeightType::kQ5_K:
            return 5;
        case WeightType::kQ6_K:
            return 6;
        case WeightType::kQ8_0:
            return 8;
        default:
            return 4;
    }
}

// What the stored unsigned value exceeds the weight's integer by.
constexpr int zero_point(WeightType t) { return has_minimum(t) ? 0 : 1 << (quant_bits(t) - 1); }

constexpr int64_t header_bytes(WeightType t) {
    return is_k_quant(t) ? 320 : kPanelBlocks * kGroupRows * 2 * (has_minimum(t) ? 2 : 1);
}

constexpr int64_t block_bytes(WeightType t) { return quant_bits(t) * kGroupRows * kBlockColumns / 8; }

constexpr int64_t panel_bytes(WeightType t) { return header_bytes(t) + kPanelBlocks * block_bytes(t); }

constexpr int64_t float_bytes(WeightType t) { return t == WeightType::kF32 ? 4 : 2; }

// Columns and bytes of GGUF's own unit.
struct SourceBlock {
    int columns, bytes;
};
constexpr SourceBlock source_block(WeightType t) {
    switch (t) {
        case WeightType::kF32:
            return {1, 4};
        case WeightType::kF16:
        case WeightType::kBF16:
            return {1, 2};
        case WeightType::kQ4_0:
            return {32, 18};
        case WeightType::kQ4_1:
            return {32, 20};
        case WeightType::kQ5_0:
            return {32, 22};
        case WeightType::kQ5_1:
            return {32, 24};
        case WeightType::kQ8_0:
            return {32, 34};
        case WeightType::kQ4_K:
            return {256, 144};
        case WeightType::kQ5_K:
            return {256, 176};
        case WeightType::kQ6_K:
            return {256, 210};
    }
    return {0, 0};  // not a type that products take
}

struct PackedMatrix {
    WeightType type;
    int64_t rows, columns;
    int64_t groups;  // ceil(rows / 16); missing rows are zero
    int64_t group_bytes;
    int64_t bytes;  // groups * group_bytes
    uint8_t* data;  // 64-byte aligned
    std::shared_ptr<uint8_t> memory;
};

// Bytes of the matrix in a GGUF file. Throws std::invalid_argument for a type that products do not take, for
// an empty matrix and for columns that are not whole source blocks.
int64_t source_bytes(WeightType type, int64_t rows, int64_t columns);

// Throws std::invalid_argument where `bytes` are not exactly those, and as source_bytes does.
void check_source(WeightType type, int64_t rows, int64_t columns, size_t bytes);

// Everything about a matrix but its memory: what a plan asks. Throws as source_bytes does.
PackedMatrix packed_layout(WeightType type, int64_t rows, int64_t columns);

// A matrix whose data is still to be filled by Kernels::repack. Throws as source_bytes does.
PackedMatrix make_packed(WeightType type, int64_t rows, int64_t columns);

}  // namespace tandem
