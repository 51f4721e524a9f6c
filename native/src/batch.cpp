#include "src/batch.h"

#include <stdexcept>
#include <string>

namespace tandem {

BatchView::BatchView(const int32_t* data, size_t size) : data_(data) {
    constexpr size_t header = 16;
    if (size < header || data[0] != kBatchVersion) {
        throw std::invalid_argument("batch: expected structure version " + std::to_string(kBatchVersion));
    }
    const int64_t needed = int64_t{data[10]} + data[15];
    if (needed != static_cast<int64_t>(size) || data[1] < 0 || data[1] > data[12] || data[2] < 0 ||
        data[2] > data[13] || data[3] < 0 || data[3] > data[14]) {
        throw std::invalid_argument("batch: counts exceed its capacity");
    }
    for (int i = 0; i < sequences(); ++i) {
        const Sequence& s = sequence(i);
        if (s.first_row < 0 || s.rows < 0 || s.first_row + s.rows > rows() || s.length < s.rows) {
            throw std::invalid_argument("batch: sequence " + std::to_string(i) +
                                        " names rows that are not there");
        }
    }
    for (int i = 0; i < samples(); ++i) {
        if (sample(i).row < 0 || sample(i).row >= rows()) {
            throw std::invalid_argument("batch: sample " + std::to_string(i) +
                                        " names a row that is not there");
        }
    }
}

}  // namespace tandem
