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

// `all` rows as the fewest tiles of at most `most` rows, even to within one: no tile is left with a single
// row.
struct EvenTiles {
    int all, count;
    EvenTiles(int rows, int most) : all(rows), count((rows + most - 1) / most) {}
    int begin(int t) const { return static_cast<int>(static_cast<int64_t>(all) * t / count); }
    int rows(int t) const { return begin(t + 1) - begin(t); }
};

// Vector `v` of the whole matrix: its group and the row inside the group where it starts.
TANDEM_INLINE const uint8_t* vector_group(const PackedMatrix& w, int64_t v) {
    return w.data + v / kGroupVectors * w.group_bytes;
}
TANDEM_INLINE int vector_lane(int64_t v) { return static_cast<int>(v % kGroupVectors) * kVectorRows; }

constexpr int groups_of(int vectors) { return (vectors + kGroupVectors - 1) / kGroupVectors; }

// What to fetch into the L2 cache while a tile works: for each block of columns that it reads, as many bytes
// of as many groups from `at` on, `skip` bytes further from block `wrap` on. Tiles that share their weights
// share this too: tile `share` of `shares` fetches every `shares`-th block; none, where `shares` is 0.
struct Prefetch {
    const uint8_t* at;
    int64_t group_bytes;
    int share, shares;
    int64_t wrap = INT64_MAX, skip = 0;

    template <int kBytes, int kGroups>
    TANDEM_INLINE void block(int64_t b) const {
        if (shares == 0 || static_cast<int>(b) % shares != share) return;
        const uint8_t* from = at + b * kBytes + (b < wrap ? 0 : skip);
        TANDEM_UNROLL
        for (int g = 0; g < kGroups; ++g) {
            TANDEM_UNROLL
            for (int i = 0; i < kBytes; i += 64) {
                _mm_prefetch(reinterpret_cast<const char*>(from + g * group_bytes + i), _MM_HINT_T1);
            }
        }
    }
};

// How far ahead a single tile fetches, in bytes of each group: along its own, and from their end on along
// those after them. Several tiles fetch the run of the vectors after theirs.
inline constexpr int64_t kAhead = 8192;

// Where a tile's accumulators live between runs of columns: the output itself.
struct OutTile {
    float* first;     // output of the tile's first row and vector
    int64_t stride;   // between rows
    int64_t columns;  // outputs from `first` on that may be written

    // Vectors from `vector` on, those before `end`, of rows from `row` on.
    TANDEM_INLINE OutTile(const Product& p, int64_t vector, int64_t end, int row)
        : first(p.out + row * p.out_stride + vector * kVectorRows),
          stride(p.out_stride),
          columns(smaller(p.w->rows, end * kVectorRows) - vector * kVectorRows) {}

    // Accumulators at the tile's beginning. Its output is claimed meanwhile: stores that miss the cache would
    // hold up those of the tile that follows.
    template <int kVectors, int kRows>
    TANDEM_INLINE void start(bool resume, Floats (&acc)[kVectors][kRows]) const {
        if (resume) return load(acc);
        for (int r = 0; r < kRows; ++r) {
            for (int v = 0; v < kVectors; v += 16 / kVectorRows) {
                __asm__ volatile("prefetchw %0" ::"m"(first[r * stride + v * kVectorRows]));
            }
        }
        TANDEM_UNROLL
        for (int v = 0; v < kVectors; ++v) {
            TANDEM_UNROLL
            for (int r = 0; r < kRows; ++r) acc[v][r] = zero_floats();
        }
    }
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
                    if (n > 0)
                        std::memcpy(lanes, first + r * stride + v * kVectorRows, static_cast<size_t>(n) * 4);
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

}  // namespace tandem::TANDEM_ISA
