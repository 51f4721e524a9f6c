// Attention as attention.comp's, with cooperative matrices: float16 in, float32 sums. HEADS query heads of one KV head, for
// ROWS consecutive rows, are the rows of a matrix. Keys come in tiles of 64 positions from multiples of 64, with online
// softmax (Milakov and Gimelshein, 2018); keys, then values, come through shared memory PART elements at a time, and while
// they multiply, the next are on their way. A query is scaled by a power of two so that its largest element is near 2^12
// and nothing overflows float16.
#version 460
#extension GL_EXT_control_flow_attributes : require
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require
#include "step.glsl"
#include "math.glsl"
#include "kv.glsl"
#include "split.glsl"

layout(constant_id = 4) const uint HEADS = 1;
layout(constant_id = 5) const uint ROWS = 2;
// The driver's matrix shape: [M, K] times [K, N].
layout(constant_id = 6) const uint M = 16;
layout(constant_id = 7) const uint N = 16;
layout(constant_id = 8) const uint K = 16;
// Queries that are multiplied, HEADS * ROWS and more; subgroups, and how many of them stand above each other.
layout(constant_id = 9) const uint QUERIES = 32;
layout(constant_id = 10) const uint SUBGROUPS = 4;
layout(constant_id = 11) const uint ABOVE = 2;

layout(set = 0, binding = 1) readonly buffer Qkv4 { vec4 qkv4[]; };
layout(set = 0, binding = 2) writeonly buffer Parts { float parts[]; };

layout(push_constant) uniform Push {
    KvShape kv;
    uint heads;
    uint slots;   // not used: a head of a row has one result
    uint window;  // 0: none
    float scale;
    float softcap;  // 0: none
};

const uint TILE = 64, PART = 64, PARTS = (HEAD_DIM + PART - 1) / PART;
const uint BESIDE = SUBGROUPS / ABOVE, ROW_TILES = QUERIES / ABOVE / M, ACROSS = TILE / BESIDE / N;
// In quads; the padding keeps rows on different banks.
const uint STRIDE = PART / 4 + 2, Q_STRIDE = PARTS * PART / 4 + 2, SCORE_STRIDE = TILE / 4 + 4;
// Octets of keys or values that a lane brings for a part; lanes that share a query's softmax, and quads of keys of each.
const uint EACH = TILE * PART / 8 / LANES, SHARE = LANES / QUERIES, QUADS = TILE / 4 / SHARE;

shared f16vec4 q_tile[QUERIES * Q_STRIDE];
shared f16vec4 kv_tile[TILE * STRIDE];
shared f16vec4 weights[QUERIES * STRIDE];
shared vec4 scores[QUERIES * SCORE_STRIDE];
shared float decays[QUERIES];
shared float gathered[LANES];
shared uvec3 places[2 * TILE];

uint lane, row0, count, head0, kv_head, sequence, begin, end;
uvec4 first_words[EACH], second_words[EACH];

uint row_of(uint query) { return min(query / HEADS, count - 1); }

void find_places(uint tile, uint turn) {
    for (uint i = lane; i < TILE; i += LANES) {
        uint readable = clamp(tile + i, begin, end);
        places[turn * TILE + i] = kv_place(kv, page_of(kv, sequence, readable), 0, kv_head, readable);
    }
}

uvec3 place_of(uint key, bool value, uint turn) { return places[turn * TILE + key] + (value ? value_offset(kv) : uvec3(0)); }

// Loads a part of a tile's keys or values, for later. What is not seen is another position's, and gets no weight.
void bring(bool value, uint part, uint turn) {
    [[unroll]] for (uint e = 0; e < EACH; ++e) {
        uint i = lane + e * LANES;
        kv_octet_words(place_of(i / (PART / 8), value, turn), part * PART / 8 + i % (PART / 8), first_words[e], second_words[e]);
    }
}

void keep(bool value, uint part, uint turn) {
    [[unroll]] for (uint e = 0; e < EACH; ++e) {
        uint i = lane + e * LANES, key = i / (PART / 8), octet = i % (PART / 8), at = key * STRIDE + 2 * octet;
        if (KV_TYPE == KV_F16 && HEAD_DIM % 8 == 0) {
            uvec4 words = first_words[e];
            kv_tile[at] = f16vec4(unpackFloat2x16(words.x), unpackFloat2x16(words.y));
            kv_tile[at + 1] = f16vec4(unpackFloat2x16(words.z), unpackFloat2x16(words.w));
            continue;
        }
        vec4 low, high;
        kv_octet_of(first_words[e], second_words[e], place_of(key, value, turn), part * PART / 8 + octet, low, high);
        kv_tile[at] = f16vec4(low);
        kv_tile[at + 1] = f16vec4(high);
    }
}

