// The batch structure of tandem.devices.batch, read in place; that module documents the layout.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tandem {

inline constexpr int kBatchVersion = 1;

class BatchView {
 public:
    // Throws std::invalid_argument where the header contradicts itself or `size` (int32 elements).
    BatchView(const int32_t* data, size_t size);

    struct Row {
        int32_t sequence, position, token, reserved;
    };
    struct Sample {
        int32_t row, slot, reserved0, reserved1;
    };
    struct Sequence {
        int32_t first_row, rows, length, slot;
    };

    int rows() const { return data_[1]; }
    int sequences() const { return data_[2]; }
    int samples() const { return data_[3]; }
    int groups() const { return data_[11]; }
    const Row& row(int i) const { return reinterpret_cast<const Row*>(data_ + data_[4])[i]; }
    const Sample& sample(int i) const { return reinterpret_cast<const Sample*>(data_ + data_[8])[i]; }
    const Sequence& sequence(int i) const { return *reinterpret_cast<const Sequence*>(sequence_data(i)); }
    // The sequence's page table in a KV group, and the logical page of its first entry.
    const int32_t* pages(int sequence, int group) const {
        return data_ + data_[10] + sequence_data(sequence)[4 + 2 * group];
    }
    int first_page(int sequence, int group) const { return sequence_data(sequence)[5 + 2 * group]; }

 private:
    const int32_t* sequence_data(int i) const { return data_ + data_[6] + int64_t{i} * data_[7]; }
    const int32_t* data_;
};

}  // namespace tandem
