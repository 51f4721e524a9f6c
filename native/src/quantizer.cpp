#include "src/quantizer.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "src/dequantize.h"

namespace tandem {
namespace {

// Values that a thread takes at a time: few meetings, small enough that the threads end together.
constexpr int64_t kGrainValues = 1 << 15;

bool all_finite(const float* x, int64_t n) {
    // Infinities and NaN have all exponent bits set, so no magnitude exceeds theirs.
    uint32_t largest = 0;
    for (int64_t i = 0; i < n; ++i) {
        uint32_t bits;
        std::memcpy(&bits, x + i, sizeof bits);
        largest = std::max(largest, bits & 0x7fffffffu);
    }
    return largest < 0x7f800000u;
}

uint16_t magnitude(const uint8_t* p) {
    uint16_t half;
    std::memcpy(&half, p, sizeof half);
    return half & 0x7fff;
}

// Whether what a row stores as float16 or bfloat16, values or scales, is finite.
bool stored_finite(WeightType type, const uint8_t* row, int64_t columns) {
    if (type == WeightType::kF32) return true;
    const SourceBlock block = source_block(type);
    const int first = type == WeightType::kQ6_K ? 208 : 0;
    const uint16_t infinity = type == WeightType::kBF16 ? 0x7f80 : 0x7c00;
    uint16_t largest = 0;
    for (int64_t c = 0; c < columns; c += block.columns, row += block.bytes) {
        largest = std::max(largest, magnitude(row + first));
        if (has_minimum(type)) largest = std::max(largest, magnitude(row + 2));
    }
    return largest < infinity;
}

}  // namespace

Quantizer::Outcome Quantizer::run(WeightType from, const uint8_t* source, WeightType to, int64_t rows,
                                  int64_t columns, const float* importance, uint8_t* out) {
    const int64_t source_row = source_bytes(from, 1, columns), out_row = source_bytes(to, 1, columns);
    const int64_t grain = std::max<int64_t>(1, kGrainValues / columns);
    std::atomic<int> outcome = 0;
    const std::function<void(Worker&)> section = [&](Worker& worker) {
        std::vector<float> values(static_cast<size_t>(columns));
        float* x = values.data();
        worker.dynamic_for(rows, grain, [&](int64_t begin, int64_t end) {
            for (int64_t r = begin; r < end && outcome.load(std::memory_order_relaxed) == 0; ++r) {
                if (is_quantized(from)) {
                    dequantize_row(from, source + r * source_row, columns, x);
                } else {
                    kernels_.read_floats(from, source + r * source_row, columns, x);
                }
                uint8_t* target = out + r * out_row;
                if (!all_finite(x, columns)) {
                    outcome = static_cast<int>(Outcome::kNotFinite);
                    break;
                }
                kernels_.write_weights(to, x, columns, importance, target);
                if (!stored_finite(to, target, columns)) outcome = static_cast<int>(Outcome::kTooLarge);
            }
        });
    };
    pool_.run(section);
    return static_cast<Outcome>(outcome.load());
}

}  // namespace tandem
