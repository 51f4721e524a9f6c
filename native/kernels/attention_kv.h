// How KV pages store keys and values, and the tiles of pages that attention walks over.
#pragma once

#include "kernels/kernels.h"
#include "kernels/simd.h"

#define TANDEM_UNROLL_ALL _Pragma("GCC unroll 16")

namespace tandem::TANDEM_ISA {

inline constexpr int kTile = 64;
inline constexpr int kTilePages = kTile / kPageSize;
static_assert(kPageSize == kLanes, "a page's positions are the lanes of one vector");

TANDEM_INLINE int64_t whole_vectors(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// kBlock dimensions share a scale; 0: there are no scales. An element times its scale is exact in float32, so
// that a page read in place and one converted first are the same numbers.
struct KvF32 {
    using Element = float;
    static constexpr int kBlock = 0;
    TANDEM_INLINE static F32x16 load(const float* p) { return TANDEM_ISA::load(p); }
};
struct KvF16 {
    using Element = uint16_t;
    static constexpr int kBlock = 0;
    TANDEM_INLINE static F32x16 load(const uint16_t* p) { return load_f16(p); }
};
struct KvQ8 {
    using Element = int8_t;
    static constexpr int kBlock = 32;
    TANDEM_INLINE static F32x16 load(const int8_t* p) { return load_i8(p); }
};

// The scales behind a page's int8 values: of keys [head_dim / 32][16], of values [16][head_dim / 32].
TANDEM_INLINE const uint16_t* scales_of(const int8_t* page, int head_dim) {
    return reinterpret_cast<const uint16_t*>(page + int64_t{head_dim} * kPageSize);
}

// Pages [begin, end) of a tile of 64 positions; `ahead` are the pages to fetch meanwhile.
template <typename Kv>
struct KvTile {
    using Element = typename Kv::Element;
    int begin, end;
    const Element* keys[kTilePages];
    const Element* values[kTilePages];
    const Element* keys_ahead[kTilePages];
    const Element* values_ahead[kTilePages];
    const float* value_scales;  // [kTilePages][16][head_dim / kBlock]
};

// A page's keys as float32: f(first element of a dimension, its 16 positions) for dimensions in order.
template <typename Kv, typename F>
TANDEM_INLINE void for_each_key(const typename Kv::Element* page, int head_dim, F f) {
    constexpr int kRun = Kv::kBlock ? Kv::kBlock : 1;
    for (int d = 0; d < head_dim; d += kRun) {
        F32x16 scale;
        if constexpr (Kv::kBlock > 0) scale = load_f16(scales_of(page, head_dim) + d / kRun * kPageSize);
        for (int i = d; i < d + kRun; ++i) {
            F32x16 k = Kv::load(page + int64_t{i} * kPageSize);
            if constexpr (Kv::kBlock > 0) k = k * scale;
            f(i * kPageSize, k);
        }
    }
}

// A page's values as float32: f(first element, 16 dimensions) for positions in order.
template <typename Kv, typename F>
TANDEM_INLINE void for_each_value(const typename Kv::Element* page, const float* scales, int padded_dim,
                                  F f) {
    for (int at = 0; at < kPageSize * padded_dim; at += kLanes) {
        F32x16 v = Kv::load(page + at);
        // Blocks of a position follow each other, and so do positions.
        if constexpr (Kv::kBlock > 0) v = v * splat(scales[at / Kv::kBlock]);
        f(at, v);
    }
}

// The scales of a page's values as float32, of a whole number of vectors.
TANDEM_INLINE void convert_scales(const int8_t* page, int head_dim, float* scales) {
    const uint16_t* stored = scales_of(page, head_dim);
    for (int i = 0; i < kPageSize * head_dim / KvQ8::kBlock; i += kLanes)
        store(scales + i, load_f16(stored + i));
}

// Floats between converted pages: an odd number of cache lines, so that they do not share cache sets.
TANDEM_INLINE int64_t converted_page(int64_t padded_dim) { return padded_dim * kPageSize + kLanes; }

// The pages of a tile in float32, in scratch of 2 * kTilePages * converted_page(padded_dim).
template <typename Kv>
inline KvTile<KvF32> convert_tile(const KvTile<Kv>& tile, int head_dim, float* scratch) {
    const int64_t padded = whole_vectors(head_dim), stride = converted_page(padded);
    KvTile<KvF32> converted{};
    converted.begin = tile.begin;
    converted.end = tile.end;
    for (int p = tile.begin; p < tile.end; ++p) {
        float* keys = scratch + p * stride;
        float* values = scratch + (kTilePages + p) * stride;
        const float* page_scales = nullptr;
        if constexpr (Kv::kBlock > 0) page_scales = tile.value_scales + p * kPageSize * (padded / Kv::kBlock);
        for_each_key<Kv>(tile.keys[p], head_dim, [&](int64_t at, F32x16 k) { store(keys + at, k); });
        for_each_value<Kv>(tile.values[p], page_scales, static_cast<int>(padded),
                           [&](int64_t at, F32x16 v) { store(values + at, v); });
        converted.keys[p] = keys;
        converted.values[p] = values;
    }
    return converted;
}

}  // namespace tandem::TANDEM_ISA
