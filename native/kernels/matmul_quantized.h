// Quantized products on AVX2 and AVX-512, by one family of register tiles: kVectors vectors of weight rows times kRows
// activation rows, all accumulators in registers for a run of blocks. Up to kDirectRows activation rows the tile reads
// the packed weights themselves; above that, a strip of weight rows is first unpacked to bytes and float32 scales, small
// enough for the L1 cache, and serves all row tiles.
#pragma once

#include "kernels/matmul_product.h"
#include "kernels/out_tile.h"
#include "kernels/vector_ops.h"

namespace tandem::TANDEM_ISA {

#if defined(__AVX512F__)
inline constexpr int kDirectRows = 6;
constexpr int direct_vectors(int rows) { return rows <= 3 ? 4 : 2; }
template <WeightType T>
inline constexpr int kTileRows = T == WeightType::kQ6_K ? 4 : 6;
#else
inline constexpr int kDirectRows = 3;
constexpr int direct_vectors(int rows) { return rows == 1 ? 4 : 2; }
template <WeightType T>
inline constexpr int kTileRows = quant_bits(T) == 4 || quant_bits(T) == 8 ? 3 : 2;
#endif
inline constexpr int kStripVectors = 2;
#ifndef SB
#define SB 16
#endif
inline constexpr int kStripBlocks = SB;    // columns / 32 that a strip covers
inline constexpr int kStripRows = 256;     // activation rows that share one unpacking
inline constexpr int kDirectBlocks = 128;  // columns / 32 whose row scales are prepared at a time
static_assert(kStripBlocks % kPanelBlocks == 0 && kDirectBlocks % kPanelBlocks == 0);

// Per row and block: where integer accumulators start (minus zero point times the sum of q), the scale dx, and for types
// with a minimum dx * sum. Q6_K has two dots a block.
template <int kRows, int kBlocks>
struct RowScales {
    int32_t start[kRows][kBlocks];
    int32_t second_start[kRows][kBlocks];
    float scale[kRows][kBlocks];
    float scaled_sum[kRows][kBlocks];
};

template <WeightType T, int kRows, int kBlocks>
inline void prepare_rows(const Activations& x, int64_t first_row, int rows, int64_t first_block, int blocks,
                         RowScales<kRows, kBlocks>& out) {
    constexpr int zero = Dot<T>::kZeroPoint;
    for (int r = 0; r < rows; ++r) {
        const int64_t at = (first_row + r) * (x.columns / kBlockColumns) + first_block;
        for (int b = 0; b < blocks; ++b) {
            out.scale[r][b] = x.scale[at + b];
            if constexpr (has_minimum(T)) {
                out.start[r][b] = 0;
                out.scaled_sum[r][b] = x.scale[at + b] * static_cast<float>(x.sum[at + b]);
            } else if constexpr (T == WeightType::kQ6_K) {
                int32_t half = 0;
                for (int c = 0; c < kBlockColumns / 2; ++c) half += x.q[(at + b) * kBlockColumns + c];
                out.start[r][b] = -zero * half;
                out.second_start[r][b] = -zero * (x.sum[at + b] - half);
            } else {
                out.start[r][b] = -zero * x.sum[at + b];
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
    // The second half's scale (Q6_K) or the minimum, signed so that it is added.
    TANDEM_INLINE Floats second() const {
        if constexpr (T == WeightType::kQ6_K) {
            return multiply(widen_f16(panel + 2 * lane), widen_i8(panel + 80 + 32 * b + lane));
        }
        if constexpr (is_k_quant(T)) {
            return negate(multiply(widen_f16(panel + 32 + 2 * lane), widen_u8(panel + 192 + 16 * b + lane)));
        }
        return widen_f16(panel + 256 + 32 * b + 2 * lane);
    }
    TANDEM_INLINE void prefetch() const {
        // About one block's bytes, far enough ahead for the memory's latency.
        constexpr int kAhead = 2048, kBytes = static_cast<int>(panel_bytes(T) / kPanelBlocks);
        if (lane != 0) return;
        const uint8_t* at = panel + b * kBytes + kAhead;
        TANDEM_UNROLL
        for (int i = 0; i < kBytes; i += 64) _mm_prefetch(reinterpret_cast<const char*>(at + i), _MM_HINT_T0);
    }
};

template <WeightType T>
inline constexpr bool kHasSecond = has_minimum(T) || T == WeightType::kQ6_K;

// A block of a strip as unpacked: eight vectors of bytes in the order of the pairs, then the float32 scales.
template <WeightType T>
struct alignas(64) StripBlock {
    static constexpr int kVectorBytes = static_cast<int>(sizeof(Bytes));
    uint8_t bytes[8][kStripVectors][kVectorBytes];
    float scales[kHasSecond<T> ? 2 : 1][kStripVectors][kVectorRows];
};

template <WeightType T>
struct StripVector {
    const StripBlock<T>* block;
    int v;

    template <int j>
    TANDEM_INLINE void pair(Bytes& low, Bytes& high) const {
        low = load_bytes(block->bytes[2 * j][v]);
        high = load_bytes(block->bytes[2 * j + 1][v]);
    }
    TANDEM_INLINE Floats scale() const { return load_floats(block->scales[0][v]); }
    TANDEM_INLINE Floats second() const { return load_floats(block->scales[kHasSecond<T> ? 1 : 0][v]); }
    TANDEM_INLINE void prefetch() const {}
};

template <WeightType T>
inline void unpack_block(const PackedBlock<T>& from, StripBlock<T>& to, int v) {
    const auto unpack_pair = [&](auto j) {
        Bytes low, high;
        from.template pair<j()>(low, high);
        store_bytes(to.bytes[2 * j()][v], low);
        store_bytes(to.bytes[2 * j() + 1][v], high);
    };
    unpack_pair(std::integral_constant<int, 0>{});
    unpack_pair(std::integral_constant<int, 1>{});
    unpack_pair(std::integral_constant<int, 2>{});
    unpack_pair(std::integral_constant<int, 3>{});
    store_floats(to.scales[0][v], from.scale());
    if constexpr (kHasSecond<T>) store_floats(to.scales[1][v], from.second());
}

// Adds to `dots` one pair of quads.
template <WeightType T, int j, int kVectors, int kRows, typename Weights>
TANDEM_INLINE void add_pair(const Weights (&w)[kVectors], const int8_t* q, int64_t stride, Dot<T> (&dots)[kVectors][kRows],
                            Dot<T> (&second_dots)[kVectors][kRows]) {
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

// acc gains one block of 32 columns; `b` indexes `rows`, q points at the block in the first row.
template <WeightType T, int kVectors, int kRows, int kMaxRows, int kBlocks, typename Weights>
TANDEM_INLINE void add_block(const Weights (&w)[kVectors], const int8_t* q, int64_t stride,
                             const RowScales<kMaxRows, kBlocks>& rows, int first_row, int b,
                             Floats (&acc)[kVectors][kRows]) {
    Dot<T> dots[kVectors][kRows], second_dots[kVectors][kRows];
    TANDEM_UNROLL
    for (int v = 0; v < kVectors; ++v) {
        w[v].prefetch();
        TANDEM_UNROLL
        for (int r = 0; r < kRows; ++r) {
            dots[v][r].start(rows.start[first_row + r][b]);
            if constexpr (T == WeightType::kQ6_K) second_dots[v][r].start(rows.second_start[first_row + r][b]);
        }
    }
    add_pair<T, 0>(w, q, stride, dots, second_dots);
    add_pair<T, 1>(w, q, stride, dots, second_dots);
    add_pair<T, 2>(w, q, stride, dots, second_dots);
    add_pair<T, 3>(w, q, stride, dots, second_dots);
    TANDEM_UNROLL
    for (int v = 0; v < kVectors; ++v) {
        const Floats scale = w[v].scale();
        const Floats second = kHasSecond<T> ? w[v].second() : scale;
        TANDEM_UNROLL
        for (int r = 0; r < kRows; ++r) {
            const Floats dx = all_floats(rows.scale[first_row + r][b]);
            const Floats dot = dots[v][r].finish();
            if constexpr (T == WeightType::kQ6_K) {
                const Floats t = multiply_add(second, second_dots[v][r].finish(), multiply(scale, dot));
                acc[v][r] = multiply_add(dx, t, acc[v][r]);
            } else {
                acc[v][r] = multiply_add(multiply(scale, dx), dot, acc[v][r]);
                if constexpr (has_minimum(T)) {
                    acc[v][r] = multiply_add(second, all_floats(rows.scaled_sum[first_row + r][b]), acc[v][r]);
                }
            }
        }
    }
}

template <WeightType T, int kVectors, int kRows>
inline void direct_tile(const Product& p, int64_t vector, int row, int64_t first_block, int blocks,
                        const RowScales<kRows, kDirectBlocks>& rows) {
    const OutTile out{p.out + row * p.out_stride + vector * kVectorRows, p.out_stride,
                      p.w->rows - vector * kVectorRows};
    Floats acc[kVectors][kRows];
    if (first_block == 0) {
        clear(acc);
    } else {
        out.load(acc);
    }
    const int64_t stride = p.x->columns;
    const int8_t* q = p.x->q + row * stride + first_block * kBlockColumns;
    PackedBlock<T> w[kVectors];
    TANDEM_UNROLL
    for (int v = 0; v < kVectors; ++v) {
        w[v] = {vector_group(*p.w, vector + v) + first_block / kPanelBlocks * panel_bytes(T), vector_lane(vector + v), 0};
    }
    for (int b = 0; b < blocks;) {
        const int end = static_cast<int>(smaller(kPanelBlocks, blocks - b));
        for (int i = 0; i < end; ++i, ++b, q += kBlockColumns) {
            TANDEM_UNROLL
            for (int v = 0; v < kVectors; ++v) w[v].b = i;
            add_block<T>(w, q, stride, rows, 0, b, acc);
        }
        TANDEM_UNROLL
        for (int v = 0; v < kVectors; ++v) w[v].panel += panel_bytes(T);
    }
    out.store(acc);
}

template <WeightType T, int kRows>
inline void direct_rows(const Product& p, int row) {
    constexpr int kVectors = direct_vectors(kRows);
    const int64_t blocks = p.x->columns / kBlockColumns, end = p.group_end * kGroupVectors;
    RowScales<kRows, kDirectBlocks> rows;
    for (int64_t first = 0; first < blocks; first += kDirectBlocks) {
        const int n = static_cast<int>(smaller(kDirectBlocks, blocks - first));
        prepare_rows<T>(*p.x, row, kRows, first, n, rows);
        int64_t v = p.group_begin * kGroupVectors;
        for (; v + kVectors <= end; v += kVectors) direct_tile<T, kVectors, kRows>(p, v, row, first, n, rows);
        if constexpr (kVectors > 2) {
            for (; v + 2 <= end; v += 2) direct_tile<T, 2, kRows>(p, v, row, first, n, rows);
        }
        for (; v < end; ++v) direct_tile<T, 1, kRows>(p, v, row, first, n, rows);
    }
}

template <WeightType T, int kVectors, int kRows>
inline void strip_tile(const StripBlock<T>* strip, const RowScales<kStripRows, kStripBlocks>& rows, int first_row,
                       const int8_t* q, int64_t stride, int blocks, bool resume, const OutTile& out) {
    Floats acc[kVectors][kRows];
    if (resume) {
        out.load(acc);
    } else {
        clear(acc);
    }
    for (int b = 0; b < blocks; ++b, ++strip, q += kBlockColumns) {
        StripVector<T> w[kVectors];
        TANDEM_UNROLL
        for (int v = 0; v < kVectors; ++v) w[v] = {strip, v};
        add_block<T>(w, q, stride, rows, first_row, b, acc);
    }
    out.store(acc);
}

template <WeightType T, int kVectors>
inline void strip_rows(const StripBlock<T>* strip, const RowScales<kStripRows, kStripBlocks>& scales, int count,
                       const int8_t* q, int64_t stride, int blocks, bool resume, OutTile out) {
    constexpr int kMost = kTileRows<T>;
    const int tiles = (count + kMost - 1) / kMost;
    for (int t = 0, row = 0; t < tiles; ++t) {
        // Even shares, so that no tile is left with a single row.
        const int rows = (count - row + tiles - t - 1) / (tiles - t);
        const int8_t* at = q + row * stride;
        with_constant<kMost>(rows, [&](auto n) {
            strip_tile<T, kVectors, n()>(strip, scales, row, at, stride, blocks, resume, out);
        });
        row += rows;
        out.first += rows * out.stride;
    }
}

template <WeightType T>
inline void many_rows(const Product& p, int first_row, int count) {
    RowScales<kStripRows, kStripBlocks> scales;
    StripBlock<T> strip[kStripBlocks];
    const int64_t stride = p.x->columns, blocks = stride / kBlockColumns;
    const int64_t begin = p.group_begin * kGroupVectors, end = p.group_end * kGroupVectors;
    for (int64_t first = 0; first < blocks; first += kStripBlocks) {
        const int n = static_cast<int>(smaller(kStripBlocks, blocks - first));
        prepare_rows<T>(*p.x, first_row, count, first, n, scales);
        const int8_t* q = p.x->q + first_row * stride + first * kBlockColumns;
        for (int64_t v = begin; v < end; v += kStripVectors) {
            const int vectors = static_cast<int>(smaller(kStripVectors, end - v));
            for (int i = 0; i < vectors; ++i) {
                const uint8_t* panel = vector_group(*p.w, v + i) + first / kPanelBlocks * panel_bytes(T);
                for (int b = 0; b < n; ++b) {
                    const PackedBlock<T> block{panel + b / kPanelBlocks * panel_bytes(T), vector_lane(v + i),
                                               b % kPanelBlocks};
                    unpack_block(block, strip[b], i);
                }
            }
            const OutTile out{p.out + first_row * p.out_stride + v * kVectorRows, p.out_stride,
                              p.w->rows - v * kVectorRows};
            if (vectors == kStripVectors) {
                strip_rows<T, kStripVectors>(strip, scales, count, q, stride, n, first > 0, out);
            } else {
                strip_rows<T, 1>(strip, scales, count, q, stride, n, first > 0, out);
            }
        }
    }
}

template <WeightType T>
inline void multiply_quantized(const Product& p) {
    if (p.rows <= kDirectRows) {
        with_constant<kDirectRows>(p.rows, [&](auto n) { direct_rows<T, n()>(p, 0); });
        return;
    }
    for (int row = 0; row < p.rows; row += kStripRows) {
        many_rows<T>(p, row, static_cast<int>(smaller(kStripRows, p.rows - row)));
    }
}

}  // namespace tandem::TANDEM_ISA
