// How products of few rows share the sum of an output among SHARE lanes: each adds every SHAREth block, then what they
// have is added up, lane after lane. That order is the same for every number of rows and outputs that a lane takes at
// once, and product_matrix_int8.comp can keep it with one more sum.
layout(constant_id = 2) const uint ROWS = 1;     // of x
layout(constant_id = 3) const uint OUTPUTS = 1;  // of a lane
layout(constant_id = 4) const uint SHARE = 16;   // a property of the matrix
const uint GROUP = LANES / SHARE;

// Which of an output's SHARE lanes this is, and which of GROUP outputs that is: lanes beside each other work for outputs
// beside each other, whose weights lie so.
uint share_of_lane() { return gl_LocalInvocationID.x / GROUP; }
uint output_of_lane() { return gl_LocalInvocationID.x % GROUP; }

// A lane's sums, and how many of them shared memory is for at once.
const uint SUMS = OUTPUTS * ROWS, AT_ONCE = SUMS < 2048 / LANES ? SUMS : 2048 / LANES;

shared float lane_sums[LANES * AT_ONCE];

// Hands AT_ONCE of the lanes' sums around, `first` and on. Then, and until all lanes have met again, `sum_of` adds up what
// an output's lanes made.
void hand_around(float sums[OUTPUTS][ROWS], uint first) {
    [[unroll]] for (uint i = 0; i < AT_ONCE; ++i)
        if (first + i < SUMS) lane_sums[i * LANES + gl_LocalInvocationID.x] = sums[(first + i) / ROWS][(first + i) % ROWS];
    barrier();
}

// Parts that are asked for at once: registers that a product with a norm behind it does not have twice.
const uint ASKED = SHARE < 16 ? SHARE : 16;

float add_parts(float sum, uint first) {
    float parts[ASKED];
    [[unroll]] for (uint e = 0; e < ASKED; ++e) parts[e] = lane_sums[first + e * GROUP];
    precise float total = sum;
    [[unroll]] for (uint e = 0; e < ASKED; ++e) total += parts[e];
    return total;
}

// The i-th of those sums, of one of GROUP outputs.
float sum_of(uint i, uint group_output) {
    uint first = i * LANES + group_output;
    float sum = add_parts(0, first);
    [[dont_unroll]] for (uint e = ASKED; e < SHARE; e += ASKED) sum = add_parts(sum, first + e * GROUP);
    return sum;
}
