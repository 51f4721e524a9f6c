// activation(gate) * up, for the product that follows.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "step.glsl"
#include "reduce.glsl"
#include "math.glsl"
#include "quantize.glsl"

layout(set = 0, binding = 1) readonly buffer GateUp { float gate_up[]; };

layout(push_constant) uniform Push {
    uint width;
    uint outputs;
    uint gelu;  // 1: GELU in its tanh form; 0: SiLU
    uint splits;  // of the products: results to be added
    uint split_stride;
};

void main() {
    uint row = gl_WorkGroupID.y, lane = gl_LocalInvocationID.x, quad = gl_WorkGroupID.x * LANES + lane;
    if (row >= batch_rows()) return;
    uint blocks = (width + 31) / 32;
    vec4 values = vec4(0);
    for (uint i = 0; i < 4 && 4 * quad + i < width; ++i) {
        uint at = row * 2 * width + 4 * quad + i;
        float gate = gate_up[at], up = gate_up[at + width];
        for (uint split = 1; split < splits; ++split) {
            gate += gate_up[split * split_stride + at];
            up += gate_up[split * split_stride + at + width];
        }
        float activated;
        if (gelu != 0)
            activated = 0.5 * gate * (1.0 + tanh_exact(0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)));
        else
            activated = gate / (1.0 + exp(min(-gate, 88.0)));
        values[i] = activated * up;
    }
    float scale = store_quad(outputs, row, quad, blocks, values);
    if ((outputs & AS_BYTES) == 0) return;
    // LANES quads are the 32 blocks that share a bound.
    float bound = workgroup_max(scale);
    if (lane == 0) store_bound(row, blocks, gl_WorkGroupID.x, bound);
}
