// product_int.comp for many rows: a workgroup of 16 x 16 lanes makes 64 outputs of 64 rows, whose weights and activations
// it keeps in shared memory two blocks at a time. Each output adds its blocks in order.
#version 460
#extension GL_EXT_control_flow_attributes : require
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_spirv_intrinsics : require
#include "step.glsl"
#include "weights.glsl"
#include "math.glsl"
#include "bytes.glsl"

layout(set = 0, binding = 2) readonly buffer Words8 { uint q[]; };
layout(set = 0, binding = 2) readonly buffer Quads8 { uvec4 q4[]; };

#include "product_push.glsl"

const uint TILE = 64, SIDE = 16, EACH = TILE / SIDE, STEP = 2, ITEMS = TILE * STEP;

// [half of the block][block][row]: neighbours in a row of lanes read neighbouring quads.
shared uvec4 w_bytes[2 * ITEMS];
shared vec4 w_factors[ITEMS];
shared uvec4 x_bytes[2 * ITEMS];
shared uvec2 x_factors[ITEMS];  // scale, sums: as they lie in the rows

void main() {
    uint lane = gl_LocalInvocationID.x;
    uint count = sampled != 0 ? batch_samples() : batch_rows();
    uvec2 corner = tile_of_workgroup(TILE) * uvec2(1, TILE);
    if (corner.x >= count) return;

    // Half of the lanes bring a block of weights each, half one of activations; the next ones while the last are used.
    bool brings_weights = lane < ITEMS;
    uint place = lane % ITEMS, at_row = place % TILE, at_block = place / TILE;
    uvec2 w_row = row_place(min(corner.y + at_row, outputs - 1), row_words);
    uint x_row = min(corner.x + at_row, count - 1) * x_stride;
    uvec4 low = uvec4(0), high = uvec4(0);
    vec4 factors = vec4(0);
    uvec2 x_factor = uvec2(0);
    float sums[EACH][EACH];
    [[unroll]] for (uint o = 0; o < EACH; ++o)
        [[unroll]] for (uint r = 0; r < EACH; ++r) sums[o][r] = 0;
    uint o0 = lane % SIDE, r0 = lane / SIDE;

    for (uint first = 0; first < blocks + STEP; first += STEP) {
        if (first > 0) {
            barrier();
            if (brings_weights) {
                w_bytes[place] = low;
                w_bytes[ITEMS + place] = high;
                w_factors[place] = factors;
            } else {
                x_bytes[place] = low;
                x_bytes[ITEMS + place] = high;
                x_factors[place] = x_factor;
            }
            barrier();
        }
        uint block = first + at_block;
        if (block < blocks) {
            if (brings_weights) {
                unpack_bytes(w_row, block, blocks, low, high);
                factors = block_factors(w_row, block, blocks);
            } else {
                uint at = x_row + blocks * 8 + block * 2;
                low = q4[x_row / 4 + block * 2];
                high = q4[x_row / 4 + block * 2 + 1];
                x_factor = uvec2(q[at], q[at + 1]);
            }
        } else {
            factors = vec4(0);
            x_factor = uvec2(0);
        }
        if (first == 0) continue;
        [[unroll]] for (uint b = 0; b < STEP; ++b) {
            uvec4 x_low[EACH], x_high[EACH];
            float x_scales[EACH];
            ivec2 x_totals[EACH];
            [[unroll]] for (uint r = 0; r < EACH; ++r) {
                uint at = b * TILE + r0 + r * SIDE;
                x_low[r] = x_bytes[at];
                x_high[r] = x_bytes[ITEMS + at];
                x_scales[r] = uintBitsToFloat(x_factors[at].x);
                x_totals[r] = halves(x_factors[at].y);
            }
            [[unroll]] for (uint o = 0; o < EACH; ++o) {
                uint at = b * TILE + o0 + o * SIDE;
                uvec4 w_low = w_bytes[at], w_high = w_bytes[ITEMS + at];
                vec4 w_factor = w_factors[at];
                [[unroll]] for (uint r = 0; r < EACH; ++r) {
                    float value = block_value(w_low, w_high, x_low[r], x_high[r], w_factor, x_totals[r]);
                    sums[o][r] = fma(x_scales[r], value, sums[o][r]);
                }
            }
        }
    }
    [[unroll]] for (uint r = 0; r < EACH; ++r)
        [[unroll]] for (uint o = 0; o < EACH; ++o) store(corner.x + r0 + r * SIDE, count, corner.y + o0 + o * SIDE, sums[o][r]);
}
