// Products of F32, F16 and BF16 weights on AVX2 and AVX-512: register tiles of weight vectors times activation rows over
// runs of columns short enough that the weights stay in cache for all row tiles.
#pragma once

#include "kernels/matmul_product.h"
#include "kernels/out_tile.h"
#include "kernels/vector_ops.h"

namespace tandem::TANDEM_ISA {

#if defined(__AVX512F__)
inline constexpr int kFloatRows = 12;
#else
inline constexpr int kFloatRows = 6;
#endif
inline constexpr int64_t kFloatColumns = 256;

template <WeightType T>
TANDEM_INLINE Floats load_weights(const uint8_t* p) {
    if constexpr (T == WeightType::kF32) return load_floats(reinterpret_cast<const float*>(p));
    if constexpr (T == WeightType::kF16) return widen_f16(p);
    return widen_bf16(p);
}

template <WeightType T, int kVectors, int kRows>
inline void float_tile(const Product& p, int64_t vector, int row, int64_t first, int64_t columns) {
    constexpr int64_t kColumnBytes = kGroupRows * float_bytes(T);
    const OutTile out{p.out + row * p.out_stride + vector * kVectorRows, p.out_stride,
                      p.w->rows - vector * kVectorRows};
    Floats acc[kVectors][kRows];
    if (first == 0) {
        clear(acc);
    } else {
        out.load(acc);
    }
    const uint8_t* w[kVectors];
    TANDEM_UNROLL
    for (int v = 0; v < kVectors; ++v) {
        w[v] = vector_group(*p.w, vector + v) + first * kColumnBytes + vector_lane(vector + v) * float_bytes(T);
    }
    const int64_t stride = p.x->f32_stride;
    const float* x = p.x->f32 + row * stride + first;
    for (int64_t c = 0; c < columns; ++c, ++x) {
        Floats weights[kVectors];
        TANDEM_UNROLL
        for (int v = 0; v < kVectors; ++v) weights[v] = load_weights<T>(w[v] + c * kColumnBytes);
        TANDEM_UNROLL
        for (int r = 0; r < kRows; ++r) {
            const Floats lanes = all_floats(x[r * stride]);
            TANDEM_UNROLL
            for (int v = 0; v < kVectors; ++v) acc[v][r] = multiply_add(weights[v], lanes, acc[v][r]);
        }
    }
    out.store(acc);
}

// Rows [row, row + kRows) with all vectors of the range, over one run of columns.
template <WeightType T, int kRows>
inline void float_rows(const Product& p, int64_t v, int64_t end, int row, int64_t first, int64_t columns) {
    constexpr int kVectors = kRows == 1 ? 8 : kRows <= 3 && kVectorRows == 16 ? 4 : 2;
    for (; v + kVectors <= end; v += kVectors) float_tile<T, kVectors, kRows>(p, v, row, first, columns);
    if constexpr (kVectors > 2) {
        for (; v + 2 <= end; v += 2) float_tile<T, 2, kRows>(p, v, row, first, columns);
    }
    for (; v < end; ++v) float_tile<T, 1, kRows>(p, v, row, first, columns);
}

template <WeightType T>
inline void multiply_float(const Product& p) {
    const int64_t columns = p.x->columns, begin = p.group_begin * kGroupVectors, end = p.group_end * kGroupVectors;
    const int tiles = (p.rows + kFloatRows - 1) / kFloatRows;
    // One row tile reads the weights once anyway; several share a run of columns of two vectors.
    const int64_t run = tiles > 1 ? kFloatColumns : columns, span = tiles > 1 ? 2 : end - begin;
    int64_t first = 0;
    do {  // once even where there are no columns, to write zeros
        const int64_t n = smaller(run, columns - first);
        for (int64_t v = begin; v < end; v += span) {
            for (int t = 0, row = 0; t < tiles; ++t) {
                const int rows = (p.rows - row + tiles - t - 1) / (tiles - t);
                with_constant<kFloatRows>(rows, [&](auto r) {
                    float_rows<T, r()>(p, v, smaller(v + span, end), row, first, n);
                });
                row += rows;
            }
        }
        first += run;
    } while (first < columns);
}

}  // namespace tandem::TANDEM_ISA
