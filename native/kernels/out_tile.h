// What the register tiles of all products share: clearing, loading and storing accumulators, finding vectors.
#pragma once

#include <type_traits>

#include "kernels/matmul_product.h"
#include "kernels/vector_ops.h"

#define TANDEM_UNROLL _Pragma("GCC unroll 16")

namespace tandem::TANDEM_ISA {

// Calls f(std::integral_constant<int, n>) for the n in [1, kMost] that equals `value`, if any.
template <int kMost, typename F>
TANDEM_INLINE void with_constant(int value, F f) {
    if constexpr (kMost > 0) {
        if (value == kMost) {
            f(std::integral_constant<int, kMost>{});
        } else {
            with_constant<kMost - 1>(value, f);
        }
    }
}

template <int kVectors, int kRows>
TANDEM_INLINE void clear(Floats (&acc)[kVectors][kRows]) {
    TANDEM_UNROLL
    for (int v = 0; v < kVectors; ++v) {
        TANDEM_UNROLL
        for (int r = 0; r < kRows; ++r) acc[v][r] = zero_floats();
    }
}

// Where a tile's accumulators live between runs of blocks: the output itself.
struct OutTile {
    float* first;      // output of the tile's first row and vector
    int64_t stride;    // between rows
    int64_t columns;   // outputs from `first` on that the matrix has; fewer than the tile's in its last group

    template <int kVectors, int kRows>
    TANDEM_INLINE void load(Floats (&acc)[kVectors][kRows]) const {
        TANDEM_UNROLL
        for (int r = 0; r < kRows; ++r) {
            TANDEM_UNROLL
            for (int v = 0; v < kVectors; ++v) {
                const int64_t n = columns - v * kVectorRows;
                if (n >= kVectorRows) {
                    acc[v][r] = load_floats(first + r * stride + v * kVectorRows);
                } else {
                    float lanes[kVectorRows] = {};
                    if (n > 0) std::memcpy(lanes, first + r * stride + v * kVectorRows, static_cast<size_t>(n) * 4);
                    acc[v][r] = load_floats(lanes);
                }
            }
        }
    }
    template <int kVectors, int kRows>
    TANDEM_INLINE void store(const Floats (&acc)[kVectors][kRows]) const {
        TANDEM_UNROLL
        for (int r = 0; r < kRows; ++r) {
            TANDEM_UNROLL
            for (int v = 0; v < kVectors; ++v) {
                const int64_t n = columns - v * kVectorRows;
                if (n >= kVectorRows) {
                    store_floats(first + r * stride + v * kVectorRows, acc[v][r]);
                } else if (n > 0) {
                    float lanes[kVectorRows];
                    store_floats(lanes, acc[v][r]);
                    std::memcpy(first + r * stride + v * kVectorRows, lanes, static_cast<size_t>(n) * 4);
                }
            }
        }
    }
};

// Vector `v` of the whole matrix: its group and the row inside the group where it starts.
TANDEM_INLINE const uint8_t* vector_group(const PackedMatrix& w, int64_t v) {
    return w.data + v / kGroupVectors * w.group_bytes;
}
TANDEM_INLINE int vector_lane(int64_t v) { return static_cast<int>(v % kGroupVectors) * kVectorRows; }

}  // namespace tandem::TANDEM_ISA
