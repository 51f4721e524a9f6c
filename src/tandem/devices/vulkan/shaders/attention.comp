// Causal attention over a sequence's pages for steps of many rows: HEADS query heads of one KV head, for ROWS consecutive
// rows, share the loads of keys and values. Keys come in tiles of 64 positions from multiples of 64, with online softmax
// (Milakov and Gimelshein, 2018), and in splits (split.glsl), one after another. A query's arithmetic is the same as in
// attention_split.comp, which takes steps of few rows: the batch does not show.
#version 460
#extension GL_EXT_control_flow_attributes : require
#extension GL_GOOGLE_include_directive : require
#include "step.glsl"
#include "math.glsl"
#include "kv.glsl"
#include "split.glsl"

layout(constant_id = 4) const uint HEADS = 1;
layout(constant_id = 5) const uint ROWS = 2;

layout(set = 0, binding = 1) readonly buffer Qkv { float qkv[]; };
layout(set = 0, binding = 1) readonly buffer Qkv4 { vec4 qkv4[]; };
layout(set = 0, binding = 2) buffer Parts { float parts[]; };

layout(push_constant) uniform Push {
    KvShape kv;
    uint heads;
    uint slots;     // splits that a head of a row has room for
    uint window;    // 0: none
    float scale;
    float softcap;  // 0: none
};

// Each 64 lanes take the 64 keys of a tile for EACH of the queries.
const uint TILE = 64, QUERIES = HEADS * ROWS, EACH = QUERIES * TILE / LANES;
const uint PAIRS = (HEAD_DIM / 2 + TILE - 1) / TILE;
// Dimensions of keys and queries that are in shared memory at a time; an odd stride keeps banks apart.
const uint PART = 32, STRIDE = PART + 1;
// Octets of keys and quads of queries that a lane brings for a part.
const uint K_EACH = TILE * PART / 8 / LANES, Q_EACH = (QUERIES * PART / 4 + LANES - 1) / LANES;
// Lanes that share a query's sum over a tile.
const uint SHARE = 4;

shared float keys[TILE * STRIDE];
shared vec4 queries[QUERIES * PART / 4];
shared float weights[QUERIES * TILE];
shared uvec3 places[TILE];
shared float gathered[QUERIES * SHARE];
shared float merged_best[QUERIES];
shared float merged_sum[QUERIES];

// own: this lane's first query; spot: its key of a tile, or pair of elements of a value.
uint lane, own, spot, row0, count, position0, head0;

uint row_of(uint query) { return min(query / HEADS, count - 1); }
uint position_of(uint query) { return position0 + row_of(query); }

uvec4 k_first[K_EACH], k_second[K_EACH];
vec4 q_next[Q_EACH];

float best[EACH];
float share_best, share_sum;
vec2 outs[EACH * PAIRS];

void clear(uint index) {
    best[index] = LOWEST;
    [[unroll]] for (uint p = 0; p < PAIRS; ++p) outs[index * PAIRS + p] = vec2(0);
}

float sum_of(uint query) {
    precise float sum = (gathered[query * SHARE] + gathered[query * SHARE + 1])
        + (gathered[query * SHARE + 2] + gathered[query * SHARE + 3]);
    return sum;
}

// Merges what a query has so far with its earlier splits, and stores that. `gathered` holds the shares of its sum.
void flush(uint index, uint slot) {
    uint query = own + index, head = head0 + query % HEADS;
    float merged = merged_best[query];
    bool first = merged == LOWEST;
    vec2 factors = merge_factors(merged, best[index]);
    uint at = (((row0 + query / HEADS) * heads + head) * slots + slot) * (HEAD_DIM + 2);
    if (query / HEADS >= count) return;
    [[unroll]] for (uint p = 0; p < PAIRS; ++p) {
        uint pair = p * TILE + spot;
        if (pair < HEAD_DIM / 2) {
            uint to = at + 2 + 2 * pair;
            vec2 before = first ? vec2(0) : vec2(parts[to], parts[to + 1]);
            parts[to] = merge(factors, before.x, outs[index * PAIRS + p].x);
            parts[to + 1] = merge(factors, before.y, outs[index * PAIRS + p].y);
        }
    }
    if (spot == 0) {
        parts[at] = merged;
        parts[at + 1] = merge(factors, merged_sum[query], sum_of(query));
    }
}

