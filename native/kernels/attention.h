// Attention of some query rows of one sequence over one KV head's pages; prefill and decode are the same
// code.
//
// Definition: keys are taken in tiles of 64 positions that start at multiples of 64. A score is the sum over
// d, in order, of fma(k[d], q[d], .), times `scale`. Online softmax per tile: m' = max(m, tile's maximum), o
// = o * exp(m - m') + sum over the tile's positions in order of exp(s - m') v, l likewise in 16 lanes
// (position modulo 16). A tile in which a query sees no position is skipped for it. So a query's result
// depends on nothing but its own keys: not on the rows beside it, the chunk it came in or the batch. Online
// softmax: Milakov and Gimelshein 2018; tiling: Dao et al. 2022.
#pragma once

#include <limits>

#include "kernels/elementwise.h"

namespace tandem::TANDEM_ISA {

inline constexpr int kTilePages = 4;
inline constexpr int kTile = kTilePages * kPageSize;
static_assert(kPageSize == kLanes, "a page's positions are the lanes of one vector");

// Query vectors that share the loads of a tile; bounded by the registers.
#if defined(__AVX512F__)
inline constexpr int kQueryTile = 4;
#else
inline constexpr int kQueryTile = 2;
#endif

// How pages store elements. kBlock dimensions share a scale; 0: there are no scales.
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

// The scales behind a page's int8 values.
TANDEM_INLINE const uint16_t* scales_of(const int8_t* page, int head_dim) {
    return reinterpret_cast<const uint16_t*>(page + head_dim * kPageSize);
}

// sum[i][p] = sum over dimensions [begin, end), in order, of keys times query.
template <typename Kv, int N, int P>
TANDEM_INLINE void add_dimensions(const float* const* queries, const typename Kv::Element* const* page,
                                  int begin, int end, F32x16 (&sum)[N][P]) {
    for (int d = begin; d < end; ++d) {
        F32x16 k[P];
        for (int p = 0; p < P; ++p) k[p] = Kv::load(page[p] + d * kPageSize);
        for (int i = 0; i < N; ++i) {
            const F32x16 q = splat(queries[i][d]);
            for (int p = 0; p < P; ++p) sum[i][p] = fma(k[p], q, sum[i][p]);
        }
    }
}

template <int N, int P>
TANDEM_INLINE void clear(F32x16 (&sum)[N][P]) {
    for (int i = 0; i < N; ++i) {
        for (int p = 0; p < P; ++p) sum[i][p] = splat(0.0f);
    }
}

// scores[i][position in tile] for N queries; pages whose pointer is null are not read.
template <typename Kv, int N>
inline void tile_scores(const float* const* queries, const typename Kv::Element* const* keys, int head_dim,
                        float factor, float cap, float* scores) {
    using Element = typename Kv::Element;
    constexpr int kPagesAtOnce = N * kLanes >= 64 && Kv::kBlock == 0 ? 4 : 2;
    for (int first = 0; first < kTilePages; first += kPagesAtOnce) {
        const Element* page[kPagesAtOnce];
        const Element* any = nullptr;
        for (int p = 0; p < kPagesAtOnce; ++p) any = keys[first + p] ? keys[first + p] : any;
        if (!any) continue;
        for (int p = 0; p < kPagesAtOnce; ++p) page[p] = keys[first + p] ? keys[first + p] : any;
        F32x16 sum[N][kPagesAtOnce];
        clear(sum);
        if constexpr (Kv::kBlock == 0) {
            add_dimensions<Kv>(queries, page, 0, head_dim, sum);
        } else {
            for (int d = 0; d < head_dim; d += Kv::kBlock) {
                F32x16 part[N][kPagesAtOnce];
                clear(part);
                add_dimensions<Kv>(queries, page, d, d + Kv::kBlock, part);
                for (int p = 0; p < kPagesAtOnce; ++p) {
                    const F32x16 scale = load_f16(scales_of(page[p], head_dim) + d / Kv::kBlock * kPageSize);
                    for (int i = 0; i < N; ++i) sum[i][p] = fma(part[i][p], scale, sum[i][p]);
                }
            }
        }
        for (int i = 0; i < N; ++i) {
            for (int p = 0; p < kPagesAtOnce; ++p) {
                F32x16 s = sum[i][p] * splat(factor);
                if (cap > 0.0f) s = capped(s, cap);
                store(scores + i * kTile + (first + p) * kPageSize, s);
            }
        }
    }
}

// The factor of a value's block at a position: its scale, or 1.
template <typename Kv>
TANDEM_INLINE float value_scale(const typename Kv::Element* page, int slot, int d, int head_dim) {
    if constexpr (Kv::kBlock == 0) {
        return 1.0f;
    } else {
        return f16_value(scales_of(page, head_dim)[slot * (head_dim / Kv::kBlock) + d / Kv::kBlock]);
    }
}

// V vectors of dimensions [d, d + 16 V): sum[i][j] gains weights[i][position] * v over positions [begin,
// end), in order.
template <typename Kv, int N, int V>
TANDEM_INLINE void add_positions(const float* const* weights, const typename Kv::Element* const* values,
                                 int begin, int end, int d, int padded_dim, F32x16 (&sum)[N][V]) {
    for (int position = begin; position < end; ++position) {
        const int slot = position % kPageSize;
        const auto* page = values[position / kPageSize];
        for (int j = 0; j < V; ++j) {
            const F32x16 row = Kv::load(page + slot * padded_dim + d + j * kLanes);
            const float scale = value_scale<Kv>(page, slot, d + j * kLanes, padded_dim);
            for (int i = 0; i < N; ++i) sum[i][j] = fma(row, splat(weights[i][position] * scale), sum[i][j]);
        }
    }
}

// out[i] += sum over positions [begin, end) of the tile, in order, of weights[i][position] * v[position].
template <typename Kv, int N>
inline void tile_values(const float* const* weights, const typename Kv::Element* const* values, int begin,
                        int end, int padded_dim, float* const* out) {
    const auto vectors = [&]<int V>(int d) {
        F32x16 sum[N][V];
        for (int i = 0; i < N; ++i) {
            for (int j = 0; j < V; ++j) sum[i][j] = load(out[i] + d + j * kLanes);
        }
        add_positions<Kv>(weights, values, begin, end, d, padded_dim, sum);
        for (int i = 0; i < N; ++i) {
            for (int j = 0; j < V; ++j) store(out[i] + d + j * kLanes, sum[i][j]);
        }
    };
    constexpr int kVectors = N * kLanes >= 64 ? 4 : 2;
    int d = 0;
    for (; d + kVectors * kLanes <= padded_dim; d += kVectors * kLanes)
        vectors.template operator()<kVectors>(d);
    for (; d < padded_dim; d += kLanes) vectors.template operator()<1>(d);
}

// Running state of one query vector, in the task's scratch.
struct QueryState {
    float* out;      // [padded head_dim], unnormalized
    float* weights;  // [kTile] scores, then exponentials
    float* lanes;    // [16] sums of the exponentials
    float maximum;
};

template <typename Kv>
class AttentionRun {
    using T = typename Kv::Element;

