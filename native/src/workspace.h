// How a program lays out the scratch that it runs in, planned when it is linked.
#pragma once

#include <algorithm>

#include "src/program.h"

namespace tandem {

// The rows that a product reads: float32, and as int8 blocks when any consumer is quantized.
struct Operand {
    float* f32;
    int8_t* q;
    float* scale;
    int32_t* sum;
    int64_t width;  // capacity of a row; rows are packed at the width in use

    Activations view(int64_t columns) const { return {f32, columns, q, scale, sum, columns}; }
};

// Widths that the operations of a program need, collected while blocks are added; also from a plan, before
// anything is loaded.
struct WorkspaceNeed {
    int64_t operand = 0;             // widest product input
    int64_t wide = 0;                // q + k + v, or gate + up
    int64_t output = 0;              // widest product output that is not in `wide`
    int64_t attention_scratch = 0;   // floats per thread
    int64_t attention_partials = 0;  // likewise
    int64_t rope_half = 0;
    int64_t rope_tables = 0;

    void attention(int64_t hidden, int heads, int kv_heads, int head_dim);
    void ffn(int64_t hidden, int64_t columns);
    void combine(int64_t hidden);
    void head(int64_t hidden);
    void ropes(int64_t tables, int64_t half);
    // Bytes for `rows` rows, `operands` of which a product may read at once.
    int64_t bytes(int64_t rows, int64_t operands, int threads) const;
};

struct Workspace {
    WorkspaceNeed need;
    std::vector<Rope> ropes;

    Operand operand;
    float* wide;
    float* output;
    float* attention_scratch;   // [threads][need.attention_scratch]
    float* attention_partials;  // [threads][need.attention_partials], shared by all
    float* cosines;             // [tables][rows][rope_half]
    float* sines;

    // Bytes as WorkspaceNeed has them; lays the pointers out when `base` is given.
    int64_t lay_out(int64_t rows, int64_t operands, int threads, uint8_t* base);
};

struct Step {
    const Kernels& kernels;
    const BatchView& batch;
    const StepBuffers& buffers;
    const Workspace& workspace;
    int rows_capacity;

    float* hidden(int64_t row) const { return buffers.hidden + row * buffers.width; }
    const float* cosines(int table, int64_t row) const {
        return workspace.cosines + (int64_t{table} * rows_capacity + row) * workspace.need.rope_half;
    }
    const float* sines(int table, int64_t row) const {
        return workspace.sines + (int64_t{table} * rows_capacity + row) * workspace.need.rope_half;
    }
};

}  // namespace tandem
