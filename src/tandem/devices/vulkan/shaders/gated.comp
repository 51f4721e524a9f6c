// activation(gate) * up, for the product that follows.
#version 460
#extension GL_EXT_control_flow_attributes : require
#extension GL_GOOGLE_include_directive : require
#include "step.glsl"
#include "reduce.glsl"
#include "math.glsl"
#include "activation.glsl"
#include "quantize.glsl"

layout(constant_id = 1) const uint SPLITS = 1;  // results of the product, to be added

layout(set = 0, binding = 1) readonly buffer GateUp { float gate_up[]; };

layout(push_constant) uniform Push {
    uint width;
    uint outputs;
    uint gelu;  // 1: GELU in its tanh form; 0: SiLU
    uint split_stride;  // from one of the product's results to the next
};

// The elements of a quad, zero beyond the width.
vec4 load(uint at, uint quad) {
    vec4 values = vec4(0);
    [[unroll]] for (uint i = 0; i < 4; ++i)
        if (4 * quad + i < width) values[i] = gate_up[at + i];
    return values;
}

void main() {
    uint row = gl_WorkGroupID.y, lane = gl_LocalInvocationID.x, quad = gl_WorkGroupID.x * LANES + lane;
    uint blocks = (width + 31) / 32;
    uint first = row * 2 * width + 4 * quad;
    vec4 gate = load(first, quad), up = load(first + width, quad);
    [[unroll]] for (uint split = 1; split < SPLITS; ++split) {
        gate += load(split * split_stride + first, quad);
        up += load(split * split_stride + first + width, quad);
    }
    vec4 values = activate(gate, up, gelu != 0);
    float scale = store_quads(outputs, row, quad, blocks, vec4[1](values));
    if ((outputs & AS_BYTES) == 0) return;
    // LANES quads are the 32 blocks that share a bound.
    float bound = workgroup_max(scale);
    if (lane == 0) store_bound(row, blocks, gl_WorkGroupID.x, bound);
}