 public:
    explicit AttentionRun(const AttentionTask& task)
        : task_(task), padded_((task.head_dim + kLanes - 1) / kLanes * kLanes) {}

    void run() {
        const int last = task_.position + task_.rows - 1;
        const int first = first_visible(task_.position);
        clear();
        for (int start = first / kTile * kTile; start <= last; start += kTile) tile(start, first, last);
        finish();
    }

 private:
    int first_visible(int position) const {
        return task_.window > 0 && position >= task_.window ? position - task_.window + 1 : 0;
    }
    int queries() const { return task_.rows * task_.heads_per_kv; }
    const float* query(int i) const {
        return task_.q + (i / task_.heads_per_kv) * task_.q_stride +
               (i % task_.heads_per_kv) * task_.head_dim;
    }
    QueryState state(int i) const {
        float* base = task_.scratch + int64_t{i} * (padded_ + kTile + kLanes + 1);
        return {base, base + padded_, base + padded_ + kTile, base[padded_ + kTile + kLanes]};
    }
    void set_maximum(int i, float m) const {
        task_.scratch[int64_t{i} * (padded_ + kTile + kLanes + 1) + padded_ + kTile + kLanes] = m;
    }

    void clear() const {
        for (int i = 0; i < queries(); ++i) {
            const QueryState s = state(i);
            std::memset(s.out, 0, padded_ * sizeof(float));
            std::memset(s.lanes, 0, kLanes * sizeof(float));
            set_maximum(i, -std::numeric_limits<float>::infinity());
        }
    }

