// Which tokens a sequence holds and how often it produced each: what the penalties read.
#pragma once

#include <bit>
#include <cstdint>
#include <vector>

namespace tandem {

class TokenCounts {
 public:
    struct Entry {
        int32_t token;
        int32_t produced;  // 0 for a token of the prompt that was never produced
    };

    // Plans memory for `distinct` different tokens; beyond it, memory grows.
    void reserve(int64_t distinct) {
        entries_.reserve(static_cast<size_t>(distinct));
        rehash(std::bit_ceil(static_cast<size_t>(distinct < 8 ? 16 : 2 * distinct)));
    }

    // The token's entry, made where there is none.
    Entry& entry(int32_t token) {
        if (2 * (entries_.size() + 1) > table_.size()) rehash(table_.empty() ? 16 : 2 * table_.size());
        int32_t& place = find(token);
        if (place < 0) {
            place = static_cast<int32_t>(entries_.size());
            entries_.push_back({token, 0});
        }
        return entries_[static_cast<size_t>(place)];
    }

    const std::vector<Entry>& entries() const { return entries_; }

    // The token's index in `entries`, -1 where it has none.
    int32_t place(int32_t token) const { return table_.empty() ? -1 : table_[slot(token)]; }

 private:
    // Open addressing with linear probing; a place is an index into entries_ or -1.
    int32_t& find(int32_t token) { return table_[slot(token)]; }

    size_t slot(int32_t token) const {
        size_t at = (static_cast<uint32_t>(token) * 0x9e3779b1u) >> shift_;
        while (table_[at] >= 0 && entries_[static_cast<size_t>(table_[at])].token != token) {
            at = (at + 1) & (table_.size() - 1);
        }
        return at;
    }

    void rehash(size_t size) {
        table_.assign(size, -1);
        shift_ = 32 - std::countr_zero(size);
        for (size_t i = 0; i < entries_.size(); ++i) find(entries_[i].token) = static_cast<int32_t>(i);
    }

    std::vector<Entry> entries_;
    std::vector<int32_t> table_;
    int shift_ = 32;
};

}  // namespace tandem