// Whether a query's split ends before this tile.
bool ends(uint query, uint tile) {
    uint last = position_of(query), first = first_seen(last, window);
    return first < tile && tile <= last && tile % split_length(first, last) == 0;
}

// Loads the keys and queries of dimensions [first, first + PART), for later.
void bring(uint first) {
    [[unroll]] for (uint e = 0; e < K_EACH; ++e) {
        uint i = lane + e * LANES;
        kv_octet_words(places[i / (PART / 8)], first / 8 + i % (PART / 8), k_first[e], k_second[e]);
    }
    [[unroll]] for (uint e = 0; e < Q_EACH; ++e) {
        uint i = min(lane + e * LANES, QUERIES * PART / 4 - 1), query = i / (PART / 4), quad = first / 4 + i % (PART / 4);
        uint at = ((row0 + row_of(query)) * (heads + 2 * kv.kv_heads) + head0 + query % HEADS) * HEAD_DIM / 4;
        q_next[e] = quad < HEAD_DIM / 4 ? qkv4[at + quad] : vec4(0);
    }
}

void main() {
    lane = gl_LocalInvocationID.x;
    own = lane / TILE * EACH;
    spot = lane % TILE;
    head0 = gl_WorkGroupID.x * HEADS;
    uint kv_head = head0 / (heads / kv.kv_heads), sequence = 0;
    for (uint tile = gl_WorkGroupID.y;; ++sequence) {
        if (sequence >= batch_sequences()) return;
        uvec2 rows = sequence_rows(sequence);
        uint tiles = (rows.y + ROWS - 1) / ROWS;
        if (tile < tiles) {
            row0 = rows.x + tile * ROWS;
            count = min(ROWS, rows.y - tile * ROWS);
            break;
        }
        tile -= tiles;
    }
    position0 = row_position(row0);
    uint begin = first_seen(position0, window), end = position0 + count - 1;
    if (lane < QUERIES) {
        merged_best[lane] = LOWEST;
        merged_sum[lane] = 0;
    }
    [[unroll]] for (uint index = 0; index < EACH; ++index) clear(index);
    share_best = LOWEST;
    share_sum = 0;

    for (uint tile = begin / TILE * TILE; tile <= end; tile += TILE) {
        if (tile % SHORTEST_SPLIT == 0 && tile > begin) {
            if (lane < QUERIES * SHARE) gathered[lane] = share_sum;
            barrier();
            [[unroll]] for (uint index = 0; index < EACH; ++index)
                if (ends(own + index, tile)) flush(index, 0);
            barrier();
            [[unroll]] for (uint index = 0; index < EACH; ++index) {
                uint query = own + index;
                if (!ends(query, tile)) continue;
                if (spot == 0) {
                    float merged = merged_best[query];
                    vec2 factors = merge_factors(merged, best[index]);
                    merged_best[query] = merged;
                    merged_sum[query] = merge(factors, merged_sum[query], sum_of(query));
                }
                clear(index);
            }
            if (ends(lane / SHARE, tile)) {
                share_best = LOWEST;
                share_sum = 0;
            }
        }
        uint key = tile + spot, readable = clamp(key, begin, end);
        if (lane < TILE) places[lane] = kv_place(kv, page_of(kv, sequence, readable), 0, kv_head, readable);

        precise float scores[EACH];
        [[unroll]] for (uint index = 0; index < EACH; ++index) scores[index] = 0;
        barrier();
        bring(0);
        [[dont_unroll]] for (uint first = 0; first < HEAD_DIM; first += PART) {
            barrier();
            [[unroll]] for (uint e = 0; e < K_EACH; ++e) {
                uint i = lane + e * LANES, key = i / (PART / 8), octet = i % (PART / 8), at = key * STRIDE + octet * 8;
                vec4 low, high;
                kv_octet_of(k_first[e], k_second[e], places[key], first / 8 + octet, low, high);
                [[unroll]] for (uint c = 0; c < 4; ++c) {
                    keys[at + c] = low[c];
                    keys[at + 4 + c] = high[c];
                }
            }
            [[unroll]] for (uint e = 0; e < Q_EACH; ++e)
                if (lane + e * LANES < QUERIES * PART / 4) queries[lane + e * LANES] = q_next[e];
            barrier();
            if (first + PART < HEAD_DIM) bring(first + PART);
            [[dont_unroll]] for (uint i = 0; i < PART / 4; ++i) {
                uint at = spot * STRIDE + 4 * i;
                vec4 k = vec4(keys[at], keys[at + 1], keys[at + 2], keys[at + 3]);
                [[unroll]] for (uint index = 0; index < EACH; ++index) {
                    vec4 q = queries[(own + index) * PART / 4 + i];
                    scores[index] = fma(k.w, q.w, fma(k.z, q.z, fma(k.y, q.y, fma(k.x, q.x, scores[index]))));
                }
            }
        }
        [[unroll]] for (uint index = 0; index < EACH; ++index) {
            uint last = position_of(own + index);
            float score = scores[index] * scale;
            if (softcap != 0.0) score = softcap * tanh_exact(score / softcap);
            bool visible = key >= begin && key <= end && key <= last && key >= first_seen(last, window);
            scores[index] = visible ? score : LOWEST;
            weights[(own + index) * TILE + spot] = scores[index];
        }
        barrier();
        if (lane < QUERIES * SHARE) {
            float largest = LOWEST;
            [[unroll]] for (uint i = 0; i < TILE / SHARE; ++i) largest = max(largest, weights[lane * (TILE / SHARE) + i]);
            gathered[lane] = largest;
        }
        barrier();
        [[unroll]] for (uint index = 0; index < EACH; ++index) {
            float now = best[index];
            [[unroll]] for (uint i = 0; i < SHARE; ++i) now = max(now, gathered[(own + index) * SHARE + i]);
            float decay = exp(best[index] - now);
            best[index] = now;
            weights[(own + index) * TILE + spot] = scores[index] == LOWEST ? 0.0 : exp(scores[index] - now);
            [[unroll]] for (uint p = 0; p < PAIRS; ++p) outs[index * PAIRS + p] *= decay;
        }
        barrier();
        if (lane < QUERIES * SHARE) {
            float now = share_best;
            [[unroll]] for (uint i = 0; i < SHARE; ++i) now = max(now, gathered[lane / SHARE * SHARE + i]);
            precise float sum = 0;
            [[unroll]] for (uint i = 0; i < TILE / SHARE; ++i) sum += weights[lane * (TILE / SHARE) + i];
            precise float before = share_sum * exp(share_best - now);
            share_sum = before + sum;
            share_best = now;
        }
        uint low = (max(begin, tile) - tile) / 4 * 4, high = min(end, tile + TILE - 1) - tile;
        uvec3 to_value = value_offset(kv);
        for (uint p = 0; p < PAIRS; ++p) {
            uint pair = p * TILE + spot;
            if (pair >= HEAD_DIM / 2) continue;
            [[dont_unroll]] for (uint j = low; j <= high; j += 4) {
                vec2 values[4];
                for (uint i = 0; i < 4; ++i) values[i] = kv_pair(places[j + i] + to_value, pair);
                for (uint index = 0; index < EACH; ++index)
                    for (uint i = 0; i < 4; ++i) {
                        vec2 weight = vec2(weights[(own + index) * TILE + j + i]);
                        outs[index * PAIRS + p] = fma(weight, values[i], outs[index * PAIRS + p]);
                    }
            }
        }
        barrier();
    }
    if (lane < QUERIES * SHARE) gathered[lane] = share_sum;
    barrier();
    [[unroll]] for (uint index = 0; index < EACH; ++index) flush(index, 0);
}