    void tile(int start, int first, int last) const {
        const T* keys[kTilePages];
        const T* values[kTilePages];
        for (int p = 0; p < kTilePages; ++p) {
            const int page_start = start + p * kPageSize;
            if (page_start > last || page_start + kPageSize <= first) {
                keys[p] = values[p] = nullptr;
                continue;
            }
            const int64_t physical = task_.pages[page_start / kPageSize - task_.first_page];
            keys[p] = reinterpret_cast<const T*>(task_.keys + physical * task_.page_stride);
            values[p] = reinterpret_cast<const T*>(task_.values + physical * task_.page_stride);
        }
        // Queries of one row see the same keys; rows that see nothing of this tile leave it out.
        int i = 0;
        const int n = queries();
        while (i < n && task_.position + i / task_.heads_per_kv < start)
            i = (i / task_.heads_per_kv + 1) * task_.heads_per_kv;
        int end = n;
        while (end > i && first_visible(task_.position + (end - 1) / task_.heads_per_kv) >= start + kTile) {
            end = (end - 1) / task_.heads_per_kv * task_.heads_per_kv;
        }
        for (; i + kQueryTile <= end; i += kQueryTile) part<kQueryTile>(i, start, keys, values);
        for (; i < end; ++i) part<1>(i, start, keys, values);
    }

    template <int N>
    void part(int i, int start, const T* const* keys, const T* const* values) const {
        const float* q[N];
        float* weights[N];
        float* out[N];
        alignas(64) float scores[N * kTile];
        for (int j = 0; j < N; ++j) q[j] = query(i + j);
        tile_scores<Kv, N>(q, keys, task_.head_dim, task_.scale, task_.softcap, scores);
        int begin = kTile, end = 0;
        for (int j = 0; j < N; ++j) {
            const QueryState s = state(i + j);
            weights[j] = s.weights;
            out[j] = s.out;
            const int position = task_.position + (i + j) / task_.heads_per_kv;
            int from = first_visible(position) - start, to = position + 1 - start;
            from = from < 0 ? 0 : from;
            to = to > kTile ? kTile : to;
            softmax(i + j, s, scores + j * kTile, from, to);
            begin = from < begin ? from : begin;
            end = to > end ? to : end;
        }
        tile_values<Kv, N>(weights, values, begin, end, padded_, out);
    }

    // Takes the scores of positions [from, to) of the tile into the running maximum and sums.
    void softmax(int i, const QueryState& s, float* scores, int from, int to) const {
        const float masked = -std::numeric_limits<float>::infinity();
        for (int t = 0; t < from; ++t) scores[t] = masked;
        for (int t = to; t < kTile; ++t) scores[t] = masked;
        F32x16 top = load(scores);
        for (int t = kLanes; t < kTile; t += kLanes) top = max(top, load(scores + t));
        const float highest = reduce_max(top);
        const float maximum = s.maximum > highest ? s.maximum : highest;
        const F32x16 correction = exp(splat(s.maximum - maximum));
        F32x16 sum = load(s.lanes) * correction;
        for (int t = 0; t < kTile; t += kLanes) {
            const F32x16 w = exp(load(scores + t) - splat(maximum));
            store(s.weights + t, w);
            sum = sum + w;
        }
        store(s.lanes, sum);
        for (int d = 0; d < padded_; d += kLanes) store(s.out + d, load(s.out + d) * correction);
        set_maximum(i, maximum);
    }

    void finish() const {
        for (int i = 0; i < queries(); ++i) {
            const QueryState s = state(i);
            const F32x16 inverse = splat(1.0f / reduce_add(load(s.lanes)));
            float* out = task_.out + (i / task_.heads_per_kv) * task_.out_stride +
                         (i % task_.heads_per_kv) * task_.head_dim;
            for_each_vector(task_.head_dim,
                            [&](int64_t d, int64_t m) { store_upto(out + d, load(s.out + d) * inverse, m); });
        }
    }

    const AttentionTask& task_;
    const int padded_;
};

inline void attention(const AttentionTask& task) {
    switch (task.type) {
        case KvType::kF32:
            return AttentionRun<KvF32>(task).run();
        case KvType::kF16:
            return AttentionRun<KvF16>(task).run();
        case KvType::kQ8_0:
            return AttentionRun<KvQ8>(task).run();
    }
}

}  // namespace tandem::TANDEM_ISA
