// How the threads of a lane share the attention of one batch.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/kernels.h"
#include "src/batch.h"

namespace tandem {

// The most query vectors (rows times heads) that one unit takes. They share the conversion of a tile's pages.
inline constexpr int kUnitQueries = 128;
inline int attention_unit_rows(int heads_per_kv) { return std::max(1, kUnitQueries / heads_per_kv); }

// A sequence of one row is cut into its segments where one KV head of it is more than one part in so many of
// a thread's work; so at most that many for each thread are.
inline constexpr int kPartsPerThread = 8;
// States that they leave, for each thread.
inline int64_t attention_partial_states(int heads_per_kv) {
    return int64_t{kPartsPerThread} * kMostSegments * heads_per_kv;
}

// `rows` rows of one sequence and KV head from row `row` of the batch on; all that they see, or one segment,
// counted from the first that they see, whose states go to `partial`, in units of a query's state.
struct AttentionUnit {
    int sequence, kv_head, row, rows, position;
    int segment;  // -1: all
    int64_t partial;
};

// The units of a batch, numbered; every thread walks them with a cursor of its own. Units of a sequence begin
// with its last rows, which see the most, so that the small ones are left for the end.
class AttentionUnits {
 public:
    AttentionUnits(const BatchView& batch, int kv_heads, int heads_per_kv, int window, int threads)
        : batch_(batch), kv_heads_(kv_heads), heads_per_kv_(heads_per_kv), window_(window) {
        int64_t all = 0, chunk_rows = 0;
        for (int s = 0; s < batch.sequences(); ++s) {
            const auto& sequence = batch.sequence(s);
            all += int64_t{sequence.rows} * seen(sequence.length - 1);
            if (sequence.rows > 1) chunk_rows += sequence.rows;
        }
        split_above_ = all * kv_heads / (int64_t{threads} * kPartsPerThread);
        unit_rows_ =
            static_cast<int>(std::clamp<int64_t>(chunk_rows * kv_heads / (int64_t{threads} * kPartsPerThread),
                                                 1, attention_unit_rows(heads_per_kv)));
        for (int s = 0; s < batch.sequences(); ++s) {
            count_ += units(s);
            any_split_ = any_split_ || segments(s) > 1;
        }
    }

    int64_t count() const { return count_; }
    bool any_split() const { return any_split_; }

    // Unit `index`; indices must not fall from one call to the next.
    AttentionUnit at(int64_t index) {
        while (index >= first_ + units(sequence_)) {
            first_ += units(sequence_);
            partial_ += partials(sequence_);
            ++sequence_;
        }
        const auto& place = batch_.sequence(sequence_);
        const int64_t in_sequence = index - first_;
        const int segments_here = segments(sequence_);
        if (segments_here > 1) {
            const int head = static_cast<int>(in_sequence / segments_here);
            const int segment = static_cast<int>(in_sequence % segments_here);
            return {sequence_,
                    head,
                    place.first_row,
                    1,
                    place.length - 1,
                    segment,
                    partial_ + (int64_t{head} * segments_here + segment) * heads_per_kv_};
        }
        const int chunks = chunks_of(sequence_);
        const int head = static_cast<int>(in_sequence / chunks);
        const int chunk = chunks - 1 - static_cast<int>(in_sequence % chunks);
        const int begin = static_cast<int>(int64_t{place.rows} * chunk / chunks);
        const int end = static_cast<int>(int64_t{place.rows} * (chunk + 1) / chunks);
        return {sequence_, head, place.first_row + begin, end - begin, place.length - place.rows + begin,
                -1,        0};
    }

    // Segments into which sequence s is cut; 1: it is not.
    int segments(int s) const {
        const auto& sequence = batch_.sequence(s);
        const int last = sequence.length - 1;
        if (sequence.rows != 1 || seen(last) <= split_above_) return 1;
        return last / attention_segment(last, window_) - first_segment(last) + 1;
    }
    int first_segment(int position) const {
        return (position + 1 - seen(position)) / attention_segment(position, window_);
    }
    // States of sequence s, of all its KV heads.
    int64_t partials(int s) const {
        const int n = segments(s);
        return n > 1 ? int64_t{n} * kv_heads_ * heads_per_kv_ : 0;
    }

 private:
    int seen(int position) const { return window_ > 0 && window_ <= position ? window_ : position + 1; }
    int chunks_of(int s) const { return (batch_.sequence(s).rows + unit_rows_ - 1) / unit_rows_; }
    int64_t units(int s) const { return int64_t{kv_heads_} * std::max(segments(s), chunks_of(s)); }

    const BatchView& batch_;
    const int kv_heads_, heads_per_kv_, window_;
    int64_t split_above_ = 0, count_ = 0;
    int unit_rows_ = 1;
    bool any_split_ = false;
    int sequence_ = 0;
    int64_t first_ = 0, partial_ = 0;
};

}  // namespace tandem
