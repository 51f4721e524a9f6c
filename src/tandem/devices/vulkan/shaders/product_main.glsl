// y = W x, of a few rows; lanes add up as split_sum.glsl says.
#include "product_push.glsl"

void main() {
    uint count = sampled != 0 ? batch_samples() : batch_rows();
    uvec2 tile = tile_of_workgroup(ROWS) * uvec2(1, GROUP * OUTPUTS);
    uint first = tile.x, index = tile.y + output_of_lane();
    if (first >= count) return;

    uvec2 matrix_rows[OUTPUTS];
    [[unroll]] for (uint o = 0; o < OUTPUTS; ++o)
        matrix_rows[o] = row_place(min(index + o * GROUP, outputs - 1), row_words);
    float sums[OUTPUTS][ROWS];
    add_blocks(matrix_rows, blocks, first, count, x_stride, sums);
    [[unroll]] for (uint o = 0; o < OUTPUTS; ++o)
        [[unroll]] for (uint at = 0; at < ROWS; at += AT_ONCE) {
            add_up(sums[o], at);
            // Each of these lanes stores some of the rows.
            for (uint r = share_of_lane(); r < min(AT_ONCE, ROWS - at); r += SHARE)
                store(first + at + r, count, index + o * GROUP, sum_of(r));
            barrier();
        }
}
