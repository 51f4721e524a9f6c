// out[i] = rms_norm(hidden[row]) * weight; row is i, or the row of sample i.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "step.glsl"
#include "reduce.glsl"

layout(set = 0, binding = 1) readonly buffer Hidden { float hidden[]; };
layout(set = 0, binding = 2) readonly buffer Weight { float weight[]; };
layout(set = 0, binding = 3) writeonly buffer Normed { float normed[]; };

layout(push_constant) uniform Push {
    uint width;
    uint out_stride;
    uint weight_at;
    uint sampled;
    float eps;
};

void main() {
    uint index = gl_WorkGroupID.y, lane = gl_LocalInvocationID.x;
    if (index >= (sampled != 0 ? batch_samples() : batch_rows())) return;
    uint row = sampled != 0 ? sample_row(index) : index;
    precise float squares = 0;
    for (uint i = lane; i < width; i += LANES) {
        float value = hidden[row * width + i];
        squares += value * value;
    }
    float root = sqrt(workgroup_sum(squares) / float(width) + eps);
    for (uint i = lane; i < width; i += LANES)
        normed[index * out_stride + i] = hidden[row * width + i] / root * weight[weight_at + i];
}
