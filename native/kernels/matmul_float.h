// Products of F32, F16 and BF16 weights on AVX2 and AVX-512: register tiles of weight vectors times
// activation rows over runs of columns short enough that the weights stay in cache for all row tiles.
#pragma once

#include "kernels/matmul_product.h"
#include "kernels/register_tile.h"
#include "kernels/vector_ops.h"

namespace tandem::TANDEM_ISA {

// Several tiles have at least half of kFloatRows rows each, and so equally many vectors.
#if defined(__AVX512F__)
inline constexpr int kFloatRows = 12;
constexpr int float_vectors(int rows) { return rows == 1 ? 8 : rows <= 3 ? 4 : 2; }
#else
inline constexpr int kFloatRows = 6;
constexpr int float_vectors(int rows) { return rows == 1 ? 8 : 2; }
#endif

template <WeightType T>
inline constexpr int64_t kRunColumns = 512 / float_bytes(T);  // 16 KiB of two groups: half an L1 cache
inline constexpr int64_t kFetchColumns = 16;

template <WeightType T>
TANDEM_INLINE Floats load_weights(const uint8_t* p) {
    if constexpr (T == WeightType::kF32) return load_floats(reinterpret_cast<const float*>(p));
    if constexpr (T == WeightType::kF16) return widen_f16(p);
    return widen_bf16(p);
}

// Vectors from `vector` on, those before `end`, times kRows rows from `row` on, over `columns` columns from
// `first` on.
template <WeightType T, int kVectors, int kRows>
inline void float_tile(const Product& p, int64_t vector, int64_t end, int row, int64_t first, int64_t columns,
                       const Prefetch& ahead) {
    constexpr int64_t kColumnBytes = kGroupRows * float_bytes(T);
    const OutTile out(p, vector, end, row);
    Floats acc[kVectors][kRows];
    out.start(first > 0, acc);
    const uint8_t* w[kVectors];
    TANDEM_UNROLL
    for (int v = 0; v < kVectors; ++v) {
        // A vector too many repeats the last one, and is not stored.
        const int64_t at = smaller(vector + v, end - 1);
        w[v] = vector_group(*p.w, at) + first * kColumnBytes + vector_lane(at) * float_bytes(T);
    }
    const int64_t stride = p.x->f32_stride;
    const float* x = p.x->f32 + row * stride + first;
    for (int64_t done = 0; done < columns; done += kFetchColumns) {
        ahead.block<kFetchColumns * kColumnBytes, groups_of(kVectors)>(done / kFetchColumns);
        const int64_t n = smaller(kFetchColumns, columns - done);
        for (int64_t c = 0; c < n; ++c, ++x) {
            Floats weights[kVectors];
            TANDEM_UNROLL
            for (int v = 0; v < kVectors; ++v) weights[v] = load_weights<T>(w[v] + (done + c) * kColumnBytes);
            TANDEM_UNROLL
            for (int r = 0; r < kRows; ++r) {
                const Floats lanes = all_floats(x[r * stride]);
                TANDEM_UNROLL
                for (int v = 0; v < kVectors; ++v) acc[v][r] = multiply_add(weights[v], lanes, acc[v][r]);
            }
        }
    }
    out.store(acc);
}

template <WeightType T>
inline void multiply_float(const Product& p) {
    const int64_t columns = p.x->columns, begin = p.group_begin * kGroupVectors,
                  end = p.group_end * kGroupVectors;
    const EvenTiles tiles(p.rows, kFloatRows);
    if (tiles.count == 0) return;
    const int64_t run = tiles.count == 1 ? columns : kRunColumns<T>;
    const int step = float_vectors(tiles.rows(0));
    const auto start_of = [&](int64_t v, int64_t column) {
        return vector_group(*p.w, v) + column * kGroupRows * float_bytes(T);
    };
    for (int64_t first = 0; first < columns; first += run) {
        const int64_t n = smaller(run, columns - first);
        for (int64_t v = begin; v < end; v += step) {
            // Several tiles leave the run after theirs the time of them all; a single one, which reads its
            // groups from end to end, is faster without help.
            const uint8_t* next = v + step < end ? start_of(v + step, first) : start_of(begin, first + n);
            const int shares = tiles.count > 1 ? tiles.count : 0;
            for (int t = 0; t < tiles.count; ++t) {
                const Prefetch ahead{next, p.w->group_bytes, t, shares};
                with_constant<kFloatRows>(tiles.rows(t), [&](auto rows) {
                    float_tile<T, float_vectors(rows()), rows()>(p, v, end, tiles.begin(t), first, n, ahead);
                });
            }
        }
    }
}

}  // namespace tandem::TANDEM_ISA
