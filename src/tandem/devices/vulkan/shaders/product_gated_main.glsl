// activation(gate x) * up x, of a few rows, for the product that follows: W has the rows of gate, then those of up. A
// workgroup makes 32 outputs, a block of the next product's rows, of every row at once.
#define FLOATS_BINDING 3
#define BYTES_BINDING 3
#include "quantize.glsl"
#include "activation.glsl"

layout(push_constant) uniform Push {
    uint blocks;     // of a row of W
    uint width;      // outputs: whole blocks
    uint row_words;  // words of a row of W
    uint x_stride;   // of a row of x: vec4, or words of 8-bit rows
    uint forms;      // of the rows that are made: one
    uint gelu;       // 1: GELU in its tanh form; 0: SiLU
};

const uint BLOCK = 32, PASS = GROUP * OUTPUTS;

// Of each row gate's outputs, then those of up.
shared float made[ROWS * 2 * BLOCK];

void main() {
    uint lane = gl_LocalInvocationID.x, count = batch_rows(), block = gl_WorkGroupID.x;
    [[dont_unroll]] for (uint pass = 0; pass < 2 * BLOCK; pass += PASS) {
        uvec2 matrix_rows[OUTPUTS];
        [[unroll]] for (uint o = 0; o < OUTPUTS; ++o) {
            uint index = pass + o * GROUP + output_of_lane();
            matrix_rows[o] = row_place(index / BLOCK * width + block * BLOCK + index % BLOCK, row_words);
        }
        float sums[OUTPUTS][ROWS];
        add_blocks(matrix_rows, blocks, 0, count, x_stride, sums);
        [[unroll]] for (uint at = 0; at < SUMS; at += AT_ONCE) {
            hand_around(sums, at);
            for (uint item = lane; item < min(AT_ONCE, SUMS - at) * GROUP; item += LANES) {
                uint sum = at + item / GROUP, index = pass + sum / ROWS * GROUP + item % GROUP;
                made[sum % ROWS * 2 * BLOCK + index] = sum_of(item / GROUP, item % GROUP);
            }
            barrier();
        }
    }
    // LANES is at least the quads of ROWS blocks.
    uint row = lane / (BLOCK / 4), quad = lane % (BLOCK / 4);
    bool inside = row < min(count, ROWS);
    vec4 gate = vec4(0), up = vec4(0);
    if (inside) {
        [[unroll]] for (uint e = 0; e < 4; ++e) {
            gate[e] = made[row * 2 * BLOCK + 4 * quad + e];
            up[e] = made[row * 2 * BLOCK + BLOCK + 4 * quad + e];
        }
    }
    vec4 values = activate(gate, up, gelu != 0);
    store_quads(forms, row, inside ? block * (BLOCK / 4) + quad : 0xffffffffu, width / BLOCK, vec4[1](values));
}
