// Merges the splits of every head of a row, for the product that follows.
#version 460
#extension GL_EXT_control_flow_attributes : require
#extension GL_GOOGLE_include_directive : require
#include "step.glsl"
#include "reduce.glsl"
#include "quantize.glsl"
#include "split.glsl"

layout(set = 0, binding = 1) readonly buffer Parts { float parts[]; };
#include "merge_splits.glsl"

layout(push_constant) uniform Push {
    uint heads;
    uint head_dim;
    uint slots;   // splits that a head of a row has room for; 1: merged already
    uint window;  // 0: none
    uint outputs;
};

void main() {
    uint row = gl_WorkGroupID.y, lane = gl_LocalInvocationID.x, quad = gl_WorkGroupID.x * LANES + lane;
    uint width = heads * head_dim, blocks = (width + 31) / 32, position = row_position(row);
    uint splits = slots > 1 ? splits_of(position, window) : 1;
    vec4 values = vec4(0);
    if (4 * quad < width) {
        uint head = row * heads + 4 * quad / head_dim;
        values = merged_quad(head * slots * (head_dim + 2), head_dim + 2, splits, 4 * quad % head_dim);
    }
    float scale = store_quads(outputs, row, quad, blocks, vec4[1](values));
    if ((outputs & AS_BYTES) == 0) return;
    float bound = workgroup_max(scale);
    if (lane == 0) store_bound(row, blocks, gl_WorkGroupID.x, bound);
}
