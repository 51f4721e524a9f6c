// Rows of the residual stream, from or to the memory that the host shares.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "step.glsl"

layout(set = 0, binding = 1) readonly buffer Source { float source[]; };
layout(set = 0, binding = 2) writeonly buffer Target { float target[]; };

layout(push_constant) uniform Push { uint width; };

void main() {
    uint i = gl_GlobalInvocationID.x, row = gl_WorkGroupID.y;
    if (row < batch_rows() && i < width) target[row * width + i] = source[row * width + i];
}
