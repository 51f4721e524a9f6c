// Quantized products on AVX2 and AVX-512, by one family of register tiles: vectors of weight rows times
// activation rows, all accumulators in registers for a run of blocks. Tiles read the packed weights
// themselves and widen them to bytes on the way: that takes vector slots which the dots leave free. Few
// activation rows are one tile, which streams the weights once; more are even tiles that share a run of
// columns while its weights are in the L1 cache.
#pragma once

#include "kernels/matmul_product.h"
#include "kernels/out_tile.h"
#include "kernels/vector_ops.h"

namespace tandem::TANDEM_ISA {

// Registers bound the product of both: a tile keeps a dot (Q6_K: two) and an accumulator for each vector and
// row.
#if defined(__AVX512F__)
template <WeightType T>
inline constexpr int kTileRows = T == WeightType::kQ6_K ? 4 : 6;
template <WeightType T>
constexpr int tile_vectors(int rows) {
    return rows <= (T == WeightType::kQ6_K ? 2 : 3) ? 4 : 2;
}
#else
template <WeightType T>
inline constexpr int kTileRows = 3;
template <WeightType T>
constexpr int tile_vectors(int rows) {
    return rows == 1 ? 4 : 2;
}
#endif

inline constexpr int kRunBlocks = 32;  // columns / 32 of a run that several row tiles share
inline constexpr int kScaleBlocks =
    512;  // TileScales on the stack: 16 tiles of such a run, or one tile's long run
inline constexpr int kTilesAtOnce = kScaleBlocks / kRunBlocks;
inline constexpr int64_t kAhead = 4096;  // bytes that a single tile fetches ahead
static_assert(kRunBlocks % kPanelBlocks == 0);

// What a row tile takes from its activations for one block: where integer accumulators start (minus the zero
// point times the sum of q), the scale dx, and a third value: dx * sum for types with a minimum, for Q6_K the
// start of the second dot.
template <WeightType T>
struct TileScales {
    static constexpr int kSlots = kTileRows<T> <= 4 ? 4 : 8;
    int32_t start[kSlots];
    float scale[kSlots];
    union {
        float scaled_sum[kSlots];
        int32_t second_start[kSlots];
    };
};

template <WeightType T>
inline void prepare_tile(const Activations& x, int64_t first_row, int rows, int64_t first_block, int blocks,
                         TileScales<T>* out) {
    constexpr int zero = Dot<T>::kZeroPoint;
    for (int r = 0; r < rows; ++r) {
        const int64_t at = (first_row + r) * (x.columns / kBlockColumns) + first_block;
        for (int b = 0; b < blocks; ++b) {
            const float scale = x.scale[at + b];
            const int32_t sum = x.sum[at + b];
            out[b].scale[r] = scale;
            if constexpr (has_minimum(T)) {
                out[b].start[r] = 0;
                out[b].scaled_sum[r] = scale * static_cast<float>(sum);
            } else if constexpr (T == WeightType::kQ6_K) {
                int32_t half = 0;
                for (int c = 0; c < kBlockColumns / 2; ++c) half += x.q[(at + b) * kBlockColumns + c];
                out[b].start[r] = -zero * half;
                out[b].second_start[r] = -zero * (sum - half);
            } else {
                out[b].start[r] = -zero * sum;
            }
        }
    }
}

// Quads j and j + 4 of a packed block as bytes.
template <WeightType T, int j>
TANDEM_INLINE void load_pair(const uint8_t* quants, Bytes& low, Bytes& high) {
    if constexpr (quant_bits(T) == 8) {
        low = load_byte_quad<T>(quants + 64 * j);
        high = load_byte_quad<T>(quants + 64 * (j + 4));
        return;
    }
    const Bytes both = load_bytes(quants + 64 * j);
    low = bit_and(both, all_bytes(15));
    high = bit_and(shift_pairs<-4>(both), all_bytes(15));
    if constexpr (quant_bits(T) == 5) {
        const Bytes fifth = load_bytes(quants + 256);
        low = or_masked(low, shift_pairs<4 - j>(fifth), all_bytes(0x10));
        high = or_masked(high, shift_pairs<-j>(fifth), all_bytes(0x10));
    }
    if constexpr (quant_bits(T) == 6) {
        low = or_masked(low, shift_pairs<4 - 2 * j>(load_bytes(quants + 256)), all_bytes(0x30));
        high = or_masked(high, shift_pairs<4 - 2 * j>(load_bytes(quants + 320)), all_bytes(0x30));
    }
}

// Block `b` of a panel, for the vector of rows that starts at `lane`.
template <WeightType T>
struct PackedBlock {
    const uint8_t* panel;
    int lane, b;

