// y = W x, of a few rows; lanes add up as split_sum.glsl says.
#include "product_push.glsl"

void main() {
    uint count = sampled != 0 ? batch_samples() : batch_rows();
    uvec2 tile = tile_of_workgroup(ROWS) * uvec2(1, GROUP * OUTPUTS);
    uint first = tile.x, index = tile.y + output_of_lane();
    uvec2 matrix_rows[OUTPUTS];
    [[unroll]] for (uint o = 0; o < OUTPUTS; ++o)
        matrix_rows[o] = row_place(min(index + o * GROUP, outputs - 1), row_words);
    float sums[OUTPUTS][ROWS];
    add_blocks(matrix_rows, blocks, first, count, x_stride, sums);
    [[unroll]] for (uint at = 0; at < SUMS; at += AT_ONCE) {
        if (at > 0) barrier();
        hand_around(sums, at);
        for (uint item = gl_LocalInvocationID.x; item < min(AT_ONCE, SUMS - at) * GROUP; item += LANES) {
            uint sum = at + item / GROUP, output_at = tile.y + sum / ROWS * GROUP + item % GROUP;
            store(first + sum % ROWS, count, output_at, sum_of(item / GROUP, item % GROUP));
        }
    }
}
