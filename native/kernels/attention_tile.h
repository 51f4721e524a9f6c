// The two products of attention over one tile of 64 positions, for the few query vectors that the registers
// hold, and the softmax between them. attention.h states the arithmetic.
#pragma once

#include <limits>

#include "kernels/attention_kv.h"
#include "kernels/elementwise.h"

namespace tandem::TANDEM_ISA {

// Query vectors of one register tile; for N of them the pages whose scores, and the vectors of values, are
// taken at once: as many as leave registers for the operands.
inline constexpr int kQueryTile = 6;
#if defined(__AVX512F__)
template <typename Kv>
constexpr int pages_at_once(int queries) {
    return Kv::kBlock > 0 && queries > 4 ? 2 : 4;
}
constexpr int vectors_at_once(int queries) { return queries <= 3 ? 8 : 4; }
#else
template <typename Kv>
constexpr int pages_at_once(int queries) {
    return queries <= 2 ? 2 : 1;
}
constexpr int vectors_at_once(int queries) { return queries <= 1 ? 4 : queries <= 3 ? 2 : 1; }
#endif

// What a score is: the dot product times `factor`, capped where `cap` is positive, in units of ln 2.
struct ScoreForm {
    float factor, cap;

    explicit ScoreForm(const AttentionTask& task)
        : factor(task.softcap > 0.0f ? task.scale : task.scale * kLog2E), cap(task.softcap) {}
    TANDEM_INLINE F32x16 operator()(F32x16 dot) const {
        const F32x16 s = dot * splat(factor);
        return cap > 0.0f ? capped(s, cap) * splat(kLog2E) : s;
    }

