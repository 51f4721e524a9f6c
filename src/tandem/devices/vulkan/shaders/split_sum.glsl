// How product.comp and product_int.comp share the sum of an output among SHARE lanes: each adds every SHAREth block, then
// they add up as a tree. That order is the same for every number of rows and outputs that a lane takes at once.
layout(constant_id = 2) const uint ROWS = 1;     // of x
layout(constant_id = 3) const uint OUTPUTS = 1;  // of a lane
layout(constant_id = 4) const uint SHARE = 16;   // a property of the matrix
// Lanes beside each other work for outputs beside each other, whose weights lie so.
const uint GROUP = LANES / SHARE;

#include "product_push.glsl"

shared float parts[LANES * ROWS];

void add_up_and_store(float sums[ROWS], uint first, uint count, uint index) {
    uint lane = gl_LocalInvocationID.x, part = lane / GROUP;
    [[unroll]] for (uint r = 0; r < ROWS; ++r) parts[r * LANES + lane] = sums[r];
    [[unroll]] for (uint width = SHARE / 2; width > 0; width /= 2) {
        barrier();
        if (part < width)
            [[unroll]] for (uint r = 0; r < ROWS; ++r) parts[r * LANES + lane] += parts[r * LANES + lane + width * GROUP];
    }
    barrier();
    // Each of these lanes stores some of the rows.
    for (uint r = part; r < ROWS; r += SHARE) store(first + r, count, index, parts[r * LANES + lane % GROUP]);
    barrier();
}
