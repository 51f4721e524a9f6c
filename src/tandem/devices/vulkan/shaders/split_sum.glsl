// How products of few rows share the sum of an output among SHARE lanes: each adds every SHAREth block, then they add
// up as a tree. That order is the same for every number of rows and outputs that a lane takes at once.
layout(constant_id = 2) const uint ROWS = 1;     // of x
layout(constant_id = 3) const uint OUTPUTS = 1;  // of a lane
layout(constant_id = 4) const uint SHARE = 16;   // a property of the matrix
const uint GROUP = LANES / SHARE;

// Which of an output's SHARE lanes this is, and which of GROUP outputs that is: lanes beside each other work for outputs
// beside each other, whose weights lie so.
uint share_of_lane() { return gl_LocalInvocationID.x / GROUP; }
uint output_of_lane() { return gl_LocalInvocationID.x % GROUP; }

// Rows that shared memory is for.
const uint AT_ONCE = ROWS < 1024 / LANES ? ROWS : 1024 / LANES;

shared float lane_sums[LANES * AT_ONCE];

// Adds up rows [first, first + AT_ONCE). Then, and until all lanes have met again, `sum_of` has what an output's lanes
// made together.
void add_up(float sums[ROWS], uint first) {
    uint lane = gl_LocalInvocationID.x, part = share_of_lane();
    [[unroll]] for (uint r = 0; r < AT_ONCE; ++r)
        if (first + r < ROWS) lane_sums[r * LANES + lane] = sums[first + r];
    [[unroll]] for (uint width = SHARE / 2; width > 0; width /= 2) {
        barrier();
        if (part < width)
            [[unroll]] for (uint r = 0; r < AT_ONCE; ++r)
                lane_sums[r * LANES + lane] += lane_sums[r * LANES + lane + width * GROUP];
    }
    barrier();
}

// Of the output that this lane has a share in.
float sum_of(uint r) { return lane_sums[r * LANES + output_of_lane()]; }