 private:
    static constexpr float kLog2E = 1.44269504088896341f;
};

// scores[i][position in page p] for N queries and P pages.
template <typename Kv, int N, int P>
inline void score_pages(const float* const* queries, const typename Kv::Element* const* pages,
                        const typename Kv::Element* const* ahead, int head_dim, const ScoreForm& form,
                        float* scores) {
    constexpr int kRun = Kv::kBlock ? Kv::kBlock : 1;
    constexpr int kLine = 64 / (kPageSize * static_cast<int>(sizeof(typename Kv::Element)));
    F32x16 sum[N][P];
    TANDEM_UNROLL_ALL
    for (int i = 0; i < N; ++i) {
        TANDEM_UNROLL_ALL
        for (int p = 0; p < P; ++p) sum[i][p] = splat(0.0f);
    }
    for (int block = 0; block < head_dim; block += kRun) {
        F32x16 scale[P];
        if constexpr (Kv::kBlock > 0) {
            TANDEM_UNROLL_ALL
            for (int p = 0; p < P; ++p)
                scale[p] = load_f16(scales_of(pages[p], head_dim) + block / kRun * kPageSize);
        }
        for (int d = block; d < block + kRun; ++d) {
            if (kLine > 1 && d % kLine == 0) {
                TANDEM_UNROLL_ALL
                for (int p = 0; p < P; ++p) prefetch(ahead[p] + d * kPageSize);
            }
            F32x16 k[P];
            TANDEM_UNROLL_ALL
            for (int p = 0; p < P; ++p) {
                k[p] = Kv::load(pages[p] + d * kPageSize);
                if constexpr (Kv::kBlock > 0) k[p] = k[p] * scale[p];
            }
            TANDEM_UNROLL_ALL
            for (int i = 0; i < N; ++i) {
                const F32x16 q = splat(queries[i][d]);
                TANDEM_UNROLL_ALL
                for (int p = 0; p < P; ++p) sum[i][p] = fma(k[p], q, sum[i][p]);
            }
        }
    }
    // A loop that is not unrolled may only follow: sums that one could index would live in memory all along.
    TANDEM_UNROLL_ALL
    for (int i = 0; i < N; ++i) {
        TANDEM_UNROLL_ALL
        for (int p = 0; p < P; ++p) store(scores + i * kTile + p * kPageSize, sum[i][p]);
    }
    for (int i = 0; i < N; ++i) {
        for (int p = 0; p < P; ++p) {
            float* at = scores + i * kTile + p * kPageSize;
            store(at, form(load(at)));
        }
    }
}

// Scores of the tile's pages [begin, end).
template <typename Kv, int N>
inline void tile_scores(const float* const* queries, const KvTile<Kv>& tile, int begin, int end, int head_dim,
                        const ScoreForm& form, float* scores) {
    constexpr int kPages = pages_at_once<Kv>(N);
    int p = begin;
    for (; p + kPages <= end; p += kPages) {
        score_pages<Kv, N, kPages>(queries, tile.keys + p, tile.keys_ahead + p, head_dim, form,
                                   scores + p * kPageSize);
    }
    for (; p < end; ++p) {
        score_pages<Kv, N, 1>(queries, tile.keys + p, tile.keys_ahead + p, head_dim, form,
                              scores + p * kPageSize);
    }
}

// Dimensions [d, d + 16 V) of out[i] = out[i] * correction[i] + sum over positions [begin, end) of the tile,
// in order, of weights[i][position] * v[position].
template <typename Kv, int N, int V>
inline void add_values(const float* weights, const KvTile<Kv>& tile, int begin, int end, int d,
                       int padded_dim, const float* correction, float* const* out) {
    constexpr int kLine = 64 / static_cast<int>(sizeof(typename Kv::Element));
    [[maybe_unused]] const int blocks = Kv::kBlock ? padded_dim / Kv::kBlock : 0;
    F32x16 sum[N][V];
    TANDEM_UNROLL_ALL
    for (int i = 0; i < N; ++i) {
        TANDEM_UNROLL_ALL
        for (int j = 0; j < V; ++j) sum[i][j] = load(out[i] + d + j * kLanes) * splat(correction[i]);
    }
    while (begin < end) {
        const int page = begin / kPageSize;
        const int stop = end < (page + 1) * kPageSize ? end : (page + 1) * kPageSize;
        const auto* values = tile.values[page] + d;
        const auto* ahead = tile.values_ahead[page] + d;
        [[maybe_unused]] const float* scales = tile.value_scales + page * blocks * kPageSize;
        for (; begin < stop; ++begin) {
            const int slot = begin % kPageSize;
            if constexpr (kLine > kLanes) {
                TANDEM_UNROLL_ALL
                for (int j = 0; j < V * kLanes; j += kLine) prefetch(ahead + slot * padded_dim + j);
            }
            F32x16 v[V];
            TANDEM_UNROLL_ALL
            for (int j = 0; j < V; ++j) {
                v[j] = Kv::load(values + slot * padded_dim + j * kLanes);
                if constexpr (Kv::kBlock > 0)
                    v[j] = v[j] * splat(scales[slot * blocks + (d + j * kLanes) / Kv::kBlock]);
            }
            TANDEM_UNROLL_ALL
            for (int i = 0; i < N; ++i) {
                const F32x16 w = splat(weights[i * kTile + begin]);
                TANDEM_UNROLL_ALL
                for (int j = 0; j < V; ++j) sum[i][j] = fma(v[j], w, sum[i][j]);
            }
        }
    }
    TANDEM_UNROLL_ALL
    for (int i = 0; i < N; ++i) {
        TANDEM_UNROLL_ALL
        for (int j = 0; j < V; ++j) store(out[i] + d + j * kLanes, sum[i][j]);
    }
}

template <typename Kv, int N>
inline void tile_values(const float* weights, const KvTile<Kv>& tile, int begin, int end, int padded_dim,
                        const float* correction, float* const* out) {
    constexpr int kVectors = vectors_at_once(N);
    int d = 0;
    for (; d + kVectors * kLanes <= padded_dim; d += kVectors * kLanes)
        add_values<Kv, N, kVectors>(weights, tile, begin, end, d, padded_dim, correction, out);
    for (; d < padded_dim; d += kLanes)
        add_values<Kv, N, 1>(weights, tile, begin, end, d, padded_dim, correction, out);
}

// 2^x for x <= 0; exactly 0 for -infinity and exactly 1 for 0. The polynomial is the minimax one of degree 6
// on [-1/2, 1/2], fitted by Remez' exchange; relative error under 2^-23.
TANDEM_INLINE F32x16 exp2_nonpositive(F32x16 x) {
    // Adding it rounds to an integer, which then stands in the low bits, 127 greater.
    const F32x16 magic = splat(0x1.8p23f + 127.0f);
    const F32x16 t = max(splat(-127.0f), x);
    const F32x16 shifted = t + magic;
    const F32x16 r = t - (shifted - magic);
    F32x16 p = splat(1.5594677825e-4f);
    p = fma(p, r, splat(1.3406643411e-3f));
    p = fma(p, r, splat(9.6176927909e-3f));
    p = fma(p, r, splat(5.5503103882e-2f));
    p = fma(p, r, splat(2.4022652209e-1f));
    p = fma(p, r, splat(6.9314724207e-1f));
    p = fma(p, r, splat(1.0f));
    return p * exp2_low_bits(shifted);
}

// What has been seen by one query: the unnormalized output [padded head_dim], sums of the weights by position
// modulo 16, the highest score; attention_state(head_dim) floats in all.
struct QueryState {
    float* out;
    float* lanes;
    float* maximum;

