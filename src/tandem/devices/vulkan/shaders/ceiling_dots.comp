// Dots of four signed bytes without pause, in chains that do not wait for each other: the ceiling of integer products.
#version 460
#extension GL_EXT_spirv_intrinsics : require

layout(constant_id = 0) const uint LANES = 64;
layout(local_size_x_id = 0) in;
const uint CHAINS = 16;

layout(set = 0, binding = 1) buffer Sink { int sink[]; };

layout(push_constant) uniform Push {
    uint turns;
};

// OpSDot of four packed signed bytes (SPV_KHR_integer_dot_product).
spirv_instruction(extensions = ["SPV_KHR_integer_dot_product"], capabilities = [6018, 6019], id = 4450)
int packed_dot(uint a, uint b, spirv_literal int format);

void main() {
    uint seed = gl_GlobalInvocationID.x * 0x9e3779b9u + uint(sink[0]);
    int sums[CHAINS];
    for (uint c = 0; c < CHAINS; ++c) sums[c] = int(seed + c);
    for (uint turn = 0; turn < turns; ++turn)
        for (uint c = 0; c < CHAINS; ++c) sums[c] += packed_dot(uint(sums[c]), seed + c, 0);
    int total = 0;
    for (uint c = 0; c < CHAINS; ++c) total ^= sums[c];
    if (total == 0x5eadbeef) sink[1] = total;
}
