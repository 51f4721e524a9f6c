// product.comp for many rows: a workgroup of 16 x 16 lanes makes 64 outputs of 64 rows, of whose weights and activations it
// keeps a block of 32 in shared memory. Each output adds its products in order.
#version 460
#extension GL_EXT_control_flow_attributes : require
#extension GL_GOOGLE_include_directive : require
#include "step.glsl"
#include "weights.glsl"
#include "math.glsl"
#include "product_push.glsl"

layout(set = 0, binding = 2) readonly buffer X { vec4 x[]; };

const uint TILE = 64, SIDE = 16, EACH = TILE / SIDE, PART = 32, ITEMS = 2 * TILE;

// [column][row]: neighbouring lanes bring neighbouring rows.
shared float w_tile[PART * TILE];
shared float x_tile[PART * TILE];

void main() {
    uint lane = gl_LocalInvocationID.x;
    uint count = sampled != 0 ? batch_samples() : batch_rows();
    uvec2 corner = tile_of_workgroup(TILE) * uvec2(1, TILE);
    if (corner.x >= count) return;

    // Half of the lanes bring half a block of a row of weights each, half one of activations.
    bool brings_weights = lane < ITEMS;
    uint item = lane % ITEMS, at_row = item % TILE, at_part = item / TILE;
    uvec2 w_row = row_place(min(corner.y + at_row, outputs - 1), row_words);
    uint x_row = min(corner.x + at_row, count - 1) * x_stride;
    uint o0 = lane % SIDE * EACH, r0 = lane / SIDE * EACH;
    float sums[EACH][EACH];
    [[unroll]] for (uint o = 0; o < EACH; ++o)
        [[unroll]] for (uint r = 0; r < EACH; ++r) sums[o][r] = 0;

    for (uint block = 0; block < blocks; ++block) {
        vec4 v[4];
        if (brings_weights)
            unpack_half(w_row, block, blocks, at_part, v);
        else
            [[unroll]] for (uint i = 0; i < 4; ++i) v[i] = x[x_row + block * 8 + at_part * 4 + i];
        barrier();
        [[unroll]] for (uint i = 0; i < 16; ++i) {
            uint at = (at_part * 16 + i) * TILE + at_row;
            if (brings_weights)
                w_tile[at] = v[i / 4][i % 4];
            else
                x_tile[at] = v[i / 4][i % 4];
        }
        barrier();
        [[dont_unroll]] for (uint k = 0; k < PART; ++k) {
            float w[EACH], a[EACH];
            [[unroll]] for (uint i = 0; i < EACH; ++i) w[i] = w_tile[k * TILE + o0 + i];
            [[unroll]] for (uint i = 0; i < EACH; ++i) a[i] = x_tile[k * TILE + r0 + i];
            [[unroll]] for (uint o = 0; o < EACH; ++o)
                [[unroll]] for (uint r = 0; r < EACH; ++r) sums[o][r] = fma(w[o], a[r], sums[o][r]);
        }
    }
    [[unroll]] for (uint r = 0; r < EACH; ++r)
        [[unroll]] for (uint o = 0; o < EACH; ++o) store(corner.x + r0 + r, count, corner.y + o0 + o, sums[o][r]);
}
