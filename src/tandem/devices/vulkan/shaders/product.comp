// y = W x in float32, for any W.
#version 460
#extension GL_EXT_control_flow_attributes : require
#extension GL_GOOGLE_include_directive : require
#include "step.glsl"
#include "weights.glsl"
#include "math.glsl"
#include "split_sum.glsl"

layout(set = 0, binding = 2) readonly buffer X { vec4 x[]; };

void main() {
    uint lane = gl_LocalInvocationID.x;
    uint count = sampled != 0 ? batch_samples() : batch_rows();
    uvec2 tile = tile_of_workgroup(ROWS) * uvec2(1, GROUP * OUTPUTS);
    uint first = tile.x, index = tile.y + lane % GROUP;
    if (first >= count) return;

    precise vec4 sums[OUTPUTS][ROWS];
    [[unroll]] for (uint o = 0; o < OUTPUTS; ++o)
        [[unroll]] for (uint r = 0; r < ROWS; ++r) sums[o][r] = vec4(0);
    for (uint block = lane / GROUP; block < blocks; block += SHARE) {
        [[unroll]] for (uint o = 0; o < OUTPUTS; ++o) {
            vec4 w[8];
            unpack_block(row_place(min(index + o * GROUP, outputs - 1), row_words), block, blocks, w);
            [[unroll]] for (uint r = 0; r < ROWS; ++r) {
                uint at = min(first + r, count - 1) * x_stride + block * 8;
                [[unroll]] for (uint i = 0; i < 8; ++i) sums[o][r] = fma(w[i], x[at + i], sums[o][r]);
            }
        }
    }
    [[unroll]] for (uint o = 0; o < OUTPUTS; ++o) {
        float folded[ROWS];
        [[unroll]] for (uint r = 0; r < ROWS; ++r) {
            precise float sum = (sums[o][r].x + sums[o][r].y) + (sums[o][r].z + sums[o][r].w);
            folded[r] = sum;
        }
        add_up_and_store(folded, first, count, index + o * GROUP);
    }
}
