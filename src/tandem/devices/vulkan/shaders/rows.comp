// The rows of logits that are wanted whole, to the memory that the host shares.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "step.glsl"
#include "sampling.glsl"

layout(set = 0, binding = 2) readonly buffer Source { uint source[]; };
layout(set = 0, binding = 3) writeonly buffer Target { uint target[]; };

layout(push_constant) uniform Push { uint vocab; };

void main() {
    uint index = gl_WorkGroupID.y;
    if (index >= batch_samples() || asked_candidates(index) != 0u) return;
    for (uint i = gl_GlobalInvocationID.x; i < vocab; i += gl_NumWorkGroups.x * LANES)
        target[index * vocab + i] = source[index * vocab + i];
}
