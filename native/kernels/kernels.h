// The table of kernels that every instruction set fills; `program.cpp` and the tests call through it.
//
// Arithmetic: each output element has one definition per weight type, whatever the number of rows and
// whichever table runs it, so all tables give the same bits. docs/architecture.md, "Arithmetic", states the
// definitions.
#pragma once

#include <cstdint>

#include "kernels/logit_row.h"
#include "kernels/packed_matrix.h"

namespace tandem {

enum class Activation : int { kSilu = 0, kGeluTanh = 1 };
enum class KvType : int { kF32 = 0, kF16 = 1, kQ8_0 = 2 };

// Rows of a product's right-hand side. Float weight types read `f32`; quantized ones read blocks of 32 int8
// values q with x ~ scale * q, and `sum`, the integer sum of each block's q.
struct Activations {
    const float* f32;
    int64_t f32_stride;  // elements between rows
    const int8_t* q;     // [rows][columns], quantized_stride(columns) apart
    const float* scale;  // [rows][columns / 32]
    const int32_t* sum;  // [rows][columns / 32]
    int64_t columns;
};

// Bytes between the rows of q. A tile reads the same column of many rows at once: were rows a multiple of 1
// KiB apart, those would share a few sets of the L1 cache and push each other out.
constexpr int64_t quantized_stride(int64_t columns) { return columns % 1024 == 0 ? columns + 64 : columns; }

// A query's keys are taken in segments of this many positions, starting at multiples of it, that threads may
// share: a quantity of its own position and window alone, so that its result is. At most kMostSegments.
inline constexpr int kMostSegments = 17;
inline int attention_segment(int position, int window) {
    const int seen = window > 0 && window <= position ? window : position + 1;
    int size = 256;
    while (size * (kMostSegments - 1) < seen) size *= 2;
    return size;
}

// Keys and values of one layer and KV head inside a pool: a page holds K as [head_dim][page_size] (positions
// are lanes) and V as [page_size][head_dim].
struct AttentionTask {
    const float* q;  // [rows][heads][head_dim] of this sequence, roped; q_stride elements between rows
    float* out;      // [rows][heads][head_dim]; out_stride between rows
    int64_t q_stride, out_stride;
    int rows;  // query rows, consecutive positions from `position` on
    int position;
    int heads_per_kv;  // query heads that share this KV head, adjacent in q and out
    int head_dim;
    int window;  // keys of (p - window, p]; 0 means all
    float scale;
    float softcap;        // 0 means none
    const uint8_t* keys;  // this layer's and head's K of physical page 0
    const uint8_t* values;
    int64_t page_stride;   // bytes between physical pages
    const int32_t* pages;  // physical ids; pages[p - first_page] holds logical page p
    int first_page;
    KvType type;
    float* scratch;  // attention_scratch(...) floats
    // Negative: all that the rows see. Otherwise only this segment, left unfinished in `states`, one of
    // attention_state(head_dim) floats for each query, for fold_attention; the rows' segments must be equally
    // long.
    int segment;
    float* states;
    const AttentionTask* next;  // what the thread does afterwards, whose first pages are fetched; may be null
};

// Loops that do nothing but multiply or read: what the kernels are held against (kernels/ceilings.h).
struct Probes {
    int64_t int8_macs, bf16_macs, f32_macs;  // multiply-adds of one iteration; bf16: 0 where there is no dot
    // Results depend on all that was computed; they mean nothing.
    int64_t (*int8)(int64_t iterations);
    int64_t (*bf16)(int64_t iterations);
    int64_t (*f32)(int64_t iterations);
    int64_t (*read)(const uint8_t* data, int64_t bytes);  // bytes: a multiple of 512
};

struct Kernels {
    const char* name;
    // Fills groups [group_begin, group_end) from the GGUF bytes of their rows. Calls for different groups may
    // run in parallel.
    void (*repack)(const PackedMatrix& w, const uint8_t* source, int64_t group_begin, int64_t group_end);
    void (*quantize_row)(const float* x, int64_t n, int8_t* q, float* scale, int32_t* sum);
    // out[r * out_stride + 16 * g + i] for r in [0, rows), g in [group_begin, group_end), i in [0, 16), cut
    // at w.rows.
    void (*matmul)(const PackedMatrix& w, int64_t group_begin, int64_t group_end, const Activations& x,
                   int rows, float* out, int64_t out_stride);
    // y = x / sqrt(mean(x^2) + eps) * weight (the norm's offset is already in `weight`); y may be x.
    void (*rms_norm)(const float* x, const float* weight, float eps, int64_t n, float* y);
    // gate[i] = activation(gate[i]) * up[i]
    void (*gate_up)(Activation kind, float* gate, const float* up, int64_t n);
    void (*add)(float* y, const float* x, int64_t n);
    void (*scale)(float* y, float factor, int64_t n);
    // x[i] = cap * tanh(x[i] / cap)
    void (*softcap)(float* x, float cap, int64_t n);
    // Rotates one head in place; cos and sin hold dims/2 values each.
    void (*rope)(float* head, const float* cos, const float* sin, int dims, bool interleaved);
    void (*store_kv)(KvType type, const float* k, const float* v, int head_dim, int slot, uint8_t* k_page,
                     uint8_t* v_page);
    void (*attention)(const AttentionTask& task);
    // Folds one query's states of consecutive segments, `stride` floats apart; overwrites them.
    void (*fold_attention)(float* states, int segments, int64_t stride, int head_dim, float* out);
    // Weights of a float type, widened; and a row of float32 weights in GGUF's layout, with an importance for
    // each column or null.
    void (*read_floats)(WeightType type, const uint8_t* source, int64_t n, float* out);
    void (*write_weights)(WeightType type, const float* x, int64_t columns, const float* importance,
                          uint8_t* out);
    Probes probes;
    SamplerKernels sampler;
};

inline constexpr int kPageSize = 16;

// Floats of one query's state, and of the scratch that Kernels::attention needs for a task of `queries` rows
// times heads.
int64_t attention_state(int head_dim);
int64_t attention_scratch(int queries, int head_dim);

const Kernels& scalar_kernels();
const Kernels& avx2_kernels();
const Kernels& avxvnni_kernels();
const Kernels& vnni256_kernels();
const Kernels& avx512_kernels();

// The fastest table this CPU runs, or the one that TANDEM_CPU_ISA names; throws std::invalid_argument for a
// name that is unknown or that the CPU lacks. An empty name means: choose.
const Kernels& choose_kernels(const char* name);

}  // namespace tandem
