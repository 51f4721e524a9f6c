// One head of one row after the Q/K/V products: queries stay, keys and values go to their page.
#version 460
#extension GL_EXT_control_flow_attributes : require
#extension GL_GOOGLE_include_directive : require
#include "step.glsl"
#include "math.glsl"
#include "kv.glsl"

layout(set = 0, binding = 1) buffer Qkv { float qkv[]; };
layout(set = 0, binding = 2) readonly buffer Vectors { float vectors[]; };

layout(constant_id = 4) const uint SPLITS = 1;  // results of the products, to be added

shared float head[HEAD_DIM];
shared uint words_of_lanes[LANES];
#define HEAD(i) head[i]
#define TEAM_WORDS(i) words_of_lanes[i]
#include "heads.glsl"

layout(push_constant) uniform Push {
    KvShape kv;
    uint heads;
    Heads of;
    uint split_stride;  // from one of the products' results to the next
};

// LANES is TEAM.
void main() {
    uint index = gl_WorkGroupID.x, row = gl_WorkGroupID.y, lane = gl_LocalInvocationID.x;
    uint at = (row * (heads + 2 * kv.kv_heads) + index) * HEAD_DIM;
    bool query = index < heads, value = index >= heads + kv.kv_heads;
    uint position = row_position(row);

    float norm_weights[SHARE_OF_HEAD];
    bring_weights(of, query, norm_weights);
    bring_frequencies(of);
    for (uint i = lane; i < HEAD_DIM; i += LANES) {
        float element = qkv[at + i];
        [[unroll]] for (uint split = 1; split < SPLITS; ++split) element += qkv[split * split_stride + at + i];
        head[i] = biased(of, element, index, i);
    }
    norm_and_turn(of, 0, query, value, position, norm_weights);
    if (query)
        for (uint i = lane; i < HEAD_DIM; i += LANES) qkv[at + i] = head[i];
    else
        store_head(0, kv, row_sequence(row), value ? 1 : 0, (index - heads) % kv.kv_heads, position);
}
