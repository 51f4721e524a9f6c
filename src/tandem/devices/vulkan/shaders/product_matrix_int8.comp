// y = W x for quantized W and 8-bit x, with cooperative matrices of bytes: the dot of a block of 32 is exact in int32, and
// is scaled and added in float32, block after block. The subgroups of a workgroup make ROWS x OUTPUTS of y, and take PART
// elements of the sum at a time through shared memory, while the next AHEAD parts are on their way. A sum may be cut into
// splits, each with a result of its own. Or it is in the order of product_int.comp, to the bit: sums of every SHAREth block,
// one after another, each added to those before it.
#version 460
#extension GL_EXT_control_flow_attributes : require
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_shader_explicit_arithmetic_types_int8 : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require
#include "step.glsl"
#include "weights.glsl"
#include "math.glsl"
#include "counted.glsl"
#include "product_push.glsl"

// The driver's matrix shape: [M outputs, K] times [K, N rows].
layout(constant_id = 2) const uint M = 16;
layout(constant_id = 3) const uint N = 16;
layout(constant_id = 4) const uint K = 32;
// What a workgroup makes, elements of the sum at a time, and how many of its subgroups share the rows.
layout(constant_id = 5) const uint ROWS = 128;
layout(constant_id = 6) const uint OUTPUTS = 64;
layout(constant_id = 7) const uint PART = 64;
layout(constant_id = 8) const uint SUBGROUPS = 4;
layout(constant_id = 9) const uint ABOVE = 2;
layout(constant_id = 10) const uint AHEAD = 1;
layout(constant_id = 11) const uint SHARE = 0;

layout(set = 0, binding = 2) readonly buffer Words8 { uint q[]; };
layout(set = 0, binding = 2) readonly buffer Quads8 { uvec4 q4[]; };

const uint BESIDE = SUBGROUPS / ABOVE, ROW_TILES = ROWS / ABOVE / N, OUTPUT_TILES = OUTPUTS / BESIDE / M;
// In pairs of words; the padding keeps rows on different banks.
const uint STRIDE = PART / 8 + 2;
// Blocks of a part; how many of weights and of activations a lane brings, and the quads of one on its way.
const uint BLOCKS = PART / 32, W_EACH = (OUTPUTS * BLOCKS + LANES - 1) / LANES, X_EACH = (ROWS * BLOCKS + LANES - 1) / LANES;
const uint W_QUADS = TYPE == Q8_0 ? 2 : 1;
// Quants with a minimum keep it; others are stored above a number that is taken away here.
const bool HAS_MINIMUM = TYPE == Q4_1 || TYPE == Q5_1 || TYPE == Q4_K || TYPE == Q5_K;
const uint MINIMA = HAS_MINIMUM ? 1 : 0;

const bool IN_ORDER = SHARE > 1;

// Which block is the `slot`th to be added: a lane's, then the next lane's.
uint block_of(uint slot) {
    if (!IN_ORDER) return slot;
    // The first lanes have a block more where SHARE does not divide them.
    uint each = blocks / SHARE, more = blocks % SHARE, longer = more * (each + 1);
    bool later = slot >= longer;
    uint from = later ? slot - longer : slot, length = later ? max(each, 1) : each + 1;
    // Exact, and a fraction of what a division of integers takes.
    uint lane = uint((float(from) + 0.5) / float(length));
    return (later ? more : 0) + lane + (from - lane * length) * SHARE;
}

// Results are handed around where the weights were.
const uint WEIGHTS = OUTPUTS * STRIDE, RESULTS = SUBGROUPS * M * N / 2;
shared uvec2 w_tile[WEIGHTS > RESULTS ? WEIGHTS : RESULTS];
shared uvec2 x_tile[ROWS * STRIDE];
// Factors by block, of outputs and of rows; then minima, and what they multiply.
shared float w_factors[(1 + MINIMA) * BLOCKS * OUTPUTS];
shared float x_factors[(1 + MINIMA) * BLOCKS * ROWS];

