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

template <typename T>
TANDEM_INLINE F32x16 load_kv(const T* p) {
    if constexpr (sizeof(T) == 4) {
        return load(p);
    } else {
        return load_f16(p);
    }
}

// scores[i][position in tile] for N queries; pages whose pointer is null are not read.
template <int N, typename T>
inline void tile_scores(const float* const* queries, const T* const* keys, int head_dim, float factor,
                        float cap, float* scores) {
    constexpr int kPagesAtOnce = kLanes * N >= 64 ? 4 : 2;
    for (int first = 0; first < kTilePages; first += kPagesAtOnce) {
        F32x16 sum[N][kPagesAtOnce];
        for (int i = 0; i < N; ++i) {
            for (int p = 0; p < kPagesAtOnce; ++p) sum[i][p] = splat(0.0f);
        }
        const T* page[kPagesAtOnce];
        const T* any = nullptr;
        for (int p = 0; p < kPagesAtOnce; ++p) any = keys[first + p] ? keys[first + p] : any;
        if (!any) continue;
        for (int p = 0; p < kPagesAtOnce; ++p) page[p] = keys[first + p] ? keys[first + p] : any;
        for (int d = 0; d < head_dim; ++d) {
            F32x16 k[kPagesAtOnce];
            for (int p = 0; p < kPagesAtOnce; ++p) k[p] = load_kv(page[p] + d * kPageSize);
            for (int i = 0; i < N; ++i) {
                const F32x16 q = splat(queries[i][d]);
                for (int p = 0; p < kPagesAtOnce; ++p) sum[i][p] = fma(k[p], q, sum[i][p]);
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

// out[i] += sum over positions [begin, end) of the tile, in order, of weights[i][position] * v[position].
template <int N, typename T>
inline void tile_values(const float* const* weights, const T* const* values, int begin, int end,
                        int padded_dim, float* const* out) {
    constexpr int kVectors = kLanes * N >= 64 ? 4 : 2;
    for (int d = 0; d < padded_dim; d += kVectors * kLanes) {
        const int vectors = padded_dim - d >= kVectors * kLanes ? kVectors : (padded_dim - d) / kLanes;
        F32x16 sum[N][kVectors];
        for (int i = 0; i < N; ++i) {
            for (int j = 0; j < vectors; ++j) sum[i][j] = load(out[i] + d + j * kLanes);
        }
        if (vectors == kVectors) {
            for (int position = begin; position < end; ++position) {
                const T* v = values[position / kPageSize] + (position % kPageSize) * padded_dim + d;
                F32x16 row[kVectors];
                for (int j = 0; j < kVectors; ++j) row[j] = load_kv(v + j * kLanes);
                for (int i = 0; i < N; ++i) {
                    const F32x16 w = splat(weights[i][position]);
                    for (int j = 0; j < kVectors; ++j) sum[i][j] = fma(row[j], w, sum[i][j]);
                }
            }
        } else {
            for (int position = begin; position < end; ++position) {
                const T* v = values[position / kPageSize] + (position % kPageSize) * padded_dim + d;
                for (int j = 0; j < vectors; ++j) {
                    const F32x16 row = load_kv(v + j * kLanes);
                    for (int i = 0; i < N; ++i) sum[i][j] = fma(row, splat(weights[i][position]), sum[i][j]);
                }
            }
        }
        for (int i = 0; i < N; ++i) {
            for (int j = 0; j < vectors; ++j) store(out[i] + d + j * kLanes, sum[i][j]);
        }
    }
}

// Running state of one query vector, in the task's scratch.
struct QueryState {
    float* out;      // [padded head_dim], unnormalized
    float* weights;  // [kTile] scores, then exponentials
    float* lanes;    // [16] sums of the exponentials
    float maximum;
};

template <typename T>
class AttentionRun {
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
        tile_scores<N, T>(q, keys, task_.head_dim, task_.scale, task_.softcap, scores);
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
        tile_values<N, T>(weights, values, begin, end, padded_, out);
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
    if (task.type == KvType::kF32) {
        AttentionRun<float>(task).run();
    } else {
        AttentionRun<uint16_t>(task).run();
    }
}

}  // namespace tandem::TANDEM_ISA
