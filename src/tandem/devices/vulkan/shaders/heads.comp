// One head of one row after the Q/K/V products: bias, QK-norm, rope; queries stay, keys and values go to their page.
#version 460
#extension GL_EXT_control_flow_attributes : require
#extension GL_GOOGLE_include_directive : require
#include "step.glsl"
#include "reduce.glsl"
#include "math.glsl"
#include "kv.glsl"

layout(set = 0, binding = 1) buffer Qkv { float qkv[]; };
layout(set = 0, binding = 2) readonly buffer Vectors { float vectors[]; };

layout(constant_id = 4) const uint SPLITS = 1;  // results of the products, to be added

const uint NONE = 0xffffffffu;

layout(push_constant) uniform Push {
    KvShape kv;
    uint heads;
    uint bias_at;         // of q, k and v, one after another; or NONE
    uint q_norm_at;       // or NONE, and so k_norm_at
    uint k_norm_at;
    float q_eps;
    float k_eps;
    uint frequencies_at;
    uint rope_dims;       // 0: no rope
    uint interleaved;
    uint split_stride;    // from one of the products' results to the next
};

shared float head[HEAD_DIM];

void main() {
    uint index = gl_WorkGroupID.x, row = gl_WorkGroupID.y, lane = gl_LocalInvocationID.x;
    if (row >= batch_rows()) return;
    uint at = (row * (heads + 2 * kv.kv_heads) + index) * HEAD_DIM;
    bool query = index < heads, value = index >= heads + kv.kv_heads;
    uint position = row_position(row);

    for (uint i = lane; i < HEAD_DIM; i += LANES) {
        float element = qkv[at + i];
        [[unroll]] for (uint split = 1; split < SPLITS; ++split) element += qkv[split * split_stride + at + i];
        if (bias_at != NONE) element += vectors[bias_at + index * HEAD_DIM + i];
        head[i] = element;
    }
    barrier();
    uint norm_at = query ? q_norm_at : k_norm_at;
    if (norm_at != NONE && !value) {
        precise float squares = 0;
        for (uint i = lane; i < HEAD_DIM; i += LANES) squares += head[i] * head[i];
        float root = sqrt(workgroup_sum(squares) / float(HEAD_DIM) + (query ? q_eps : k_eps));
        for (uint i = lane; i < HEAD_DIM; i += LANES) head[i] = head[i] / root * vectors[norm_at + i];
        barrier();
    }
    if (!value) {
        uint half_dims = rope_dims / 2;
        for (uint i = lane; i < half_dims; i += LANES) {
            uint a = interleaved != 0 ? 2 * i : i, b = interleaved != 0 ? 2 * i + 1 : i + half_dims;
            vec2 turn = cos_sin(float(position) * vectors[frequencies_at + i]);
            float x = head[a], y = head[b];
            head[a] = x * turn.x - y * turn.y;
            head[b] = y * turn.x + x * turn.y;
        }
        barrier();
    }
    if (query) {
        for (uint i = lane; i < HEAD_DIM; i += LANES) qkv[at + i] = head[i];
        return;
    }
    uint kv_head = (index - heads) % kv.kv_heads;
    uint page = page_of(kv, row_sequence(row), position);
    uvec3 place = kv_place(kv, page, value ? 1 : 0, kv_head, position);
    for (uint i = lane; i < HEAD_DIM / 4; i += LANES) {
        vec4 values = vec4(head[4 * i], head[4 * i + 1], head[4 * i + 2], head[4 * i + 3]);
        float largest = 0;
        if (KV_TYPE == KV_Q8_0)
            for (uint e = i / 8 * 32; e < i / 8 * 32 + 32; ++e) largest = max(largest, abs(head[e]));
        set_kv_quad(place, i, values, largest);
    }
}
