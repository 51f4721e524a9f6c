#include "src/dequantize.h"

#define TANDEM_ISA portable
#include "kernels/gguf_blocks.h"
#include "kernels/packed_block.h"

namespace tandem {
namespace {

using portable::read_f16;

template <WeightType T>
void dequantize_blocks(const uint8_t* p, int64_t columns, float* out) {
    const SourceBlock unit = source_block(T);
    uint8_t q[kBlockColumns];
    for (int64_t begin = 0; begin < columns; begin += unit.columns, p += unit.bytes) {
        for (int j = 0; j < unit.columns / kBlockColumns; ++j, out += kBlockColumns) {
            portable::store_words(q, portable::read_quants<T>(p, j));
            float scale[2] = {0.0f, 0.0f};
            float minimum = 0.0f;
            if constexpr (T == WeightType::kQ6_K) {
                const auto* scales = reinterpret_cast<const int8_t*>(p + 192);
                const float d = read_f16(p + 208);
                scale[0] = d * static_cast<float>(scales[2 * j]);
                scale[1] = d * static_cast<float>(scales[2 * j + 1]);
            } else if constexpr (is_k_quant(T)) {
                uint8_t scales[8], minimums[8];
                portable::k_scales_minimums(p + 4, scales, minimums);
                scale[0] = scale[1] = read_f16(p) * static_cast<float>(scales[j]);
                minimum = read_f16(p + 2) * static_cast<float>(minimums[j]);
            } else {
                scale[0] = scale[1] = read_f16(p);
                if constexpr (has_minimum(T)) minimum = -read_f16(p + 2);
            }
            for (int c = 0; c < kBlockColumns; ++c) {
                const float value = scale[c / 16] * static_cast<float>(q[c] - zero_point(T));
                out[c] = has_minimum(T) ? value - minimum : value;
            }
        }
    }
}

template <WeightType T>
void unpack_blocks(const PackedMatrix& matrix, int64_t row, float* out) {
    for (int64_t b = 0; b < matrix.columns / kBlockColumns; ++b, out += kBlockColumns) {
        const auto block =
            portable::read_block<T>(matrix, row / kGroupRows, static_cast<int>(row % kGroupRows), b);
        for (int c = 0; c < kBlockColumns; ++c) {
            const float value = block.scale[c / 16] * static_cast<float>(block.q[c]);
            out[c] = has_minimum(T) ? value + block.minimum : value;
        }
    }
}

}  // namespace

void dequantize_row(WeightType type, const uint8_t* source, int64_t columns, float* out) {
    switch (type) {
        case WeightType::kF32:
            std::memcpy(out, source, static_cast<size_t>(columns) * 4);
            return;
        case WeightType::kF16:
            for (int64_t c = 0; c < columns; ++c) out[c] = read_f16(source + 2 * c);
            return;
        case WeightType::kBF16:
            for (int64_t c = 0; c < columns; ++c) {
                const uint32_t bits = static_cast<uint32_t>(source[2 * c] << 16) |
                                      static_cast<uint32_t>(source[2 * c + 1]) << 24;
                std::memcpy(out + c, &bits, sizeof bits);
            }
            return;
        case WeightType::kQ4_0:
            return dequantize_blocks<WeightType::kQ4_0>(source, columns, out);
        case WeightType::kQ4_1:
            return dequantize_blocks<WeightType::kQ4_1>(source, columns, out);
        case WeightType::kQ5_0:
            return dequantize_blocks<WeightType::kQ5_0>(source, columns, out);
        case WeightType::kQ5_1:
            return dequantize_blocks<WeightType::kQ5_1>(source, columns, out);
        case WeightType::kQ8_0:
            return dequantize_blocks<WeightType::kQ8_0>(source, columns, out);
        case WeightType::kQ4_K:
            return dequantize_blocks<WeightType::kQ4_K>(source, columns, out);
        case WeightType::kQ5_K:
            return dequantize_blocks<WeightType::kQ5_K>(source, columns, out);
        case WeightType::kQ6_K:
            return dequantize_blocks<WeightType::kQ6_K>(source, columns, out);
    }
}

void packed_row(const PackedMatrix& matrix, int64_t row, float* out) {
    switch (matrix.type) {
        case WeightType::kF32:
        case WeightType::kF16:
        case WeightType::kBF16:
            for (int64_t c = 0; c < matrix.columns; ++c) {
                out[c] =
                    portable::read_float(matrix, row / kGroupRows, static_cast<int>(row % kGroupRows), c);
            }
            return;
        case WeightType::kQ4_0:
            return unpack_blocks<WeightType::kQ4_0>(matrix, row, out);
        case WeightType::kQ4_1:
            return unpack_blocks<WeightType::kQ4_1>(matrix, row, out);
        case WeightType::kQ5_0:
            return unpack_blocks<WeightType::kQ5_0>(matrix, row, out);
        case WeightType::kQ5_1:
            return unpack_blocks<WeightType::kQ5_1>(matrix, row, out);
        case WeightType::kQ8_0:
            return unpack_blocks<WeightType::kQ8_0>(matrix, row, out);
        case WeightType::kQ4_K:
            return unpack_blocks<WeightType::kQ4_K>(matrix, row, out);
        case WeightType::kQ5_K:
            return unpack_blocks<WeightType::kQ5_K>(matrix, row, out);
        case WeightType::kQ6_K:
            return unpack_blocks<WeightType::kQ6_K>(matrix, row, out);
    }
}

}  // namespace tandem
