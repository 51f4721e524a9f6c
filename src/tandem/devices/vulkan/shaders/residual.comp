// hidden[row] += post_norm(sum of the parts + bias); the parts are one product, or the partials of slices, in order.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "step.glsl"
#include "reduce.glsl"

layout(set = 0, binding = 1) readonly buffer Parts { float parts[]; };
layout(set = 0, binding = 2) readonly buffer Vectors { float vectors[]; };
layout(set = 0, binding = 3) buffer Hidden { float hidden[]; };

const uint NONE = 0xffffffffu;

layout(push_constant) uniform Push {
    uint width;
    uint count;        // of parts
    uint part_stride;
    uint bias_at;      // or NONE
    uint norm_at;      // or NONE
    float eps;
};

float total(uint row, uint i) {
    float sum = parts[row * width + i];
    for (uint part = 1; part < count; ++part) sum += parts[part * part_stride + row * width + i];
    return bias_at == NONE ? sum : sum + vectors[bias_at + i];
}

void main() {
    uint row = gl_WorkGroupID.y, lane = gl_LocalInvocationID.x;
    if (row >= batch_rows()) return;
    float root = 1;
    if (norm_at != NONE) {
        precise float squares = 0;
        for (uint i = lane; i < width; i += LANES) {
            float value = total(row, i);
            squares += value * value;
        }
        root = sqrt(workgroup_sum(squares) / float(width) + eps);
    }
    for (uint i = lane; i < width; i += LANES) {
        float value = total(row, i);
        if (norm_at != NONE) value = value / root * vectors[norm_at + i];
        hidden[row * width + i] += value;
    }
}
