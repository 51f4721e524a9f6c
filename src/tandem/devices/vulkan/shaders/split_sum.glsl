// How products of few rows share the sum of an output among SHARE lanes: each adds every SHAREth block, then what they
// have is added up as split_order.glsl says. That order is the same for every number of rows and outputs that a lane
// takes at once, and product_matrix_int8.comp can keep it with few sums more.
layout(constant_id = 2) const uint ROWS = 1;     // of x
layout(constant_id = 3) const uint OUTPUTS = 1;  // of a lane
layout(constant_id = 4) const uint SHARE = 16;   // a property of the matrix
#include "split_order.glsl"
const uint GROUP = LANES / SHARE;

// Which of an output's SHARE lanes this is, and which of GROUP outputs that is: lanes beside each other work for outputs
// beside each other, whose weights lie so.
uint share_of_lane() { return gl_LocalInvocationID.x / GROUP; }
uint output_of_lane() { return gl_LocalInvocationID.x % GROUP; }

// A lane's sums, and how many of them shared memory is for at once.
const uint SUMS = OUTPUTS * ROWS, AT_ONCE = SUMS < 2048 / LANES ? SUMS : 2048 / LANES;

shared float lane_sums[LANES * AT_ONCE];

// `count` of the lanes' parts of a sum, one after another.
#define ADD_PARTS(sum, count, first, stride)                                              \
    float parts[count];                                                                   \
    [[unroll]] for (uint e = 0; e < (count); ++e) parts[e] = lane_sums[(first) + e * (stride)]; \
    precise float sum = parts[0];                                                         \
    [[unroll]] for (uint e = 1; e < (count); ++e) sum += parts[e]

// Begins to add up AT_ONCE of the lanes' sums, `first` and on. Then, and until all lanes have met again, `sum_of` has what
// an output's lanes made together.
void add_up(float sums[OUTPUTS][ROWS], uint first) {
    uint lane = gl_LocalInvocationID.x;
    [[unroll]] for (uint i = 0; i < AT_ONCE; ++i)
        if (first + i < SUMS) lane_sums[i * LANES + lane] = sums[(first + i) / ROWS][(first + i) % ROWS];
    barrier();
    if (TEAMS == 1) return;
    for (uint item = lane; item < AT_ONCE * GROUP * TEAMS; item += LANES) {
        uint at = item / (GROUP * TEAMS) * LANES + item % (GROUP * TEAMS);
        ADD_PARTS(sum, SHARE / TEAMS, at, GROUP * TEAMS);
        lane_sums[at] = sum;
    }
    barrier();
}

// The i-th of those sums, of one of GROUP outputs.
float sum_of(uint i, uint group_output) {
    ADD_PARTS(sum, TEAMS == 1 ? SHARE : TEAMS, i * LANES + group_output, GROUP);
    return sum;
}
