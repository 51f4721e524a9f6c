// Attention of some query rows of one sequence over one KV head's pages; prefill and decode are the same
// code.
//
// Definition: keys are taken in segments that start at multiples of the query's segment size
// (attention_segment) and, in them, in tiles of 64 positions that start at multiples of 64. A score is the
// sum over d, in order, of fma(k[d], q[d], .), times scale * log2(e). Online softmax per tile: m' = max(m,
// tile's maximum), o = o * 2^(m - m') + sum over the tile's positions in order of 2^(s - m') v, l likewise in
// 16 lanes (position modulo 16). A tile in which a query sees no position is skipped for it. The segments'
// (o, l, m) are folded in order. So a query's result depends on nothing but its own keys and position: not
// on the rows beside it, the chunk it came in, the batch, or how segments were shared between threads.
// Online softmax: Milakov and Gimelshein 2018; tiling: Dao et al. 2022.
#pragma once

#include <type_traits>

#include "kernels/attention_tile.h"

namespace tandem::TANDEM_ISA {

template <typename Kv>
class AttentionRun {
    using Element = typename Kv::Element;

 public:
    explicit AttentionRun(const AttentionTask& task)
        : task_(task),
          form_(task),
          padded_(static_cast<int>(whole_vectors(task.head_dim))),
          queries_(task.rows * task.heads_per_kv),
          segment_(attention_segment(task.position, task.window)),
          converted_(task.scratch + 2 * queries_ * QueryState::floats(padded_)),
          scales_(converted_ + 2 * kTilePages * converted_page(padded_)) {}

    // Everything that the rows see, normalized into the task's output.
    void run() {
        float* states = task_.scratch;
        float* totals = states + queries_ * QueryState::floats(padded_);
        const int first = first_visible(task_.position), last = task_.position + task_.rows - 1;
        const int begin = first / segment_, end = last / segment_;
        for (int s = begin; s <= end; ++s) {
            segment(s, states);
            if (begin == end) break;
            for (int i = 0; i < queries_; ++i) {
                const int own = first_visible(position(i)) / segment_;
                if (s < own || position(i) < s * segment_) continue;
                if (s == own) {
                    std::memcpy(at(totals, i).out, at(states, i).out,
                                static_cast<size_t>(QueryState::floats(padded_)) * sizeof(float));
                } else {
                    at(totals, i).fold(at(states, i), padded_);
                }
            }
        }
        for (int i = 0; i < queries_; ++i) {
            at(begin == end ? states : totals, i)
                .finish(task_.head_dim, task_.out + (i / task_.heads_per_kv) * task_.out_stride +
                                            (i % task_.heads_per_kv) * task_.head_dim);
        }
    }

    // What the rows see of one segment, left in `states`.
    void segment(int index, float* states) {
        for (int i = 0; i < queries_; ++i) at(states, i).clear(padded_);
        const int last = task_.position + task_.rows - 1;
        int begin = index * segment_, end = begin + segment_;
        const int first = first_visible(task_.position);
        begin = begin < first ? first : begin;
        end = end > last + 1 ? last + 1 : end;
        for (int start = begin / kTile * kTile; start < end; start += kTile) {
            const KvTile<Kv> here = tile(start, begin, end, task_.segment < 0 ? last + 1 : end);
            if constexpr (!std::is_same_v<Kv, KvF32>) {
                if (queries_ > kInPlace) {
                    run_tile(start, convert_tile(here, task_.head_dim, converted_), states);
                    continue;
                }
            }
            run_tile(start, here, states);
        }
    }

 private:
    // Up to so many queries read the pages as they are; more have them converted once.
    static constexpr int kInPlace = 2 * kQueryTile;

    static int first_seen(int position, int window) {
        return window > 0 && position >= window ? position - window + 1 : 0;
    }
    int first_visible(int position) const { return first_seen(position, task_.window); }
    int position(int i) const { return task_.position + i / task_.heads_per_kv; }
    QueryState at(float* states, int i) const { return {states + i * QueryState::floats(padded_), padded_}; }
    const float* query(int i) const {
        return task_.q + (i / task_.heads_per_kv) * task_.q_stride +
               (i % task_.heads_per_kv) * task_.head_dim;
    }
    const uint8_t* page(const uint8_t* base, int logical) const {
        return base + task_.pages[logical - task_.first_page] * task_.page_stride;
    }

