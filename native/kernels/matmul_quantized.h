// Quantized products on AVX2 and AVX-512, by one family of register tiles: vectors of weight rows times
// activation rows, all accumulators in registers for a run of blocks. Tiles read the packed weights
// themselves and widen them to bytes on the way: that takes vector slots which the dots leave free. Few
// activation rows are one tile, which streams the weights once; more are even tiles that share a run of
// columns while its weights are in cache.
#pragma once

#include "kernels/matmul_product.h"
#include "kernels/register_tile.h"
#include "kernels/vector_ops.h"

namespace tandem::TANDEM_ISA {

// The widest tile: its activation rows and its vectors of weight rows. Registers hold its dots; of wide tiles
// the accumulators wait in the L1 cache, where a block comes by too rarely to cost anything. Q6_K keeps two
// dots. Types of 4 bits with a minimum unpack cheaply and finish dearly: those are better off with registers.
#if defined(__AVX512F__)
template <WeightType T>
inline constexpr int kTileRows = has_minimum(T) && quant_bits(T) == 4 ? 6 : 8;
template <WeightType T>
inline constexpr int kTileVectors = T == WeightType::kQ6_K ? 1 : 2;
#else
#if defined(TANDEM_VPDPBUSD)
template <WeightType T>
inline constexpr int kTileRows = T == WeightType::kQ6_K ? 2 : 4;
#else
template <WeightType T>
inline constexpr int kTileRows = 3;
#endif
template <WeightType T>
inline constexpr int kTileVectors = 2;
#endif

// A product of so many rows is one tile: of one vector where the rows are more than registers hold for two.
template <WeightType T>
inline constexpr int kMostRows = kTileVectors<T> == 2 && kTileRows<T> == 6 ? 8 : kTileRows<T>;

// One or two activation rows take group after group: that is bound by memory, which one long stream of
// addresses feeds best.
inline constexpr int kStreamRows = 2;
template <WeightType T>
constexpr int tile_vectors(int rows) {
    return rows <= kStreamRows ? kGroupVectors : rows > kTileRows<T> ? 1 : kTileVectors<T>;
}

// Processors follow such a stream, and two of Q8_0's long blocks, better without our fetching ahead; but not
// that of the K-quants.
template <WeightType T>
inline constexpr int kUnfetchedRows = T == WeightType::kQ8_0 ? 4
                                      : is_k_quant(T)        ? 0
                                                             : kStreamRows;

// Several row tiles share a run of columns: long enough that taking up and leaving accumulators hardly shows,
// short enough that its weights and activations stay in the L2 cache.
inline constexpr int kRunBlocks = 64;
inline constexpr int kTilesAtOnce = 8;
inline constexpr int kScaleBlocks = kTilesAtOnce * kRunBlocks;  // also a single tile's run
static_assert(kRunBlocks % kPanelBlocks == 0);

// What one activation row brings to one block: where integer accumulators start (minus the zero point times
// the sum of q), the scale dx, and for types with a minimum dx * sum, for Q6_K the start of its second dot.
template <WeightType T>
struct RowScales {
    int32_t start;
    float scale;
};
template <WeightType T>
    requires(has_minimum(T))
struct RowScales<T> {
    static constexpr int32_t start = 0;  // stored unsigned, without a zero point
    float scale, scaled_sum;
};
template <>
struct RowScales<WeightType::kQ6_K> {
    int32_t start;
    float scale;
    int32_t second_start;
};

// Fills out[block][row] for one tile's rows.
template <WeightType T>
inline void prepare_rows(const Activations& x, int64_t first_row, int rows, int64_t first_block, int blocks,
                         RowScales<T>* out) {
    constexpr int zero = Dot<T>::kZeroPoint;
    for (int r = 0; r < rows; ++r) {
        const int64_t at = (first_row + r) * (x.columns / kBlockColumns) + first_block;
        const float* scale = x.scale + at;
        const int32_t* sum = x.sum + at;
        RowScales<T>* to = out + r;
        if constexpr (T == WeightType::kQ6_K) {
            const int8_t* q =
                x.q + (first_row + r) * quantized_stride(x.columns) + first_block * kBlockColumns;
            for (int b = 0; b < blocks; ++b, to += rows) {
                int32_t half = 0;
                for (int c = 0; c < kBlockColumns / 2; ++c) half += q[b * kBlockColumns + c];
                *to = {-zero * half, scale[b], -zero * (sum[b] - half)};
            }
        } else {
            // Pairs of four bytes, which four blocks at a time put together.
            const auto store = [&](__m128i pairs) {
                _mm_storel_epi64(reinterpret_cast<__m128i*>(to), pairs);
                _mm_storel_epi64(reinterpret_cast<__m128i*>(to + rows), _mm_unpackhi_epi64(pairs, pairs));
                to += 2 * rows;
            };
            int b = 0;
            for (; b + 4 <= blocks; b += 4) {
                const __m128 scales = _mm_loadu_ps(scale + b);
                const __m128i sums = _mm_loadu_si128(reinterpret_cast<const __m128i*>(sum + b));
                __m128i low = _mm_castps_si128(scales), high;
                if constexpr (has_minimum(T)) {
                    high = _mm_castps_si128(_mm_mul_ps(scales, _mm_cvtepi32_ps(sums)));
                } else {
                    high = low;
                    low = _mm_mullo_epi32(sums, _mm_set1_epi32(-zero));
                }
                store(_mm_unpacklo_epi32(low, high));
                store(_mm_unpackhi_epi32(low, high));
            }
            for (; b < blocks; ++b, to += rows) {
                if constexpr (has_minimum(T)) {
                    *to = {scale[b], scale[b] * static_cast<float>(sum[b])};
                } else {
                    *to = {-zero * sum[b], scale[b]};
                }
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

template <WeightType T>
TANDEM_INLINE const uint8_t* run_start(const PackedMatrix& w, int64_t vector, int64_t first_block) {
    return vector_group(w, vector) + first_block / kPanelBlocks * panel_bytes(T);
}

// A block's float32 scales for one vector of rows, with the second half's scale (Q6_K) or the minimum.
template <WeightType T>
struct BlockScales {
    Floats scale;
};
template <WeightType T>
    requires(has_minimum(T) || T == WeightType::kQ6_K)
struct BlockScales<T> {
    Floats scale, second;
};

// Tiles of so few rows wait for memory: they read the scales of a whole panel at once, as its bytes lie.
inline constexpr int kPanelwiseRows = 4;

// Where one vector of rows is inside the packed matrix: a panel and the lane of the group where it starts.
template <WeightType T>
struct PanelVector {
    const uint8_t* panel;
    int lane;

    template <int j>
    TANDEM_INLINE void pair(int b, Bytes& low, Bytes& high) const {
        load_pair<T, j>(panel + header_bytes(T) + b * block_bytes(T) + 4 * lane, low, high);
    }

    TANDEM_INLINE BlockScales<T> scales(int b) const {
        const uint8_t* halves = panel + 2 * lane;
        const uint8_t* bytes = panel + lane;
        if constexpr (T == WeightType::kQ6_K) {
            const Floats d = widen_f16(halves);
            return {multiply(d, widen_i8(bytes + 64 + 32 * b)), multiply(d, widen_i8(bytes + 80 + 32 * b))};
        } else if constexpr (is_k_quant(T)) {
            return {multiply(widen_f16(halves), widen_u8(bytes + 64 + 16 * b)),
                    multiply(widen_f16(halves + 32), widen_u8(bytes + 192 + 16 * b))};
        } else if constexpr (has_minimum(T)) {
            return {widen_f16(halves + 32 * b), widen_f16(halves + 256 + 32 * b)};
        } else {
            return {widen_f16(halves + 32 * b)};
        }
    }
};

// Adds to `dots` one pair of quads of block `b`.
template <WeightType T, int j, int kVectors, int kRows>
TANDEM_INLINE void add_pair(const PanelVector<T> (&w)[kVectors], int b, const int8_t* q, int64_t stride,
                            Dot<T> (&dots)[kVectors][kRows], Dot<T> (&second_dots)[kVectors][kRows]) {
    constexpr bool kSplit = T == WeightType::kQ6_K;
    constexpr int kLowStep = kSplit ? j : 2 * j, kHighStep = kSplit ? j : 2 * j + 1;
    Bytes low[kVectors], high[kVectors];
    TANDEM_UNROLL
    for (int v = 0; v < kVectors; ++v) w[v].template pair<j>(b, low[v], high[v]);
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

// acc gains block `b` of a panel, whose scales are in `panel_scales` if the tile is panelwise; q points at
// the block in the tile's first row.
template <WeightType T, int kVectors, int kRows>
TANDEM_INLINE void add_block(const PanelVector<T> (&w)[kVectors], int b,
                             const BlockScales<T> (&panel_scales)[kVectors], const int8_t* q, int64_t stride,
                             const RowScales<T>* x, Floats (&acc)[kVectors][kRows]) {
    constexpr bool kSplit = T == WeightType::kQ6_K;
    Dot<T> dots[kVectors][kRows], second_dots[kVectors][kRows];
    TANDEM_UNROLL
    for (int v = 0; v < kVectors; ++v) {
        TANDEM_UNROLL
        for (int r = 0; r < kRows; ++r) {
            dots[v][r].start(x[r].start);
            if constexpr (kSplit) second_dots[v][r].start(x[r].second_start);
        }
    }
    add_pair<T, 0>(w, b, q, stride, dots, second_dots);
    add_pair<T, 1>(w, b, q, stride, dots, second_dots);
    add_pair<T, 2>(w, b, q, stride, dots, second_dots);
    add_pair<T, 3>(w, b, q, stride, dots, second_dots);
    TANDEM_UNROLL
    for (int v = 0; v < kVectors; ++v) {
        const BlockScales<T> s = kRows <= kPanelwiseRows ? panel_scales[v] : w[v].scales(b);
        TANDEM_UNROLL
        for (int r = 0; r < kRows; ++r) {
            const Floats dx = all_floats(x[r].scale), dot = dots[v][r].finish(x[r].start);
            if constexpr (kSplit) {
                const Floats t = multiply_add(s.second, second_dots[v][r].finish(x[r].second_start),
                                              multiply(s.scale, dot));
                acc[v][r] = multiply_add(dx, t, acc[v][r]);
            } else {
                acc[v][r] = multiply_add(multiply(s.scale, dx), dot, acc[v][r]);
                if constexpr (has_minimum(T)) {
                    acc[v][r] = multiply_add(s.second, all_floats(x[r].scaled_sum), acc[v][r]);
                }
            }
        }
    }
}

// What one register tile covers: vectors from `vector` on, those before `end`, activation rows from `row` on,
// and `blocks` blocks from `first_block` on, which starts a panel.
struct Tile {
    int64_t vector, end;
    int row;
    int64_t first_block;
    int blocks;
};

template <WeightType T, int kVectors, int kRows>
inline void quantized_tile(const Product& p, const Tile& tile, const RowScales<T>* x, const Prefetch& ahead) {
    const OutTile out(p, tile.vector, tile.end, tile.row);
    Floats acc[kVectors][kRows];
    out.start(tile.first_block > 0, acc);
    PanelVector<T> w[kVectors];
    TANDEM_UNROLL
    for (int v = 0; v < kVectors; ++v) {
        // A vector too many repeats the last one, and is not stored.
        const int64_t at = smaller(tile.vector + v, tile.end - 1);
        w[v] = {run_start<T>(*p.w, at, tile.first_block), vector_lane(at)};
    }
    const int64_t stride = quantized_stride(p.x->columns);
    const int8_t* q = p.x->q + tile.row * stride + tile.first_block * kBlockColumns;
    BlockScales<T> scales[kPanelBlocks][kVectors];
    constexpr int kBlockBytes = static_cast<int>(panel_bytes(T) / kPanelBlocks);
    for (int done = 0; done < tile.blocks; done += kPanelBlocks) {
        const int n = static_cast<int>(smaller(kPanelBlocks, tile.blocks - done));
        if constexpr (kRows <= kPanelwiseRows) {
            for (int b = 0; b < n; ++b) {
                TANDEM_UNROLL
                for (int v = 0; v < kVectors; ++v) scales[b][v] = w[v].scales(b);
            }
        }
        for (int b = 0; b < n; ++b, x += kRows, q += kBlockColumns) {
            ahead.block<kBlockBytes, groups_of(kVectors)>(done + b);
            add_block<T>(w, b, scales[b], q, stride, x, acc);
        }
        TANDEM_UNROLL
        for (int v = 0; v < kVectors; ++v) w[v].panel += panel_bytes(T);
    }
    out.store(acc);
}

// Where the RowScales of tile `t` start, after those of the tiles from `first` on.
inline int64_t scales_begin(const EvenTiles& tiles, int t, int first, int blocks) {
    return int64_t{tiles.begin(t) - tiles.begin(first)} * blocks;
}

// All row tiles [tile_begin, tile_end) over one run of columns, for all vectors of the product.
template <WeightType T>
inline void quantized_run(const Product& p, const EvenTiles& tiles, int tile_begin, int tile_end,
                          int64_t first_block, int blocks, const RowScales<T>* x) {
    const int64_t begin = p.group_begin * kGroupVectors, end = p.group_end * kGroupVectors;
    const int step = tile_vectors<T>(tiles.rows(tile_begin)), count = tile_end - tile_begin;
    constexpr int64_t kBytes = panel_bytes(T) / kPanelBlocks;
    const int64_t group_bytes = p.w->group_bytes;
    for (int64_t v = begin; v < end; v += step) {
        Prefetch ahead{run_start<T>(*p.w, v, first_block) + kAhead,
                       group_bytes,
                       0,
                       p.rows <= kUnfetchedRows<T> ? 0 : 1,
                       group_bytes / kBytes - first_block - kAhead / kBytes,
                       (groups_of(step) - 1) * group_bytes};
        if (tiles.count > 1) {
            ahead = {v + step < end ? run_start<T>(*p.w, v + step, first_block)
                                    : run_start<T>(*p.w, begin, first_block + blocks),
                     group_bytes, 0, count};
        }
        for (int t = tile_begin; t < tile_end; ++t) {
            const Tile tile{v, end, tiles.begin(t), first_block, blocks};
            ahead.share = t - tile_begin;
            with_constant<kMostRows<T>>(tiles.rows(t), [&](auto rows) {
                quantized_tile<T, tile_vectors<T>(rows()), rows()>(
                    p, tile, x + scales_begin(tiles, t, tile_begin, blocks), ahead);
            });
        }
    }
}

template <WeightType T>
inline void multiply_quantized(const Product& p) {
    const EvenTiles tiles(p.rows, p.rows <= kMostRows<T> ? kMostRows<T> : kTileRows<T>);
    const int64_t all = p.x->columns / kBlockColumns;
    const int run = tiles.count == 1 ? kScaleBlocks : kRunBlocks;
    RowScales<T> scales[kScaleBlocks * kMostRows<T>];
    const EvenTiles batches(tiles.count, kTilesAtOnce);
    for (int batch = 0; batch < batches.count; ++batch) {
        const int tile = batches.begin(batch), tile_end = batches.begin(batch + 1);
        for (int64_t first = 0; first < all; first += run) {
            const int blocks = static_cast<int>(smaller(run, all - first));
            for (int t = tile; t < tile_end; ++t) {
                prepare_rows<T>(*p.x, tiles.begin(t), tiles.rows(t), first, blocks,
                                scales + scales_begin(tiles, t, tile, blocks));
            }
            quantized_run<T>(p, tiles, tile, tile_end, first, blocks, scales);
        }
    }
}

}  // namespace tandem::TANDEM_ISA