// A block's quants as signed bytes: of elements 0..15 and 16..31; times a power of two that `signed_scale` takes back.
void signed_bytes_of(uvec4 first, uvec4 second, uvec2 bits, out uvec4 low, out uvec4 high) {
    if (TYPE == Q8_0) {
        low = first;
        high = second;
    } else if (TYPE == Q4_0) {
        low = (first << 4 & 0xf0f0f0f0u) ^ 0x80808080u;
        high = (first & 0xf0f0f0f0u) ^ 0x80808080u;
    } else {
        join_bits(first, bits, low, high);
        if (TYPE == Q5_0) {
            low = low << 3 ^ 0x80808080u;
            high = high << 3 ^ 0x80808080u;
        }
    }
}
const float SIGNED_SCALE = TYPE == Q4_0 ? 0.0625 : TYPE == Q5_0 ? 0.125 : 1.0;

// What is on its way.
uvec4 w_quads[AHEAD * W_EACH * W_QUADS], w_scales[AHEAD * W_EACH];
uvec2 w_high[AHEAD * W_EACH];
uvec4 x_quads[AHEAD * X_EACH * 2];
uvec2 x_scale[AHEAD * X_EACH];

// Half of the lanes begin with weights, half with activations, where there are fewer blocks than lanes.
uint x_item(uint e) { return LANES - 1 - gl_LocalInvocationID.x + e * LANES; }
uint w_item(uint e) { return gl_LocalInvocationID.x + e * LANES; }

// Asks for the part that begins at slot `first`. corner: of what the workgroup makes; count: of rows.
void bring(uint turn, uint first, uint end, uvec2 corner, uint count) {
    [[unroll]] for (uint e = 0; e < W_EACH; ++e) {
        uint item = w_item(e), at = turn * W_EACH + e, block = block_of(min(first + item / OUTPUTS, end - 1));
        uvec2 row = row_place(min(corner.y + item % OUTPUTS, outputs - 1), row_words);
        [[unroll]] for (uint i = 0; i < W_QUADS; ++i) w_quads[at * W_QUADS + i] = row_quad(row, block * W_QUADS + i);
        w_scales[at] = scale_words(row, block, blocks);
        w_high[at] = high_words(row, block, blocks);
    }
    [[unroll]] for (uint e = 0; e < X_EACH; ++e) {
        uint item = x_item(e), at = turn * X_EACH + e, block = block_of(min(first + item % BLOCKS, end - 1));
        uint row = min(corner.x + item / BLOCKS, count - 1) * x_stride;
        [[unroll]] for (uint i = 0; i < 2; ++i) x_quads[at * 2 + i] = q4[row / 4 + block * 2 + i];
        x_scale[at] = uvec2(q[row + blocks * 8 + block * 2], q[row + blocks * 8 + block * 2 + 1]);
    }
}

// Puts what came where all can read it.
void place(uint turn, uint first, uint end) {
    [[unroll]] for (uint e = 0; e < W_EACH; ++e) {
        uint item = w_item(e), from = turn * W_EACH + e, which = item % OUTPUTS, part = item / OUTPUTS, block = block_of(first + part);
        if (item >= OUTPUTS * BLOCKS) break;
        uvec4 low, high;
        signed_bytes_of(w_quads[from * W_QUADS], w_quads[from * W_QUADS + W_QUADS - 1], w_high[from], low, high);
        uint at = which * STRIDE + part * 4;
        w_tile[at] = low.xy;
        w_tile[at + 1] = low.zw;
        w_tile[at + 2] = high.xy;
        w_tile[at + 3] = high.zw;
        vec2 factors = first + part < end ? factors_of(w_scales[from], block).xy : vec2(0);
        uint factor = part * OUTPUTS + which;
        w_factors[factor] = factors.x * SIGNED_SCALE;
        if (HAS_MINIMUM) w_factors[factor + BLOCKS * OUTPUTS] = factors.y;
    }
    [[unroll]] for (uint e = 0; e < X_EACH; ++e) {
        uint item = x_item(e), from = turn * X_EACH + e, row = item / BLOCKS, part = item % BLOCKS;
        if (item >= ROWS * BLOCKS) break;
        uint at = row * STRIDE + part * 4;
        [[unroll]] for (uint i = 0; i < 2; ++i) {
            x_tile[at + 2 * i] = x_quads[from * 2 + i].xy;
            x_tile[at + 2 * i + 1] = x_quads[from * 2 + i].zw;
        }
        uint factor = part * ROWS + row;
        float scale = uintBitsToFloat(x_scale[from].x);
        x_factors[factor] = scale;
        if (HAS_MINIMUM) {
            int total = (int(x_scale[from].y) << 16 >> 16) + (int(x_scale[from].y) >> 16);
            x_factors[factor + BLOCKS * ROWS] = IN_ORDER ? float(total) : scale * float(total);
        }
    }
}

