#include "src/batch_bounds.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace tandem {

namespace {

constexpr int32_t kHeader = 16, kRowStride = 4, kSampleStride = 4;
// Of the header's words.
enum {
    kRows = 1,
    kSequences,
    kSamples,
    kRowsAt,
    kSequencesAt = 6,
    kSequenceStride,
    kSamplesAt,
    kPagesAt = 10,
    kGroups,
    kMaxRows,
    kMaxSequences,
    kMaxSamples,
    kMaxPages
};

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

std::string text(int64_t value) { return std::to_string(value); }

const int32_t* row(const int32_t* data, int32_t i) { return data + data[kRowsAt] + i * kRowStride; }

const int32_t* sequence(const int32_t* data, int32_t i) {
    return data + data[kSequencesAt] + int64_t{i} * data[kSequenceStride];
}

const int32_t* sample(const int32_t* data, int32_t i) { return data + data[kSamplesAt] + i * kSampleStride; }

}  // namespace

BatchBounds::BatchBounds(std::string device, int32_t rows, int32_t samples, int32_t vocab, int32_t slots,
                         std::vector<GroupBounds> groups)
    : device_(std::move(device)),
      rows_(rows),
      samples_(samples),
      vocab_(vocab),
      slots_(slots),
      groups_(std::move(groups)) {}

int32_t BatchBounds::check(std::span<const int32_t> batch) const {
    const int32_t* data = batch.data();
    if (batch.size() < kHeader ||
        int64_t{data[kPagesAt]} + data[kMaxPages] != static_cast<int64_t>(batch.size()))
        refuse("batch: its header does not fit its size");
    if (data[kRows] < 0 || data[kRows] > rows_)
        refuse(device_ + ": a batch of " + text(data[kRows]) + " rows, for a program linked for " +
               text(rows_));
    if (data[kRows] > data[kMaxRows] || data[kSequences] < 0 || data[kSequences] > data[kMaxSequences] ||
        data[kSamples] < 0 || data[kSamples] > data[kMaxSamples])
        refuse("batch: counts exceed its capacity");
    if (vocab_ >= 0) check_tokens(data);
    int32_t pages = 0;
    if (!groups_.empty()) {
        check_sequences(data);
        for (const GroupBounds& group : groups_) pages = std::max(pages, check_pages(data, group));
    }
    if (samples_ > 0) {
        if (data[kSamples] > samples_)
            refuse(device_ + ": " + text(data[kSamples]) + " samples, for a program linked for " +
                   text(samples_));
        for (int32_t i = 0; i < data[kSamples]; ++i) {
            const int32_t named = *sample(data, i);
            if (named < 0 || named >= data[kRows])
                refuse("batch: a sample names a row outside the batch's " + text(data[kRows]));
        }
    }
    return pages;
}

void BatchBounds::check_tokens(const int32_t* data) const {
    for (int32_t i = 0; i < data[kRows]; ++i) {
        const int32_t token = row(data, i)[2];
        if (token < -slots_)
            refuse("batch: row " + text(i) + " names token slot " + text(-1 - int64_t{token}) + " of " +
                   text(slots_));
        if (token >= vocab_)
            refuse("batch: row " + text(i) + " has token " + text(token) + ", the vocabulary has " +
                   text(vocab_));
    }
}

void BatchBounds::check_sequences(const int32_t* data) const {
    const int32_t rows = data[kRows], sequences = data[kSequences];
    int64_t counted = 0;
    for (int32_t i = 0; i < rows; ++i) {
        const int32_t named = *row(data, i);
        if (named < 0 || named >= sequences)
            refuse("batch: a row names a sequence outside the batch's " + text(sequences));
    }
    for (int32_t i = 0; i < sequences; ++i) {
        const int32_t* s = sequence(data, i);
        const int64_t first = s[0], count = s[1], length = s[2];
        if (count < 0 || first < 0 || first + count > rows)
            refuse("batch: a sequence has not as many rows as it says");
        for (int64_t at = first; at < first + count; ++at) {
            const int32_t* r = row(data, static_cast<int32_t>(at));
            if (r[0] != i) refuse("batch: a sequence has not as many rows as it says");
            if (length < count || r[1] != length - count + at - first)
                refuse("batch: the positions of a sequence's rows do not end at its length");
        }
        counted += count;
    }
    if (counted != rows) refuse("batch: a sequence has not as many rows as it says");
}

