// out = activation(gate) * up.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "step.glsl"
#include "math.glsl"

layout(set = 0, binding = 1) readonly buffer GateUp { float gate_up[]; };
layout(set = 0, binding = 2) writeonly buffer Gated { float gated[]; };

layout(push_constant) uniform Push {
    uint width;
    uint out_stride;
    uint gelu;  // 1: GELU in its tanh form; 0: SiLU
};

void main() {
    uint i = gl_GlobalInvocationID.x, row = gl_WorkGroupID.y;
    if (row >= batch_rows() || i >= width) return;
    float gate = gate_up[row * 2 * width + i], up = gate_up[row * 2 * width + width + i];
    float activated;
    if (gelu != 0)
        activated = 0.5 * gate * (1.0 + tanh_exact(0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)));
    else
        activated = gate / (1.0 + exp(min(-gate, 88.0)));
    gated[row * out_stride + i] = activated * up;
}