    // The tile at `start` as far as it lies in positions [begin, end), and what comes after it before
    // `ahead_end` or in the next task.
    KvTile<Kv> tile(int start, int begin, int end, int ahead_end) const {
        KvTile<Kv> t{};
        const int first = start / kPageSize, stop = (end + kPageSize - 1) / kPageSize;
        t.begin = begin > start ? (begin - start) / kPageSize : 0;
        t.end = smaller_int(kTilePages, stop - first);
        t.value_scales = scales_;
        for (int p = t.begin; p < t.end; ++p) {
            t.keys[p] = reinterpret_cast<const Element*>(page(task_.keys, first + p));
            t.values[p] = reinterpret_cast<const Element*>(page(task_.values, first + p));
            const int ahead = first + p + kTilePages;
            if (ahead * kPageSize < ahead_end) {
                t.keys_ahead[p] = reinterpret_cast<const Element*>(page(task_.keys, ahead));
                t.values_ahead[p] = reinterpret_cast<const Element*>(page(task_.values, ahead));
            } else {
                const int64_t at = task_.next ? first_page(*task_.next, p) * task_.page_stride : 0;
                t.keys_ahead[p] =
                    task_.next ? reinterpret_cast<const Element*>(task_.next->keys + at) : t.keys[p];
                t.values_ahead[p] =
                    task_.next ? reinterpret_cast<const Element*>(task_.next->values + at) : t.values[p];
            }
            if constexpr (Kv::kBlock > 0)
                convert_scales(t.values[p], task_.head_dim,
                               scales_ + p * kPageSize * (task_.head_dim / Kv::kBlock));
        }
        return t;
    }
    // Physical page p of the first tile that a task reads, or one near it.
    static int64_t first_page(const AttentionTask& task, int p) {
        const int size = attention_segment(task.position, task.window);
        int first = first_seen(task.position, task.window);
        if (task.segment > 0 && task.segment * size > first) first = task.segment * size;
        int logical = first / kTile * kTilePages + p;
        const int last = (task.position + task.rows - 1) / kPageSize;
        logical = logical < first / kPageSize ? first / kPageSize : smaller_int(logical, last);
        return task.pages[logical - task.first_page];
    }
    static int smaller_int(int a, int b) { return a < b ? a : b; }

    // The queries that see something of the tile, in even register tiles.
    template <typename Stored>
    void run_tile(int start, const KvTile<Stored>& tile, float* states) const {
        const int heads = task_.heads_per_kv;
        const int begin = start > task_.position ? (start - task_.position) * heads : 0;
        int end = queries_;
        while (end > begin && first_visible(position(end - 1)) >= start + kTile) end -= heads;
        const int n = end - begin, parts = (n + kQueryTile - 1) / kQueryTile;
        for (int part = 0; part < parts; ++part) {
            const int from = begin + n * part / parts, to = begin + n * (part + 1) / parts;
            some_of<Stored, kQueryTile>(to - from, from, start, tile, states);
        }
    }

    template <typename Stored, int N>
    void some_of(int count, int i, int start, const KvTile<Stored>& tile, float* states) const {
        if (count == N) {
            some<Stored, N>(i, start, tile, states);
        } else if constexpr (N > 1) {
            some_of<Stored, N - 1>(count, i, start, tile, states);
        }
    }

    template <typename Stored, int N>
    void some(int i, int start, const KvTile<Stored>& tile, float* states) const {
        const float* q[N];
        float* out[N];
        QueryState own[N];
        Visible visible[N];
        alignas(64) float scores[N * kTile];
        alignas(64) float correction[kLanes];
        for (int j = 0; j < N; ++j) {
            q[j] = query(i + j);
            own[j] = at(states, i + j);
            out[j] = own[j].out;
            const int p = position(i + j);
            visible[j] = {clamped(first_visible(p) - start), clamped(p + 1 - start)};
        }
        const int begin = visible[0].from, end = visible[N - 1].to;
        tile_scores<Stored, N>(q, tile, begin / kPageSize, (end + kPageSize - 1) / kPageSize, task_.head_dim,
                               form_, scores);
        tile_softmax<N>(own, visible, scores, correction);
        tile_values<Stored, N>(scores, tile, begin, end, padded_, correction, out);
    }
    static int clamped(int t) { return t < 0 ? 0 : t > kTile ? kTile : t; }

    const AttentionTask& task_;
    const ScoreForm form_;
    const int padded_, queries_, segment_;
    float* const converted_;  // a tile's pages in float32
    float* const scales_;     // of its values
};

template <typename Kv>
inline void attend(const AttentionTask& task) {
    if (task.segment >= 0) {
        AttentionRun<Kv>(task).segment(task.segment, task.states);
        return;
    }
    // Rows of equal segment size together.
    AttentionTask part = task;
    for (int done = 0; done < task.rows; done += part.rows) {
        part.position = task.position + done;
        part.q = task.q + done * task.q_stride;
        part.out = task.out + done * task.out_stride;
        const int size = attention_segment(part.position, task.window);
        part.rows = task.rows - done;
        while (attention_segment(part.position + part.rows - 1, task.window) != size) --part.rows;
        AttentionRun<Kv>(part).run();
    }
}

inline void attention(const AttentionTask& task) {
    switch (task.type) {
        case KvType::kF32:
            return attend<KvF32>(task);
        case KvType::kF16:
            return attend<KvF16>(task);
        case KvType::kQ8_0:
            return attend<KvQ8>(task);
    }
}

// Folds one query's states of consecutive segments, `stride` floats apart, in order; they are overwritten.
inline void fold_attention(float* states, int segments, int64_t stride, int head_dim, float* out) {
    const int64_t padded = whole_vectors(head_dim);
    const QueryState total(states, padded);
    for (int s = 1; s < segments; ++s) total.fold({states + s * stride, padded}, padded);
    total.finish(head_dim, out);
}

}  // namespace tandem::TANDEM_ISA