// Only the pages that the rows attend to: those behind a window may be anything.
int32_t BatchBounds::check_pages(const int32_t* data, const GroupBounds& group) const {
    const std::string what = "KV group " + text(group.index) + ": its page table";
    if (group.index >= data[kGroups])
        refuse("batch: it has page tables of " + text(data[kGroups]) + " KV groups, not of group " +
               text(group.index));
    const int32_t* pages = data + data[kPagesAt];
    int64_t used = 0;
    for (int32_t i = 0; i < data[kSequences]; ++i) {
        const int32_t* s = sequence(data, i);
        const int64_t count = s[1], length = s[2], offset = s[4 + 2 * group.index],
                      first = s[5 + 2 * group.index];
        if (count == 0) continue;
        const int64_t seen =
            group.window == 0 ? 0 : std::max<int64_t>(length - count - (group.window - 1), 0);
        const int64_t lowest = seen / group.page_size, last = (length - 1) / group.page_size;
        if (lowest < first || offset < 0 || offset + last - first + 1 > data[kMaxPages])
            refuse("batch: sequence " + text(i) + ", " + what +
                   " does not cover what the sequence attends to");
        for (int64_t page = lowest; page <= last; ++page) {
            const int32_t named = pages[offset + page - first];
            if (named < 0 || named >= group.pages)
                refuse("batch: sequence " + text(i) + ", " + what + " names page " + text(named) +
                       " of a pool with " + text(group.pages));
        }
        used = std::max(used, offset + last - first + 1);
    }
    return static_cast<int32_t>(used);
}

int64_t copy_batch(std::span<const int32_t> batch, int32_t* target, int32_t pages) {
    const int32_t* data = batch.data();
    int64_t bytes = 0;
    const auto copy = [&](int64_t at, int64_t count) {
        std::memcpy(target + at, data + at, static_cast<size_t>(count) * sizeof(int32_t));
        bytes += count * static_cast<int64_t>(sizeof(int32_t));
    };
    copy(0, kHeader);
    copy(data[kRowsAt], int64_t{data[kRows]} * kRowStride);
    copy(data[kSequencesAt], int64_t{data[kSequences]} * data[kSequenceStride]);
    copy(data[kSamplesAt], int64_t{data[kSamples]} * kSampleStride);
    copy(data[kPagesAt], pages);
    return bytes;
}

AskedTotals check_asks(std::span<const int32_t> batch, std::span<const Ask> asks,
                       std::span<const Adjustment> adjustments, int32_t masks, int32_t vocab, int32_t slots) {
    const int32_t samples = batch[kSamples];
    if (samples < 0 || static_cast<size_t>(samples) > asks.size())
        refuse("asks: " + text(samples) + " samples, and room for " +
               text(static_cast<int64_t>(asks.size())));
    const int32_t most = std::min(kMaxCandidates, vocab);
    const auto room = static_cast<int64_t>(adjustments.size());
    AskedTotals found;
    for (int32_t i = 0; i < samples; ++i) {
        const Ask& ask = asks[static_cast<size_t>(i)];
        if (ask.k == 0) {
            ++found.whole;
            continue;
        }
        if (ask.k < 0 || ask.k > most) refuse("asks: a row asks for more than " + text(most) + " candidates");
        if ((ask.flags & Ask::kByScore) != 0 && ask.k != kDrawnCandidates)
            refuse("asks: a row that is drawn from as a whole asks for " + text(ask.k) +
                   " candidates instead of " + text(kDrawnCandidates));
        if ((ask.flags & Ask::kTakesSlot) != 0) {
            const int32_t named = sample(batch.data(), i)[1];
            if (named < 0 || named >= slots)
                refuse("asks: a token is to go to a slot outside the " + text(slots) + " that there are");
            found.slots = true;
        }
        if (ask.mask < -1 || ask.mask >= masks)
            refuse("asks: a row names a mask outside the " + text(masks) + " that there are");
        if (ask.first < 0 || ask.adjustments < 0 || ask.first > room - ask.adjustments)
            refuse("asks: a row names adjustments outside the " + text(room) + " that there are");
        ++found.asked;
        found.most = std::max(found.most, ask.k);
        found.masks = std::max(found.masks, ask.mask + 1);
        found.adjustments = std::max(found.adjustments, ask.first + ask.adjustments);
    }
    for (int32_t i = 0; i < found.adjustments; ++i) {
        const int32_t token = adjustments[static_cast<size_t>(i)].token;
        if (token < 0 || token >= vocab)
            refuse("asks: an adjustment names a token outside the vocabulary of " + text(vocab));
    }
    return found;
}

}  // namespace tandem
