// Rows of weights from one stored type to another, on all threads.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/kernels.h"
#include "src/thread_pool.h"

namespace tandem {

class Quantizer {
 public:
    // kTooLarge: a value, or a block's scale, is beyond what the type stores.
    enum class Outcome : int { kDone = 0, kNotFinite = 1, kTooLarge = 2 };

    Quantizer(const Kernels& kernels, int threads) : kernels_(kernels), pool_(threads) {}

    // `rows` rows of `columns` values from `source` into `out`, both in GGUF's layout of their type.
    // importance: a weight for each column, or null. What is in `out` counts only where the outcome is kDone.
    Outcome run(WeightType from, const uint8_t* source, WeightType to, int64_t rows, int64_t columns,
                const float* importance, uint8_t* out);

 private:
    const Kernels& kernels_;
    ThreadPool pool_;
};

}  // namespace tandem
