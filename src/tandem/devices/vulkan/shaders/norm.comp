// Rows of the residual stream: what the block before left is added, and their norm made for the product that follows.
// The parts are the results of one product, or the partials of slices, in order.
#version 460
#extension GL_EXT_control_flow_attributes : require
#extension GL_GOOGLE_include_directive : require
#include "step.glsl"
#include "reduce.glsl"

layout(constant_id = 1) const uint EACH = 1;
layout(constant_id = 2) const bool WHOLE = true;
layout(constant_id = 3) const uint COUNT = 0;  // parts; 0: nothing is added
const uint PARTS = 0;
const bool WIDE = EACH > 6, ASKS_EARLY = !WIDE;
const uint STORED = WIDE ? 1 : EACH < 4 ? EACH : 4;
#define QUADS STORED
#include "quantize.glsl"

layout(set = 0, binding = 1) buffer Hidden { float hidden[]; };
layout(set = 0, binding = 1) buffer Hidden4 { vec4 hidden4[]; };
layout(set = 0, binding = 2) readonly buffer Weight { float weight[]; };
layout(set = 0, binding = 2) readonly buffer Weight4 { vec4 weight4[]; };
layout(set = 0, binding = 5) readonly buffer Parts { float parts[]; };
layout(set = 0, binding = 5) readonly buffer Parts4 { vec4 parts4[]; };
layout(set = 0, binding = 6) readonly buffer Vectors { float vectors[]; };
layout(set = 0, binding = 6) readonly buffer Vectors4 { vec4 vectors4[]; };

#include "norm_push.glsl"
layout(push_constant) uniform Push {
    Norm norm;
    uint sampled;  // 1: row i is the row of sample i
};
#include "norm.glsl"

void main() {
    uint index = gl_WorkGroupID.y;
    norm_row(sampled != 0 ? sample_row(index) : index, index);
}
