// y = W x for quantized W and 8-bit x (quantize.glsl): exact integer dots, scaled in float32.
#version 460
#extension GL_EXT_control_flow_attributes : require
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_spirv_intrinsics : require
#include "step.glsl"
#include "weights.glsl"
#include "math.glsl"
#include "bytes.glsl"
#include "split_sum.glsl"

layout(set = 0, binding = 2) readonly buffer Words8 { uint q[]; };
layout(set = 0, binding = 2) readonly buffer Quads8 { uvec4 q4[]; };

void main() {
    uint lane = gl_LocalInvocationID.x;
    uint count = sampled != 0 ? batch_samples() : batch_rows();
    uvec2 tile = tile_of_workgroup(ROWS) * uvec2(1, GROUP * OUTPUTS);
    uint first = tile.x, index = tile.y + lane % GROUP;
    if (first >= count) return;

    precise float sums[OUTPUTS][ROWS];
    [[unroll]] for (uint o = 0; o < OUTPUTS; ++o)
        [[unroll]] for (uint r = 0; r < ROWS; ++r) sums[o][r] = 0;
    for (uint block = lane / GROUP; block < blocks; block += SHARE) {
        uvec4 low[OUTPUTS], high[OUTPUTS];
        vec4 factors[OUTPUTS];
        [[unroll]] for (uint o = 0; o < OUTPUTS; ++o) {
            uvec2 row = row_place(min(index + o * GROUP, outputs - 1), row_words);
            unpack_bytes(row, block, blocks, low[o], high[o]);
            factors[o] = block_factors(row, block, blocks);
        }
        [[unroll]] for (uint r = 0; r < ROWS; ++r) {
            uint row = min(first + r, count - 1) * x_stride, at = row + blocks * 8 + block * 2;
            uvec4 x_low = q4[row / 4 + block * 2], x_high = q4[row / 4 + block * 2 + 1];
            float scale = uintBitsToFloat(q[at]);
            ivec2 totals = halves(q[at + 1]);
            [[unroll]] for (uint o = 0; o < OUTPUTS; ++o) {
                float value = block_value(dot_quad(low[o], x_low), dot_quad(high[o], x_high), factors[o], totals);
                sums[o][r] = fma(scale, value, sums[o][r]);
            }
        }
    }
    [[unroll]] for (uint o = 0; o < OUTPUTS; ++o) add_up_and_store(sums[o], first, count, index + o * GROUP);
}
