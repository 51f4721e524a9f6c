// The products' definition in plain C++, for any CPU and as the specification of the vector versions.
#pragma once

#include "kernels/matmul_product.h"
#include "kernels/packed_block.h"

namespace tandem::TANDEM_ISA {

// Sixteen outputs of one activation row gain one block of 32 columns.
template <WeightType T>
inline void add_block(const RowBlock* w, const int8_t* q, float dx, int32_t sum, float* acc) {
    for (int i = 0; i < kGroupRows; ++i) {
        int32_t dot[2] = {0, 0};
        for (int c = 0; c < kBlockColumns; ++c) dot[c / 16] += w[i].q[c] * q[c];
        if constexpr (T == WeightType::kQ6_K) {
            const float t = std::fma(w[i].scale[1], static_cast<float>(dot[1]),
                                     w[i].scale[0] * static_cast<float>(dot[0]));
            acc[i] = std::fma(dx, t, acc[i]);
        } else {
            acc[i] = std::fma(w[i].scale[0] * dx, static_cast<float>(dot[0] + dot[1]), acc[i]);
            if constexpr (has_minimum(T))
                acc[i] = std::fma(w[i].minimum, dx * static_cast<float>(sum), acc[i]);
        }
    }
}

// Copies the lanes of a group that the matrix has.
inline void write_group(const Product& p, int64_t group, int row, const float* acc) {
    const int64_t n = smaller(kGroupRows, p.w->rows - group * kGroupRows);
    std::memcpy(p.out + row * p.out_stride + group * kGroupRows, acc, static_cast<size_t>(n) * sizeof(float));
}

template <WeightType T>
inline void multiply_quantized(const Product& p) {
    constexpr int kRows = 16;  // activation rows that share one reading of the weights
    const int64_t blocks = p.x->columns / kBlockColumns;
    for (int64_t g = p.group_begin; g < p.group_end; ++g) {
        for (int first = 0; first < p.rows; first += kRows) {
            const int rows = static_cast<int>(smaller(kRows, p.rows - first));
            float acc[kRows][kGroupRows] = {};
            for (int64_t b = 0; b < blocks; ++b) {
                RowBlock w[kGroupRows];
                for (int i = 0; i < kGroupRows; ++i) w[i] = read_block<T>(*p.w, g, i, b);
                for (int r = 0; r < rows; ++r) {
                    const int64_t at = (first + r) * blocks + b;
                    const int8_t* q =
                        p.x->q + (first + r) * quantized_stride(p.x->columns) + b * kBlockColumns;
                    add_block<T>(w, q, p.x->scale[at], p.x->sum[at], acc[r]);
                }
            }
            for (int r = 0; r < rows; ++r) write_group(p, g, first + r, acc[r]);
        }
    }
}

template <WeightType T>
inline void multiply_float(const Product& p) {
    for (int64_t g = p.group_begin; g < p.group_end; ++g) {
        for (int r = 0; r < p.rows; ++r) {
            float acc[kGroupRows] = {};
            for (int64_t c = 0; c < p.x->columns; ++c) {
                const float x = p.x->f32[r * p.x->f32_stride + c];
                for (int i = 0; i < kGroupRows; ++i) acc[i] = std::fma(read_float(*p.w, g, i, c), x, acc[i]);
            }
            write_group(p, g, r, acc);
        }
    }
}

}  // namespace tandem::TANDEM_ISA
