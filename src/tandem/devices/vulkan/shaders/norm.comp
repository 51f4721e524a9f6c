// One row of the residual stream: hidden += post_norm(sum of the parts + bias), then rms_norm(hidden) * weight for the
// product that follows. The parts are one product, or the partials of slices, in order; either half may be left out.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "step.glsl"
#include "reduce.glsl"
#include "quantize.glsl"

layout(set = 0, binding = 1) buffer Hidden { float hidden[]; };
layout(set = 0, binding = 2) readonly buffer Weight { float weight[]; };
layout(set = 0, binding = 5) readonly buffer Parts { float parts[]; };
layout(set = 0, binding = 6) readonly buffer Vectors { float vectors[]; };

const uint NONE = 0xffffffffu;

layout(push_constant) uniform Push {
    uint width;
    uint count;         // of parts; 0: nothing is added
    uint part_stride;
    uint bias_at;       // or NONE
    uint post_norm_at;  // or NONE
    float post_eps;
    uint weight_at;     // or NONE: nothing is normalized
    float eps;
    uint sampled;       // 1: row i is the row of sample i
    uint outputs;
};

vec4 total(uint row, uint first) {
    vec4 sum = vec4(0);
    for (uint i = 0; i < 4 && first + i < width; ++i) {
        sum[i] = parts[row * width + first + i];
        for (uint part = 1; part < count; ++part) sum[i] += parts[part * part_stride + row * width + first + i];
        if (bias_at != NONE) sum[i] += vectors[bias_at + first + i];
    }
    return sum;
}

float squares_of(vec4 v) {
    precise float squares = (v.x * v.x + v.y * v.y) + (v.z * v.z + v.w * v.w);
    return squares;
}

void main() {
    uint index = gl_WorkGroupID.y, lane = gl_LocalInvocationID.x;
    if (index >= (sampled != 0 ? batch_samples() : batch_rows())) return;
    uint row = sampled != 0 ? sample_row(index) : index;
    uint blocks = (width + 31) / 32, quads = blocks * 8;

    // A lane reads only what it wrote itself: the same quads each time.
    float root = 1;
    if (count != 0 && post_norm_at != NONE) {
        precise float squares = 0;
        for (uint quad = lane; quad < quads; quad += LANES) squares += squares_of(total(row, 4 * quad));
        root = sqrt(workgroup_sum(squares) / float(width) + post_eps);
    }
    precise float squares = 0;
    for (uint quad = lane; quad < quads; quad += LANES) {
        vec4 added = vec4(0), values = vec4(0);
        if (count != 0) added = total(row, 4 * quad);
        for (uint i = 0; i < 4 && 4 * quad + i < width; ++i) {
            uint column = 4 * quad + i;
            values[i] = hidden[row * width + column];
            if (count != 0) {
                if (post_norm_at != NONE) added[i] = added[i] / root * vectors[post_norm_at + column];
                values[i] += added[i];
                hidden[row * width + column] = values[i];
            }
        }
        squares += squares_of(values);
    }
    if (weight_at == NONE) return;

    root = sqrt(workgroup_sum(squares) / float(width) + eps);
    float bound = 0;
    for (uint first = 0; first < quads; first += LANES) {
        uint quad = first + lane;
        vec4 values = vec4(0);
        for (uint i = 0; i < 4 && 4 * quad + i < width; ++i)
            values[i] = hidden[row * width + 4 * quad + i] / root * weight[weight_at + 4 * quad + i];
        bound = max(bound, store_quad(outputs, index, quad, blocks, values));
    }
    if ((outputs & AS_BYTES) == 0) return;
    bound = workgroup_max(bound);
    for (uint i = lane; i < (blocks + 31) / 32; i += LANES) store_bound(index, blocks, i, bound);
}
