// Lanes' parts of the sums of any W and float32 x.
layout(set = 0, binding = 2) readonly buffer X { vec4 x[]; };

// matrix_rows: where the rows of W lie. Rows `first` and on of x, of `count`.
void add_blocks(
    uvec2 matrix_rows[OUTPUTS], uint blocks, uint first, uint count, uint x_stride, out float sums[OUTPUTS][ROWS]
) {
    precise vec4 quads_of_sums[OUTPUTS][ROWS];
    [[unroll]] for (uint o = 0; o < OUTPUTS; ++o)
        [[unroll]] for (uint r = 0; r < ROWS; ++r) quads_of_sums[o][r] = vec4(0);
    for (uint block = share_of_lane(); block < blocks; block += SHARE) {
        [[unroll]] for (uint o = 0; o < OUTPUTS; ++o) {
            vec4 w[8];
            unpack_block(matrix_rows[o], block, blocks, w);
            [[unroll]] for (uint r = 0; r < ROWS; ++r) {
                uint at = min(first + r, count - 1) * x_stride + block * 8;
                [[unroll]] for (uint i = 0; i < 8; ++i) quads_of_sums[o][r] = fma(w[i], x[at + i], quads_of_sums[o][r]);
            }
        }
    }
    [[unroll]] for (uint o = 0; o < OUTPUTS; ++o)
        [[unroll]] for (uint r = 0; r < ROWS; ++r) {
            vec4 four = quads_of_sums[o][r];
            precise float sum = (four.x + four.y) + (four.z + four.w);
            sums[o][r] = sum;
        }
}