void main() {
    uint count = sampled != 0 ? batch_samples() : batch_rows();
    uvec2 corner = tile_of_workgroup(ROWS);
    uint across = (outputs + OUTPUTS - 1) / OUTPUTS, split = corner.y / across;
    corner.y = corner.y % across * OUTPUTS;
    if (corner.x >= count) return;
    uint parts = (blocks + BLOCKS - 1) / BLOCKS, share = (parts + splits - 1) / splits;
    uint begin = min(split * share * BLOCKS, blocks), end = min(begin + share * BLOCKS, blocks);

    coopmat<float, gl_ScopeSubgroup, M, N, gl_MatrixUseAccumulator> sums[ROW_TILES * OUTPUT_TILES];
    // In order, of the lanes that are done.
    coopmat<float, gl_ScopeSubgroup, M, N, gl_MatrixUseAccumulator> totals[ROW_TILES * OUTPUT_TILES];
    [[unroll]] for (uint i = 0; i < ROW_TILES * OUTPUT_TILES; ++i)
        sums[i] = totals[i] = coopmat<float, gl_ScopeSubgroup, M, N, gl_MatrixUseAccumulator>(0.0);
    uint row_part = gl_SubgroupID / BESIDE * (ROWS / ABOVE), output_part = gl_SubgroupID % BESIDE * (OUTPUTS / BESIDE);

    [[unroll]] for (uint turn = 0; turn < AHEAD; ++turn)
        if (begin + turn * BLOCKS < end) bring(turn, begin + turn * BLOCKS, end, corner, count);
    for (uint first = begin; first < end; first += AHEAD * BLOCKS) {
        [[unroll]] for (uint turn = 0; turn < AHEAD; ++turn) {
            uint now = first + turn * BLOCKS, next = now + AHEAD * BLOCKS;
            if (now >= end) break;
            place(turn, now, end);
            barrier();
            if (next < end) bring(turn, next, end, corner, count);
            [[unroll]] for (uint part = 0; part < BLOCKS; ++part) {
                coopmat<int8_t, gl_ScopeSubgroup, K, N, gl_MatrixUseB> b[ROW_TILES * (32 / K)];
                coopmat<float, gl_ScopeSubgroup, M, N, gl_MatrixUseAccumulator> row_factor[ROW_TILES];
                coopmat<float, gl_ScopeSubgroup, M, N, gl_MatrixUseAccumulator> row_total[ROW_TILES];
                [[unroll]] for (uint r = 0; r < ROW_TILES; ++r) {
                    uint row = row_part + r * N;
                    [[unroll]] for (uint k = 0; k < 32 / K; ++k)
                        coopMatLoad(b[r * (32 / K) + k], x_tile, row * STRIDE + part * 4 + k * K / 8, STRIDE,
                                    gl_CooperativeMatrixLayoutColumnMajor);
                    // The same factors for each output: all rows of the matrix lie on one another.
                    coopMatLoad(row_factor[r], x_factors, part * ROWS + row, 0, gl_CooperativeMatrixLayoutRowMajor);
                    if (HAS_MINIMUM)
                        coopMatLoad(row_total[r], x_factors, (part + BLOCKS) * ROWS + row, 0, gl_CooperativeMatrixLayoutRowMajor);
                }
                [[unroll]] for (uint o = 0; o < OUTPUT_TILES; ++o) {
                    uint which = output_part + o * M;
                    coopmat<int8_t, gl_ScopeSubgroup, M, K, gl_MatrixUseA> a[32 / K];
                    coopmat<float, gl_ScopeSubgroup, M, N, gl_MatrixUseAccumulator> factor;
                    coopmat<float, gl_ScopeSubgroup, M, N, gl_MatrixUseAccumulator> minimum;
                    [[unroll]] for (uint k = 0; k < 32 / K; ++k)
                        coopMatLoad(a[k], w_tile, which * STRIDE + part * 4 + k * K / 8, STRIDE,
                                    gl_CooperativeMatrixLayoutRowMajor);
                    coopMatLoad(factor, w_factors, part * OUTPUTS + which, 0, gl_CooperativeMatrixLayoutColumnMajor);
                    if (HAS_MINIMUM)
                        coopMatLoad(minimum, w_factors, (part + BLOCKS) * OUTPUTS + which, 0, gl_CooperativeMatrixLayoutColumnMajor);
                    [[unroll]] for (uint r = 0; r < ROW_TILES; ++r) {
                        coopmat<int, gl_ScopeSubgroup, M, N, gl_MatrixUseAccumulator> dots =
                            coopmat<int, gl_ScopeSubgroup, M, N, gl_MatrixUseAccumulator>(COUNTER);
                        [[unroll]] for (uint k = 0; k < 32 / K; ++k) dots = coopMatMulAdd(a[k], b[r * (32 / K) + k], dots);
                        uint i = r * OUTPUT_TILES + o;
                        [[unroll]] for (uint e = 0; e < dots.length(); ++e) {
                            if (IN_ORDER) {
                                precise float value = factor[e] * counted(dots[e]);
                                if (HAS_MINIMUM) value = fma(minimum[e], row_total[r][e], value);
                                sums[i][e] = fma(row_factor[r][e], value, sums[i][e]);
                            } else {
                                sums[i][e] = fma(counted(dots[e]), factor[e] * row_factor[r][e], sums[i][e]);
                                if (HAS_MINIMUM) sums[i][e] = fma(minimum[e], row_total[r][e], sums[i][e]);
                            }
                        }
                    }
                }
                if (IN_ORDER && now + part < end && block_of(now + part) + SHARE >= blocks) {
                    [[unroll]] for (uint i = 0; i < ROW_TILES * OUTPUT_TILES; ++i) {
                        totals[i] = totals[i] + sums[i];
                        sums[i] = coopmat<float, gl_ScopeSubgroup, M, N, gl_MatrixUseAccumulator>(0.0);
                    }
                }
            }
            barrier();
        }
    }
    // Each subgroup hands its own tiles around.
    uint scratch = gl_SubgroupID * M * N;
    [[unroll]] for (uint i = 0; i < ROW_TILES * OUTPUT_TILES; ++i) {
        if (IN_ORDER) sums[i] = totals[i];
        subgroupBarrier();
        coopMatStore(sums[i], w_tile, scratch / 2, M / 2, gl_CooperativeMatrixLayoutColumnMajor);
        subgroupBarrier();
        uint row0 = row_part + i / OUTPUT_TILES * N, output0 = output_part + i % OUTPUT_TILES * M;
        for (uint e = gl_SubgroupInvocationID; e < M * N; e += gl_SubgroupSize) {
            uint row = row0 + e / M, index = corner.y + output0 + e % M;
            float value = uintBitsToFloat(w_tile[(scratch + e) / 2][e % 2]);
            if (corner.x + row >= count || index >= outputs) continue;
            if (softcap != 0.0) value = softcap * tanh_exact(value / softcap);
            y[split * y_split + (corner.x + row) * y_stride + y_first + index] = value;
        }
    }
}