    template <int j>
    TANDEM_INLINE void pair(Bytes& low, Bytes& high) const {
        load_pair<T, j>(panel + header_bytes(T) + b * block_bytes(T) + 4 * lane, low, high);
    }
    TANDEM_INLINE Floats scale() const {
        if constexpr (T == WeightType::kQ6_K) {
            return multiply(widen_f16(panel + 2 * lane), widen_i8(panel + 64 + 32 * b + lane));
        }
        if constexpr (is_k_quant(T)) {
            return multiply(widen_f16(panel + 2 * lane), widen_u8(panel + 64 + 16 * b + lane));
        }
        return widen_f16(panel + 32 * b + 2 * lane);
    }
    // The second half's scale (Q6_K) or the minimum.
    TANDEM_INLINE Floats second() const {
        if constexpr (T == WeightType::kQ6_K) {
            return multiply(widen_f16(panel + 2 * lane), widen_i8(panel + 80 + 32 * b + lane));
        }
        if constexpr (is_k_quant(T)) {
            return multiply(widen_f16(panel + 32 + 2 * lane), widen_u8(panel + 192 + 16 * b + lane));
        }
        return widen_f16(panel + 256 + 32 * b + 2 * lane);
    }
};

// Adds to `dots` one pair of quads.
template <WeightType T, int j, int kVectors, int kRows>
TANDEM_INLINE void add_pair(const PackedBlock<T> (&w)[kVectors], const int8_t* q, int64_t stride,
                            Dot<T> (&dots)[kVectors][kRows], Dot<T> (&second_dots)[kVectors][kRows]) {
    constexpr bool kSplit = T == WeightType::kQ6_K;
    constexpr int kLowStep = kSplit ? j : 2 * j, kHighStep = kSplit ? j : 2 * j + 1;
    Bytes low[kVectors], high[kVectors];
    TANDEM_UNROLL
    for (int v = 0; v < kVectors; ++v) w[v].template pair<j>(low[v], high[v]);
    TANDEM_UNROLL
    for (int r = 0; r < kRows; ++r) {
        const Bytes x = broadcast_quad(q + r * stride + 4 * j);
        TANDEM_UNROLL
        for (int v = 0; v < kVectors; ++v) dots[v][r].template add<kLowStep>(low[v], x);
    }
    TANDEM_UNROLL
    for (int r = 0; r < kRows; ++r) {
        const Bytes x = broadcast_quad(q + r * stride + 16 + 4 * j);
        TANDEM_UNROLL
        for (int v = 0; v < kVectors; ++v) {
            (kSplit ? second_dots : dots)[v][r].template add<kHighStep>(high[v], x);
        }
    }
}

// acc gains one block of 32 columns; q points at the block in the tile's first row.
template <WeightType T, int kVectors, int kRows>
TANDEM_INLINE void add_block(const PackedBlock<T> (&w)[kVectors], const int8_t* q, int64_t stride,
                             const TileScales<T>& x, Floats (&acc)[kVectors][kRows]) {
    constexpr bool kSplit = T == WeightType::kQ6_K;
    Dot<T> dots[kVectors][kRows], second_dots[kVectors][kRows];
    TANDEM_UNROLL
    for (int v = 0; v < kVectors; ++v) {
        TANDEM_UNROLL
        for (int r = 0; r < kRows; ++r) {
            dots[v][r].start(x.start[r]);
            if constexpr (kSplit) second_dots[v][r].start(x.second_start[r]);
        }
    }
    add_pair<T, 0>(w, q, stride, dots, second_dots);
    add_pair<T, 1>(w, q, stride, dots, second_dots);
    add_pair<T, 2>(w, q, stride, dots, second_dots);
    add_pair<T, 3>(w, q, stride, dots, second_dots);
    TANDEM_UNROLL
    for (int v = 0; v < kVectors; ++v) {
        const Floats scale = w[v].scale();
        Floats second = scale;
        if constexpr (kSplit || has_minimum(T)) second = w[v].second();
        TANDEM_UNROLL
        for (int r = 0; r < kRows; ++r) {
            const Floats dx = all_floats(x.scale[r]), dot = dots[v][r].finish(x.start[r]);
            if constexpr (kSplit) {
                const Floats t = multiply_add(second, second_dots[v][r].finish(x.second_start[r]), multiply(scale, dot));
                acc[v][r] = multiply_add(dx, t, acc[v][r]);
            } else {
                acc[v][r] = multiply_add(multiply(scale, dx), dot, acc[v][r]);
                if constexpr (has_minimum(T)) {
                    acc[v][r] = multiply_add(second, all_floats(x.scaled_sum[r]), acc[v][r]);
                }
            }
        }
    }
}

// What to fetch into the L2 cache while a tile works: for each block that it reads, a block of as many groups
// from `at` on. Tiles that share their weights share this too: tile `share` of `shares` fetches every
// `shares`-th block.
struct Prefetch {
    const uint8_t* at;
    int64_t group_bytes;
    int share, shares;

