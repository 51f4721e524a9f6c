// Rows of int8 activations as the kernels read them, outside a program's workspace.
#pragma once

#include <vector>

#include "kernels/kernels.h"

namespace tandem {

struct QuantizedRows {
    std::vector<int8_t> q;
    std::vector<float> scale;
    std::vector<int32_t> sum;

    QuantizedRows(int64_t rows, int64_t columns)
        : q(static_cast<size_t>(rows * quantized_stride(columns))),
          scale(static_cast<size_t>(rows * (columns / kBlockColumns))),
          sum(scale.size()) {}

    void fill(const Kernels& kernels, int64_t row, const float* x, int64_t columns) {
        const int64_t block = row * (columns / kBlockColumns);
        kernels.quantize_row(x, columns, q.data() + row * quantized_stride(columns), scale.data() + block,
                             sum.data() + block);
    }
};

}  // namespace tandem
