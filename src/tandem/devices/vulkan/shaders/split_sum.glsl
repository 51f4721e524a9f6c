// How products of few rows share the sum of an output among SHARE lanes: each adds every SHAREth block, then they add
// up as a tree. That order is the same for every number of rows and outputs that a lane takes at once.
#include "tree.glsl"

layout(constant_id = 2) const uint ROWS = 1;     // of x
layout(constant_id = 3) const uint OUTPUTS = 1;  // of a lane
layout(constant_id = 4) const uint SHARE = 16;   // a property of the matrix
const uint GROUP = LANES / SHARE;

// Which of an output's SHARE lanes this is, and which of GROUP outputs that is: lanes beside each other work for outputs
// beside each other, whose weights lie so.
uint share_of_lane() { return gl_LocalInvocationID.x / GROUP; }
uint output_of_lane() { return gl_LocalInvocationID.x % GROUP; }

// A lane's sums, and how many of them shared memory is for at once. Of SHARE lanes' parts of a sum, FAN and then LAST are
// added up by one lane, which takes a barrier each instead of one a level.
const uint SUMS = OUTPUTS * ROWS, AT_ONCE = SUMS < 2048 / LANES ? SUMS : 2048 / LANES;
const uint LAST = SHARE < 16 ? 1 : SHARE < 64 ? 4 : 8, FAN = SHARE / LAST;

shared float lane_sums[LANES * AT_ONCE];

// Begins to add up AT_ONCE of the lanes' sums, `first` and on. Then, and until all lanes have met again, `sum_of` has what
// an output's lanes made together.
void add_up(float sums[OUTPUTS][ROWS], uint first) {
    uint lane = gl_LocalInvocationID.x;
    [[unroll]] for (uint i = 0; i < AT_ONCE; ++i)
        if (first + i < SUMS) lane_sums[i * LANES + lane] = sums[(first + i) / ROWS][(first + i) % ROWS];
    barrier();
    if (LAST == 1) return;
    for (uint item = lane; item < AT_ONCE * GROUP * LAST; item += LANES) {
        uint at = item / (GROUP * LAST) * LANES + item % (GROUP * LAST);
        float parts[FAN];
        [[unroll]] for (uint i = 0; i < FAN; ++i) parts[i] = lane_sums[at + i * GROUP * LAST];
        JOIN_AS_TREE(parts, FAN, PLUS);
        lane_sums[at] = parts[0];
    }
    barrier();
}

// The i-th of those sums, of one of GROUP outputs.
float sum_of(uint i, uint group_output) {
    const uint LEFT = LAST == 1 ? SHARE : LAST;
    float parts[LEFT];
    [[unroll]] for (uint e = 0; e < LEFT; ++e) parts[e] = lane_sums[i * LANES + e * GROUP + group_output];
    JOIN_AS_TREE(parts, LEFT, PLUS);
    return parts[0];
}
