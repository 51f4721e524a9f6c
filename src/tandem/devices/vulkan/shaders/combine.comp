// Merges the splits of every head of a row, for the product that follows.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "step.glsl"
#include "reduce.glsl"
#include "quantize.glsl"
#include "split.glsl"

layout(set = 0, binding = 1) readonly buffer Parts { float parts[]; };

layout(push_constant) uniform Push {
    uint heads;
    uint head_dim;
    uint slots;   // splits that a head of a row has room for; 1: merged already
    uint window;  // 0: none
    uint outputs;
};

void main() {
    uint row = gl_WorkGroupID.y, lane = gl_LocalInvocationID.x, quad = gl_WorkGroupID.x * LANES + lane;
    if (row >= batch_rows()) return;
    uint width = heads * head_dim, blocks = (width + 31) / 32, position = row_position(row), splits = 1;
    if (slots > 1) {
        uint first = first_seen(position, window), length = split_length(first, position);
        splits = position / length - first / length + 1;
    }
    vec4 values = vec4(0);
    if (4 * quad < width) {
        uint head = 4 * quad / head_dim, element = 4 * quad % head_dim;
        float merged = LOWEST, sum = 0;
        for (uint split = 0; split < splits; ++split) {
            uint at = ((row * heads + head) * slots + split) * (head_dim + 2);
            vec2 factors = merge_factors(merged, parts[at]);
            sum = merge(factors, sum, parts[at + 1]);
            for (uint i = 0; i < 4; ++i) values[i] = merge(factors, values[i], parts[at + 2 + element + i]);
        }
        values /= sum;
    }
    float scale = store_quad(outputs, row, quad, blocks, values);
    if ((outputs & AS_BYTES) == 0) return;
    float bound = workgroup_max(scale);
    if (lane == 0) store_bound(row, blocks, gl_WorkGroupID.x, bound);
}
