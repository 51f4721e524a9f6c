// Causal attention of one head of one row over its sequence's pages, with online softmax (Milakov and Gimelshein, 2018).
// Keys come in tiles of LANES positions that start at multiples of LANES, whatever the batch.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "step.glsl"
#include "reduce.glsl"
#include "math.glsl"
#include "kv.glsl"

layout(set = 0, binding = 1) readonly buffer Qkv { float qkv[]; };
layout(set = 0, binding = 2) writeonly buffer Attended { float attended[]; };

layout(push_constant) uniform Push {
    KvShape kv;
    uint heads;
    uint out_stride;
    uint window;    // 0: none
    float scale;
    float softcap;  // 0: none
};

// Below every score; finite, as GLSL promises nothing about infinities.
const float LOWEST = -1e38;

const uint PAIRS = (HEAD_DIM / 2 + LANES - 1) / LANES;

shared float query[HEAD_DIM];
shared float weights[LANES];
shared uint tile_pages[LANES];

void main() {
    uint head = gl_WorkGroupID.x, row = gl_WorkGroupID.y, lane = gl_LocalInvocationID.x;
    if (row >= batch_rows()) return;
    uint kv_head = head / (heads / kv.kv_heads), sequence = row_sequence(row), position = row_position(row);
    uint first = window != 0 && position + 1 > window ? position + 1 - window : 0;
    for (uint i = lane; i < HEAD_DIM; i += LANES)
        query[i] = qkv[(row * (heads + 2 * kv.kv_heads) + head) * HEAD_DIM + i];

    float best = LOWEST;
    precise float sum = 0;
    precise vec2 out_pairs[PAIRS];
    for (uint p = 0; p < PAIRS; ++p) out_pairs[p] = vec2(0);
    barrier();
    for (uint tile = first / LANES * LANES; tile <= position; tile += LANES) {
        uint key = tile + lane;
        bool visible = key >= first && key <= position;
        precise float score = 0;
        if (visible) {
            tile_pages[lane] = page_of(kv, sequence, key);
            uvec2 place = kv_place(kv, tile_pages[lane], 0, kv_head, key);
            for (uint i = 0; i < HEAD_DIM / 2; ++i) {
                vec2 pair = kv_pair(place, i);
                score += query[2 * i] * pair.x;
                score += query[2 * i + 1] * pair.y;
            }
            score *= scale;
            if (softcap != 0.0) score = softcap * tanh_exact(score / softcap);
        } else {
            score = LOWEST;
        }
        float now_best = max(best, workgroup_max(score));
        float weight = visible ? exp(score - now_best) : 0.0;
        weights[lane] = weight;
        float decay = exp(best - now_best);
        sum = sum * decay + workgroup_sum(weight);
        uint low = max(first, tile) - tile, high = min(position, tile + LANES - 1) - tile;
        for (uint p = 0; p < PAIRS; ++p) {
            uint pair = p * LANES + lane;
            if (pair < HEAD_DIM / 2) {
                out_pairs[p] *= decay;
                for (uint j = low; j <= high; ++j)
                    out_pairs[p] += weights[j] * kv_pair(kv_place(kv, tile_pages[j], 1, kv_head, tile + j), pair);
            }
        }
        best = now_best;
        barrier();
    }
    for (uint p = 0; p < PAIRS; ++p) {
        uint pair = p * LANES + lane;
        if (pair < HEAD_DIM / 2) {
            uint at = row * out_stride + head * HEAD_DIM + 2 * pair;
            attended[at] = out_pairs[p].x / sum;
            attended[at + 1] = out_pairs[p].y / sum;
        }
    }
}
