// A row of the residual stream += W x, and its norm for the product that follows: the last workgroup to end does what
// norm.comp would. For steps of one row.
#define FLOATS_BINDING 4
#define BYTES_BINDING 4
#include "reduce.glsl"

layout(constant_id = 5) const uint EACH = 1;
layout(constant_id = 6) const bool WHOLE = true;
const uint COUNT = 1;
const bool WIDE = false, ASKS_EARLY = false;
#include "quantize.glsl"

layout(set = 0, binding = 3) coherent buffer Parts { float parts[]; };
layout(set = 0, binding = 3) coherent buffer Parts4 { vec4 parts4[]; };
layout(set = 0, binding = 3) coherent buffer Tickets { uint tickets[]; };
layout(set = 0, binding = 5) buffer Hidden { float hidden[]; };
layout(set = 0, binding = 5) buffer Hidden4 { vec4 hidden4[]; };
layout(set = 0, binding = 6) readonly buffer Vectors { float vectors[]; };
layout(set = 0, binding = 6) readonly buffer Vectors4 { vec4 vectors4[]; };
layout(set = 0, binding = 7) readonly buffer Weight { float weight[]; };
layout(set = 0, binding = 7) readonly buffer Weight4 { vec4 weight4[]; };

#include "ticket.glsl"
const uint PARTS = TICKETS;

#include "norm_push.glsl"
layout(push_constant) uniform Push {
    uint blocks;     // of a row of W
    uint row_words;  // words of a row of W
    Norm norm;       // of as many elements as W has rows
};
#include "norm.glsl"

void main() {
    uint index = gl_WorkGroupID.x * GROUP * OUTPUTS + output_of_lane();
    uvec2 matrix_rows[OUTPUTS];
    [[unroll]] for (uint o = 0; o < OUTPUTS; ++o)
        matrix_rows[o] = row_place(min(index + o * GROUP, norm.width - 1), row_words);
    float sums[OUTPUTS][ROWS];
    add_blocks(matrix_rows, blocks, 0, 1, 0, sums);
    // One row and few outputs: all sums at once.
    hand_around(sums, 0);
    for (uint item = gl_LocalInvocationID.x; item < SUMS * GROUP; item += LANES) {
        uint made = gl_WorkGroupID.x * GROUP * OUTPUTS + item;
        if (made < norm.width) parts[PARTS + made] = sum_of(item / GROUP, item % GROUP);
    }
    if (last_to_come(0, gl_NumWorkGroups.x)) norm_row(0, 0);
}
