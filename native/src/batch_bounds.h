// What a batch, and what is asked of its samples, may name: rows, tokens, slots and pages that are there. A
// GPU must never see others. tandem.devices.batch and tandem.devices.candidates document the layouts.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "src/candidates.h"

namespace tandem {

// One KV group of a program: its number, window (0: none), positions of a page, and the pool's pages.
struct GroupBounds {
    int32_t index, window, page_size, pages;
};

class BatchBounds {
 public:
    // Of a program linked for so many rows and samples (0: it has no head). vocab: its embedding's, -1 where
    // it has none. slots: of tokens. device: begins a message about what exceeds what was linked.
    BatchBounds(std::string device, int32_t rows, int32_t samples, int32_t vocab, int32_t slots,
                std::vector<GroupBounds> groups);

    // Throws std::invalid_argument, naming what is wrong. Returns how many entries of `pages` the batch's
    // tables reach to.
    int32_t check(std::span<const int32_t> batch) const;

 private:
    void check_tokens(const int32_t* data) const;
    void check_sequences(const int32_t* data) const;
    int32_t check_pages(const int32_t* data, const GroupBounds& group) const;

    std::string device_;
    int32_t rows_, samples_, vocab_, slots_;
    std::vector<GroupBounds> groups_;
};

// Copies what a batch has into the same places of `target`: header, rows, sequences, samples and the first
// `pages` entries of the page tables. Returns the bytes.
int64_t copy_batch(std::span<const int32_t> batch, int32_t* target, int32_t pages);

// What the asks of a batch's samples come to: rows that ask for candidates, rows that are wanted whole, how
// far adjustments and masks are used, and whether any row's token goes to its slot.
struct AskedTotals {
    int32_t asked = 0, whole = 0, adjustments = 0, masks = 0, most = 0;
    bool slots = false;
};

// Throws std::invalid_argument for asks that name what is not there. masks: how many rows of masks there are.
AskedTotals check_asks(std::span<const int32_t> batch, std::span<const Ask> asks,
                       std::span<const Adjustment> adjustments, int32_t masks, int32_t vocab, int32_t slots);

}  // namespace tandem