    template <WeightType T, int kGroups>
    TANDEM_INLINE void block(int b) const {
        constexpr int kBytes = static_cast<int>(panel_bytes(T) / kPanelBlocks);
        if (b % shares != share) return;
        TANDEM_UNROLL
        for (int g = 0; g < kGroups; ++g) {
            TANDEM_UNROLL
            for (int i = 0; i < kBytes; i += 64) {
                _mm_prefetch(reinterpret_cast<const char*>(at + g * group_bytes + b * kBytes + i),
                             _MM_HINT_T1);
            }
        }
    }
};

// Vectors [vector, vector + kVectors) of the matrix, those before `end`, times kRows rows from `row` on, over
// `blocks` blocks from `first_block` on (a multiple of a panel's).
template <WeightType T, int kVectors, int kRows>
inline void quantized_tile(const Product& p, int64_t vector, int64_t end, int row, int64_t first_block,
                           int blocks, const TileScales<T>* x, const Prefetch& ahead) {
    const OutTile out(p, vector, end, row);
    Floats acc[kVectors][kRows];
    out.start(first_block > 0, acc);
    PackedBlock<T> w[kVectors];
    TANDEM_UNROLL
    for (int v = 0; v < kVectors; ++v) {
        // A vector too many repeats the last one, and is not stored.
        const int64_t at = smaller(vector + v, end - 1);
        w[v] = {vector_group(*p.w, at) + first_block / kPanelBlocks * panel_bytes(T), vector_lane(at), 0};
    }
    const int64_t stride = p.x->columns;
    const int8_t* q = p.x->q + row * stride + first_block * kBlockColumns;
    for (int done = 0; done < blocks; done += kPanelBlocks) {
        const int n = static_cast<int>(smaller(kPanelBlocks, blocks - done));
        for (int b = 0; b < n; ++b, ++x, q += kBlockColumns) {
            ahead.block<T, (kVectors + kGroupVectors - 1) / kGroupVectors>(done + b);
            TANDEM_UNROLL
            for (int v = 0; v < kVectors; ++v) w[v].b = b;
            add_block<T>(w, q, stride, *x, acc);
        }
        TANDEM_UNROLL
        for (int v = 0; v < kVectors; ++v) w[v].panel += panel_bytes(T);
    }
    out.store(acc);
}

template <WeightType T>
inline void multiply_quantized(const Product& p) {
    constexpr int kMost = kTileRows<T>;
    const int64_t all = p.x->columns / kBlockColumns, end = p.group_end * kGroupVectors;
    const EvenTiles tiles(p.rows, kMost);
    TileScales<T> scales[kScaleBlocks];
    const auto run_start = [&](int64_t v, int64_t block) {
        return vector_group(*p.w, v) + block / kPanelBlocks * panel_bytes(T);
    };
    for (int batch = 0; batch < tiles.count; batch += kTilesAtOnce) {
        const int batch_end = static_cast<int>(smaller(batch + kTilesAtOnce, tiles.count));
        const int run = tiles.count == 1 ? kScaleBlocks : kRunBlocks;
        for (int64_t first = 0; first < all; first += run) {
            const int n = static_cast<int>(smaller(run, all - first));
            for (int t = batch; t < batch_end; ++t) {
                prepare_tile<T>(*p.x, tiles.begin(t), tiles.rows(t), first, n, scales + (t - batch) * run);
            }
            // Tiles differ by one row at most, but that may change how many vectors they take at a time.
            const int step = tile_vectors<T>(p.rows / tiles.count);
            for (int64_t v = p.group_begin * kGroupVectors; v < end; v += step) {
                // A single tile fetches along its own groups; several, the run of the vectors after theirs.
                const uint8_t* next = run_start(v, first) + kAhead;
                if (tiles.count > 1) {
                    next = v + step < end ? run_start(v + step, first)
                                          : run_start(p.group_begin * kGroupVectors, first + run);
                }
                for (int t = batch; t < batch_end; ++t) {
                    const Prefetch ahead{next, p.w->group_bytes, t - batch, batch_end - batch};
                    with_constant<kMost>(tiles.rows(t), [&](auto rows) {
                        constexpr int kVectors = tile_vectors<T>(rows());
                        for (int64_t u = v; u < smaller(v + step, end); u += kVectors) {
                            quantized_tile<T, kVectors, rows()>(p, u, end, tiles.begin(t), first, n,
                                                                scales + (t - batch) * run, ahead);
                        }
                    });
                }
            }
        }
    }
}

}  // namespace tandem::TANDEM_ISA