float largest_of_share(uint query) {
    float largest = gathered[query * SHARE];
    [[unroll]] for (uint i = 1; i < SHARE; ++i) largest = max(largest, gathered[query * SHARE + i]);
    return largest;
}

void main() {
    lane = gl_LocalInvocationID.x;
    head0 = gl_WorkGroupID.x * HEADS;
    kv_head = head0 / (heads / kv.kv_heads);
    sequence = 0;
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
    uint position0 = row_position(row0);
    begin = first_seen(position0, window);
    end = position0 + count - 1;
    uint first_tile = begin / TILE * TILE;
    find_places(first_tile, 0);

    // A lane's query in everything but the products, and its place among those that share it.
    uint query = lane / SHARE, share = lane % SHARE;
    uint position = position0 + row_of(query), seen = first_seen(position, window);
    uint q_at = ((row0 + row_of(query)) * (heads + 2 * kv.kv_heads) + head0 + query % HEADS) * (HEAD_DIM / 4);
    float largest = 0;
    for (uint i = share; i < HEAD_DIM / 4; i += SHARE) {
        vec4 each = abs(qkv4[q_at + i]);
        largest = max(max(largest, max(each.x, each.y)), max(each.z, each.w));
    }
    gathered[lane] = largest;
    barrier();
    int exponent;
    frexp(largest_of_share(query), exponent);
    float q_factor = ldexp(1.0, clamp(12 - exponent, -120, 120)), score_factor = scale / q_factor;
    for (uint i = share; i < PARTS * PART / 4; i += SHARE)
        q_tile[query * Q_STRIDE + i] = f16vec4(i < HEAD_DIM / 4 ? qkv4[q_at + i] * q_factor : vec4(0));

    uint row_part = gl_SubgroupID / BESIDE * (QUERIES / ABOVE), across = gl_SubgroupID % BESIDE * (TILE / BESIDE);
    coopmat<float, gl_ScopeSubgroup, M, N, gl_MatrixUseAccumulator> outs[PARTS * ROW_TILES * ACROSS];
    [[unroll]] for (uint i = 0; i < PARTS * ROW_TILES * ACROSS; ++i)
        outs[i] = coopmat<float, gl_ScopeSubgroup, M, N, gl_MatrixUseAccumulator>(0.0);
    float best = LOWEST, sum = 0;
    bring(false, 0, 0);

    uint turn = 0;
    for (uint tile = first_tile; tile <= end; tile += TILE, turn ^= 1) {
        coopmat<float, gl_ScopeSubgroup, M, N, gl_MatrixUseAccumulator> dots[ROW_TILES * ACROSS];
        [[unroll]] for (uint i = 0; i < ROW_TILES * ACROSS; ++i)
            dots[i] = coopmat<float, gl_ScopeSubgroup, M, N, gl_MatrixUseAccumulator>(0.0);
        [[unroll]] for (uint part = 0; part < PARTS; ++part) {
            barrier();
            keep(false, part, turn);
            if (part == 0) find_places(tile + TILE, turn ^ 1);
            barrier();
            bring(part + 1 == PARTS, (part + 1) % PARTS, turn);
            [[unroll]] for (uint k = 0; k < PART; k += K) {
                coopmat<float16_t, gl_ScopeSubgroup, M, K, gl_MatrixUseA> a[ROW_TILES];
                [[unroll]] for (uint r = 0; r < ROW_TILES; ++r)
                    coopMatLoad(a[r], q_tile, (row_part + r * M) * Q_STRIDE + (part * PART + k) / 4, Q_STRIDE,
                                gl_CooperativeMatrixLayoutRowMajor);
                [[unroll]] for (uint o = 0; o < ACROSS; ++o) {
                    coopmat<float16_t, gl_ScopeSubgroup, K, N, gl_MatrixUseB> b;
                    coopMatLoad(b, kv_tile, (across + o * N) * STRIDE + k / 4, STRIDE, gl_CooperativeMatrixLayoutColumnMajor);
                    [[unroll]] for (uint r = 0; r < ROW_TILES; ++r)
                        dots[r * ACROSS + o] = coopMatMulAdd(a[r], b, dots[r * ACROSS + o]);
                }
            }
        }
        [[unroll]] for (uint i = 0; i < ROW_TILES * ACROSS; ++i)
            coopMatStore(dots[i], scores, (row_part + i / ACROSS * M) * SCORE_STRIDE + (across + i % ACROSS * N) / 4, SCORE_STRIDE,
                         gl_CooperativeMatrixLayoutRowMajor);
        barrier();
        vec4 own[QUADS];
        largest = LOWEST;
        [[unroll]] for (uint i = 0; i < QUADS; ++i) {
            own[i] = scores[query * SCORE_STRIDE + i * SHARE + share] * score_factor;
            [[unroll]] for (uint e = 0; e < 4; ++e) {
                uint key = tile + 4 * (i * SHARE + share) + e;
                if (softcap != 0.0) own[i][e] = softcap * tanh_exact(own[i][e] / softcap);
                if (key < seen || key > position) own[i][e] = LOWEST;
                largest = max(largest, own[i][e]);
            }
        }
        gathered[lane] = largest;
        barrier();
        float now = max(best, largest_of_share(query)), decay = exp(best - now);
        best = now;
        sum *= decay;
        if (share == 0) decays[query] = decay;
        [[unroll]] for (uint i = 0; i < QUADS; ++i) {
            vec4 weight = mix(exp(own[i] - now), vec4(0), equal(own[i], vec4(LOWEST)));
            f16vec4 rounded = f16vec4(weight);
            weights[query * STRIDE + i * SHARE + share] = rounded;
            weight = vec4(rounded);
            sum += (weight.x + weight.y) + (weight.z + weight.w);
        }
        [[unroll]] for (uint part = 0; part < PARTS; ++part) {
            barrier();
            keep(true, part, turn);
            barrier();
            if (part + 1 < PARTS) {
                bring(true, part + 1, turn);
            } else {
                bring(false, 0, turn ^ 1);
            }
            [[unroll]] for (uint r = 0; r < ROW_TILES; ++r) {
                coopmat<float, gl_ScopeSubgroup, M, N, gl_MatrixUseAccumulator> factor;
                coopMatLoad(factor, decays, row_part + r * M, 0, gl_CooperativeMatrixLayoutColumnMajor);
                [[unroll]] for (uint o = 0; o < ACROSS; ++o)
                    [[unroll]] for (uint e = 0; e < factor.length(); ++e) outs[(part * ROW_TILES + r) * ACROSS + o][e] *= factor[e];
            }
            [[unroll]] for (uint k = 0; k < TILE; k += K) {
                coopmat<float16_t, gl_ScopeSubgroup, M, K, gl_MatrixUseA> a[ROW_TILES];
                [[unroll]] for (uint r = 0; r < ROW_TILES; ++r)
                    coopMatLoad(a[r], weights, (row_part + r * M) * STRIDE + k / 4, STRIDE, gl_CooperativeMatrixLayoutRowMajor);
                [[unroll]] for (uint o = 0; o < ACROSS; ++o) {
                    coopmat<float16_t, gl_ScopeSubgroup, K, N, gl_MatrixUseB> b;
                    coopMatLoad(b, kv_tile, k * STRIDE + (across + o * N) / 4, STRIDE, gl_CooperativeMatrixLayoutRowMajor);
                    [[unroll]] for (uint r = 0; r < ROW_TILES; ++r)
                        outs[(part * ROW_TILES + r) * ACROSS + o] = coopMatMulAdd(a[r], b, outs[(part * ROW_TILES + r) * ACROSS + o]);
                }
            }
        }
    }

    gathered[lane] = sum;
    barrier();
    bool real = query < HEADS * ROWS && query / HEADS < count;
    uint to = ((row0 + query / HEADS) * heads + head0 + query % HEADS) * (HEAD_DIM + 2);
    if (real && share == 0) {
        sum = gathered[lane];
        for (uint i = 1; i < SHARE; ++i) sum += gathered[lane + i];
        parts[to] = best;
        parts[to + 1] = sum;
    }
    [[unroll]] for (uint part = 0; part < PARTS; ++part) {
        barrier();
        [[unroll]] for (uint i = 0; i < ROW_TILES * ACROSS; ++i)
            coopMatStore(outs[part * ROW_TILES * ACROSS + i], scores, (row_part + i / ACROSS * M) * SCORE_STRIDE + (across + i % ACROSS * N) / 4,
                         SCORE_STRIDE, gl_CooperativeMatrixLayoutRowMajor);
        barrier();
        for (uint i = share; real && i < PART; i += SHARE)
            if (part * PART + i < HEAD_DIM) parts[to + 2 + part * PART + i] = scores[query * SCORE_STRIDE + i / 4][i % 4];
    }
}
