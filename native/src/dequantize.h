// Weights as float32, bit for bit what the gguf package's dequantize gives.
#pragma once

#include "kernels/packed_matrix.h"

namespace tandem {

// `columns` values from one row's GGUF bytes.
void dequantize_row(WeightType type, const uint8_t* source, int64_t columns, float* out);

// Row `row` of a packed matrix: the same values. An embedding reads its table so, and a tied matrix is kept
// once.
void packed_row(const PackedMatrix& matrix, int64_t row, float* out);

}  // namespace tandem
