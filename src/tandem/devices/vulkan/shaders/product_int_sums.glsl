// Lanes' parts of the sums of quantized W and 8-bit x (quantize.glsl): exact integer dots, scaled in float32.
#include "bytes.glsl"

layout(set = 0, binding = 2) readonly buffer Words8 { uint q8[]; };
layout(set = 0, binding = 2) readonly buffer Quads8 { uvec4 quads8[]; };

// matrix_rows: where the rows of W lie. Rows `first` and on of x, of `count`.
void add_blocks(
    uvec2 matrix_rows[OUTPUTS], uint blocks, uint first, uint count, uint x_stride, out float sums[OUTPUTS][ROWS]
) {
    [[unroll]] for (uint o = 0; o < OUTPUTS; ++o)
        [[unroll]] for (uint r = 0; r < ROWS; ++r) sums[o][r] = 0;
    for (uint block = share_of_lane(); block < blocks; block += SHARE) {
        uvec4 low[OUTPUTS], high[OUTPUTS];
        vec4 factors[OUTPUTS];
        [[unroll]] for (uint o = 0; o < OUTPUTS; ++o) {
            unpack_bytes(matrix_rows[o], block, blocks, low[o], high[o]);
            factors[o] = block_factors(matrix_rows[o], block, blocks);
        }
        [[unroll]] for (uint r = 0; r < ROWS; ++r) {
            uint row = min(first + r, count - 1) * x_stride, at = row + blocks * 8 + block * 2;
            uvec4 x_low = quads8[row / 4 + block * 2], x_high = quads8[row / 4 + block * 2 + 1];
            float scale = uintBitsToFloat(q8[at]);
            ivec2 totals = halves(q8[at + 1]);
            [[unroll]] for (uint o = 0; o < OUTPUTS; ++o) {
                float value = block_value(low[o], high[o], x_low, x_high, factors[o], totals);
                sums[o][r] = fma(scale, value, sums[o][r]);
            }
        }
    }
}