    QueryState() = default;
    QueryState(float* at, int64_t padded_dim)
        : out(at), lanes(at + padded_dim), maximum(at + padded_dim + kLanes) {}
    static constexpr int64_t floats(int64_t padded_dim) { return padded_dim + 2 * kLanes; }

    TANDEM_INLINE void clear(int64_t padded_dim) const {
        std::memset(out, 0, static_cast<size_t>(padded_dim + kLanes) * sizeof(float));
        *maximum = -std::numeric_limits<float>::infinity();
    }
    // What the exponents are relative to: finite, even where nothing has been seen.
    static TANDEM_INLINE float base(float highest) {
        return highest == -std::numeric_limits<float>::infinity() ? 0.0f : highest;
    }

    // Adds what was seen of later positions.
    TANDEM_INLINE void fold(const QueryState& later, int64_t padded_dim) const {
        const float now = *maximum > *later.maximum ? *maximum : *later.maximum;
        const float zero = base(now);
        const F32x16 a = exp2_nonpositive(splat(*maximum - zero));
        const F32x16 b = exp2_nonpositive(splat(*later.maximum - zero));
        // The lanes lie behind the output.
        for (int64_t d = 0; d < padded_dim + kLanes; d += kLanes)
            store(out + d, fma(load(later.out + d), b, load(out + d) * a));
        *maximum = now;
    }

    TANDEM_INLINE void finish(int head_dim, float* result) const {
        const F32x16 inverse = splat(1.0f / reduce_add(load(lanes)));
        for_each_vector(head_dim,
                        [&](int64_t d, int64_t m) { store_upto(result + d, load(out + d) * inverse, m); });
    }
};

// The positions [from, to) of a tile that a query sees.
struct Visible {
    int from, to;
};

// Keeps the visible scores of page p; the others become -infinity, whatever they are.
TANDEM_INLINE F32x16 visible_scores(F32x16 scores, int p, const Visible& visible) {
    struct Bounds {
        float at[3 * kTile];
        constexpr Bounds() : at{} {
            for (int i = 0; i < 3 * kTile; ++i)
                at[i] = (i / kTile == 1 ? 1.0f : -1.0f) * std::numeric_limits<float>::infinity();
        }
    };
    static constexpr Bounds kBounds;
    scores = min(scores, load(kBounds.at + kTile - visible.from + p * kLanes));
    return min(scores, load(kBounds.at + 2 * kTile - visible.to + p * kLanes));
}

// Takes in the scores of N queries, which become weights, and gives the corrections of their outputs. In two
// passes, so that the queries' chains of dependent operations overlap.
template <int N>
inline void tile_softmax(const QueryState* states, const Visible* visible, float* scores, float* correction) {
    static_assert(N <= kLanes);
    float zero[N];
    alignas(64) float change[kLanes] = {};
    for (int i = 0; i < N; ++i) {
        float* row = scores + i * kTile;
        F32x16 s[kTilePages];
        TANDEM_UNROLL_ALL
        for (int p = 0; p < kTilePages; ++p) s[p] = load(row + p * kLanes);
        if (visible[i].from > 0 || visible[i].to < kTile) {
            TANDEM_UNROLL_ALL
            for (int p = 0; p < kTilePages; ++p) {
                s[p] = visible_scores(s[p], p, visible[i]);
                store(row + p * kLanes, s[p]);
            }
        }
        const float highest = reduce_max(max(max(s[0], s[1]), max(s[2], s[3])));
        const float before = *states[i].maximum, now = before > highest ? before : highest;
        zero[i] = QueryState::base(now);
        change[i] = before - zero[i];
        *states[i].maximum = now;
    }
    store(correction, exp2_nonpositive(load(change)));
    for (int i = 0; i < N; ++i) {
        float* row = scores + i * kTile;
        F32x16 sum = load(states[i].lanes) * splat(correction[i]);
        TANDEM_UNROLL_ALL
        for (int p = 0; p < kTilePages; ++p) {
            const F32x16 w = exp2_nonpositive(load(row + p * kLanes) - splat(zero[i]));
            store(row + p * kLanes, w);
            sum = sum + w;
        }
        store(states[i].lanes, sum);
    }
}

}  // namespace tandem::TANDEM_ISA
