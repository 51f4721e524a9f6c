// One row of the residual stream: hidden += post_norm(sum of the parts + bias), then rms_norm(hidden) * weight for the
// product that follows. The parts are the results of one product, or the partials of slices, in order; either half may be
// left out. A lane holds its elements in registers from beginning to end.
#version 460
#extension GL_EXT_control_flow_attributes : require
#extension GL_GOOGLE_include_directive : require
#include "step.glsl"
#include "reduce.glsl"
#include "quantize.glsl"

layout(constant_id = 1) const uint EACH = 1;  // quads of a lane
layout(constant_id = 2) const bool WHOLE = true;  // everything begins and ends at whole quads
layout(constant_id = 3) const uint COUNT = 0;  // parts; 0: nothing is added

layout(set = 0, binding = 1) buffer Hidden { float hidden[]; };
layout(set = 0, binding = 1) buffer Hidden4 { vec4 hidden4[]; };
layout(set = 0, binding = 2) readonly buffer Weight { float weight[]; };
layout(set = 0, binding = 2) readonly buffer Weight4 { vec4 weight4[]; };
layout(set = 0, binding = 5) readonly buffer Parts { float parts[]; };
layout(set = 0, binding = 5) readonly buffer Parts4 { vec4 parts4[]; };
layout(set = 0, binding = 6) readonly buffer Vectors { float vectors[]; };
layout(set = 0, binding = 6) readonly buffer Vectors4 { vec4 vectors4[]; };

const uint NONE = 0xffffffffu;

layout(push_constant) uniform Push {
    uint width;
    uint part_stride;
    uint bias_at;       // or NONE
    uint post_norm_at;  // or NONE
    float post_eps;
    uint weight_at;     // or NONE: nothing is normalized
    float eps;
    uint sampled;       // 1: row i is the row of sample i
    uint outputs;
};

// Elements 4 * quad and on of what begins at `at`, zero beyond the width.
#define LOAD(name)                                                                             \
    vec4 load_##name(uint at, uint quad) {                                                     \
        if (WHOLE) return 4 * quad < width ? name##4[at / 4 + quad] : vec4(0);                 \
        vec4 values = vec4(0);                                                                 \
        for (uint i = 0; i < 4 && 4 * quad + i < width; ++i) values[i] = name[at + 4 * quad + i]; \
        return values;                                                                         \
    }
LOAD(hidden)
LOAD(weight)
LOAD(parts)
LOAD(vectors)

float squares_of(vec4 v) {
    precise float squares = (v.x * v.x + v.y * v.y) + (v.z * v.z + v.w * v.w);
    return squares;
}

void main() {
    uint index = gl_WorkGroupID.y, lane = gl_LocalInvocationID.x;
    if (index >= (sampled != 0 ? batch_samples() : batch_rows())) return;
    uint row = sampled != 0 ? sample_row(index) : index;
    uint blocks = (width + 31) / 32, first = row * width;

    vec4 values[EACH];
    [[unroll]] for (uint i = 0; i < EACH; ++i) values[i] = load_hidden(first, i * LANES + lane);
    if (COUNT != 0) {
        vec4 added[EACH];
        [[unroll]] for (uint i = 0; i < EACH; ++i) added[i] = load_parts(first, i * LANES + lane);
        [[unroll]] for (uint part = 1; part < COUNT; ++part)
            [[unroll]] for (uint i = 0; i < EACH; ++i) added[i] += load_parts(part * part_stride + first, i * LANES + lane);
        if (bias_at != NONE)
            [[unroll]] for (uint i = 0; i < EACH; ++i) added[i] += load_vectors(bias_at, i * LANES + lane);
        if (post_norm_at != NONE) {
            vec4 scales[EACH];
            [[unroll]] for (uint i = 0; i < EACH; ++i) scales[i] = load_vectors(post_norm_at, i * LANES + lane);
            precise float squares = 0;
            [[unroll]] for (uint i = 0; i < EACH; ++i) squares += squares_of(added[i]);
            float root = sqrt(workgroup_sum(squares) / float(width) + post_eps);
            [[unroll]] for (uint i = 0; i < EACH; ++i) added[i] = added[i] / root * scales[i];
        }
        [[unroll]] for (uint i = 0; i < EACH; ++i) {
            values[i] += added[i];
            uint quad = i * LANES + lane;
            if (WHOLE) {
                if (4 * quad < width) hidden4[first / 4 + quad] = values[i];
            } else {
                for (uint e = 0; e < 4 && 4 * quad + e < width; ++e) hidden[first + 4 * quad + e] = values[i][e];
            }
        }
    }
    if (weight_at == NONE) return;

    vec4 scales[EACH];
    [[unroll]] for (uint i = 0; i < EACH; ++i) scales[i] = load_weight(weight_at, i * LANES + lane);
    precise float squares = 0;
    [[unroll]] for (uint i = 0; i < EACH; ++i) squares += squares_of(values[i]);
    float root = sqrt(workgroup_sum(squares) / float(width) + eps);
    float bound = 0;
    [[unroll]] for (uint i = 0; i < EACH; ++i)
        bound = max(bound, store_quad(outputs, index, i * LANES + lane, blocks, values[i] / root * scales[i]));
    if ((outputs & AS_BYTES) == 0) return;
    bound = workgroup_max(bound);
    for (uint i = lane; i < (blocks + 31) / 32; i += LANES) store_bound(index, blocks, i, bound);
}
