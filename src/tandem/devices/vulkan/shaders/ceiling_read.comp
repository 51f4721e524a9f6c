// Reads a buffer as fast as the device can: the ceiling of what streams weights. Writes only what no sum is.
#version 460

layout(constant_id = 0) const uint LANES = 64;
layout(local_size_x_id = 0) in;
const uint UNROLL = 8;

layout(set = 0, binding = 0) readonly buffer Source { uvec4 quads[]; };
layout(set = 0, binding = 1) writeonly buffer Sink { uint sink[]; };

layout(push_constant) uniform Push {
    uint count;  // of quads, a multiple of what all lanes read in a turn
};

void main() {
    uint lanes = gl_NumWorkGroups.x * LANES;
    uvec4 sums[UNROLL];
    for (uint u = 0; u < UNROLL; ++u) sums[u] = uvec4(0);
    for (uint at = gl_GlobalInvocationID.x; at < count; at += lanes * UNROLL)
        for (uint u = 0; u < UNROLL; ++u) sums[u] ^= quads[at + u * lanes];
    uvec4 total = sums[0];
    for (uint u = 1; u < UNROLL; ++u) total ^= sums[u];
    if ((total.x ^ total.y ^ total.z ^ total.w) == 0xdeadbeefu) sink[0] = total.x;
}
