// Causal attention of single rows over a sequence's pages, for steps of few rows: each split (split.glsl) of a row's
// keys is a workgroup, for HEADS query heads of one KV head. What happens to a query is what attention.comp does, tile
// by tile of 64 positions; but LANES keys are scored at once, and values stream. The last split of these heads to end
// merges them as combine.comp would, and stores them for the product that follows, where they are whole blocks of it.
//
// With TAKES_HEADS it does what heads.comp would, too: for steps of one row a sequence, whose keys no other row needs,
// with all query heads of a KV head in one workgroup.
#ifdef TAKES_HEADS
#define PAGES_ACCESS coherent
#endif
#include "step.glsl"
#include "math.glsl"
#include "kv.glsl"
#include "split.glsl"

layout(constant_id = 4) const uint HEADS = 1;

layout(set = 0, binding = 1) readonly buffer Qkv4 { vec4 qkv4[]; };
layout(set = 0, binding = 2) coherent buffer Parts { float parts[]; };
layout(set = 0, binding = 2) coherent buffer Tickets { uint tickets[]; };

const uint TILE = 64, TILES = LANES / TILE, SHARE = 4, SHARES = LANES / (TILE / SHARE);
// Groups of lanes take the pairs of elements of the values; each some of the heads.
const uint PAIRS = HEAD_DIM / 2, SPANS = (PAIRS + LANES - 1) / LANES, GROUPS = PAIRS < LANES ? LANES / PAIRS : 1;
const uint HEADS_EACH = (HEADS + GROUPS - 1) / GROUPS;
// Octets of a key that are loaded at once; values on their way, as many as registers allow.
const uint OCTETS = (HEAD_DIM + 7) / 8, AT_ONCE = KV_TYPE == KV_F32 ? 4 : 8;
const uint AHEAD = HEADS_EACH <= 2 ? (KV_TYPE == KV_F16 ? 32 : 16) : KV_TYPE == KV_F32 ? 8 : 16;
const uint FEWEST = AHEAD < 16 ? AHEAD : 16;

shared vec4 queries[HEADS * HEAD_DIM / 4];
#ifdef TAKES_HEADS
const uint ROOM = LANES / TEAM * HEAD_DIM, HEADS_LANES = HEADS * LANES;
shared float weights[ROOM > HEADS_LANES ? ROOM : HEADS_LANES];
#else
shared float weights[HEADS * LANES];
#endif
shared uvec3 places[LANES];
shared float gathered[HEADS * SHARES];
shared float tile_best[HEADS * TILES];
shared float carried[HEADS];

#ifdef TAKES_HEADS
// Where pages have one binding.
layout(set = 0, binding = 6) readonly buffer Vectors { float vectors[]; };
#define HEAD(i) weights[i]
#define TEAM_WORDS(i) places[i].x
#include "heads.glsl"
const uint QUADS_EACH = (HEAD_DIM / 4 + TEAM - 1) / TEAM;
#endif

layout(push_constant) uniform Push {
    KvShape kv;
    uint heads;
    uint slots;     // splits that a head of a row has room for
    uint window;    // 0: none
    float scale;
    float softcap;  // 0: none
    uint outputs;   // the form of the product's rows; 0: combine.comp merges
#ifdef TAKES_HEADS
    Heads of;
#endif
};

// Merging begins when keys are done with.
#define QUAD_LARGEST(i) places[i].x
#define QUAD_SUMS(i) places[i].y
// Rows have one form.
#define FLOATS_BINDING 7
#define BYTES_BINDING 7
#include "quantize.glsl"
#include "ticket.glsl"
#include "merge_splits.glsl"

float scores[HEADS];

void score(uint i, vec4 k) {
    if (i >= HEAD_DIM / 4) return;
    [[unroll]] for (uint h = 0; h < HEADS; ++h) {
        vec4 q = queries[h * HEAD_DIM / 4 + i];
        precise float sum = fma(k.w, q.w, fma(k.z, q.z, fma(k.y, q.y, fma(k.x, q.x, scores[h]))));
        scores[h] = sum;
    }
}

// Of the values of AHEAD positions of a chunk, from `first` on: those up to `high`, FEWEST at a time.
void bring_values(inout uvec2 coming[AHEAD], uint first, uint high, uvec3 to_value, uint pair) {
    [[unroll]] for (uint j = 0; j < AHEAD; ++j) {
        if (j % FEWEST == 0 && first + j > high) break;
        coming[j] = kv_pair_words(places[first + j] + to_value, pair);
    }
}

// Where the words of a head's split begin.
uint part_at(uint row, uint head, uint split) {
    return TICKETS + ((row * heads + head) * slots + split) * (HEAD_DIM + 2);
}

void main() {
    uint lane = gl_LocalInvocationID.x, head0 = gl_WorkGroupID.x * HEADS, row = gl_WorkGroupID.y;
    uint kv_head = head0 / (heads / kv.kv_heads), sequence = row_sequence(row);
    uint end = row_position(row), begin = first_seen(end, window);
    uint length = split_length(begin, end), split = begin / length + gl_WorkGroupID.z;
    uint splits = end / length - begin / length + 1;
    // Then nobody else need read what this workgroup makes, and it stays in shared memory.
    bool alone = outputs != 0 && splits == 1 && HEAD_DIM <= LANES;
    if (split * length > end) return;
    begin = max(begin, split * length);
    end = min(end, split * length + length - 1);

    uint row0 = row * (heads + 2 * kv.kv_heads) * HEAD_DIM / 4;
    uint chunk0 = begin / TILE * TILE, page0 = 0;
#ifdef TAKES_HEADS
    uint position = row_position(row), ready = HEADS + (end == position ? 2 : 0), team_at = lane / TEAM * HEAD_DIM;
    bring_frequencies(of);
    for (uint first = 0; first < ready; first += LANES / TEAM) {
        // Queries, then the row's own key and value, in the split that they belong to; some teams may have none. What is
        // read is asked for at once, and the way to a page, a chain of reads, is gone meanwhile.
        uint item = first + lane / TEAM;
        bool query = item < HEADS, value = item > HEADS;
        uint index = query ? head0 + item : heads + (value ? kv.kv_heads : 0) + kv_head;
        vec4 fours[QUADS_EACH];
        [[unroll]] for (uint i = 0; i < QUADS_EACH; ++i)
            fours[i] = qkv4[row0 + index * (HEAD_DIM / 4) + min(i * TEAM + lane % TEAM, HEAD_DIM / 4 - 1)];
        float norm_weights[SHARE_OF_HEAD];
        bring_weights(of, query, norm_weights);
        if (first == 0) page0 = page_of(kv, sequence, clamp(chunk0 + lane, begin, end));
        [[unroll]] for (uint i = 0; i < QUADS_EACH; ++i) {
            uint at = 4 * (i * TEAM + lane % TEAM);
            if (at >= HEAD_DIM) break;
            [[unroll]] for (uint e = 0; e < 4; ++e) HEAD(team_at + at + e) = biased(of, fours[i][e], index, at + e);
        }
        norm_and_turn(of, team_at, query, value, position, norm_weights);
        if (query) {
            for (uint i = lane % TEAM; i < HEAD_DIM / 4; i += TEAM) {
                uint from = team_at + 4 * i;
                queries[item * HEAD_DIM / 4 + i] = vec4(HEAD(from), HEAD(from + 1), HEAD(from + 2), HEAD(from + 3));
            }
        } else if (item < ready) {
            store_head(team_at, kv, sequence, value ? 1 : 0, kv_head, position);
        }
        memoryBarrierBuffer();
        barrier();
    }
    memoryBarrierBuffer();
#else
    for (uint i = lane; i < HEADS * HEAD_DIM / 4; i += LANES) queries[i] = qkv4[row0 + head0 * HEAD_DIM / 4 + i];
    page0 = page_of(kv, sequence, clamp(chunk0 + lane, begin, end));
#endif
    if (lane < HEADS) carried[lane] = LOWEST;
    float share_best = LOWEST, share_sum = 0;
    vec2 outs[HEADS_EACH * SPANS];
    [[unroll]] for (uint i = 0; i < HEADS_EACH * SPANS; ++i) outs[i] = vec2(0);
    uint group = lane / PAIRS, own = group * HEADS_EACH;
    bool takes_values = SPANS > 1 || group < GROUPS && own < HEADS;
    uint tile_of_lane = lane / TILE;
    uvec3 to_value = value_offset(kv);

    for (uint chunk = chunk0; chunk <= end; chunk += LANES) {
        uint key = chunk + lane, readable = clamp(key, begin, end);
        uint page = chunk == chunk0 ? page0 : page_of(kv, sequence, readable);
        uvec3 place = kv_place(kv, page, 0, kv_head, readable);
        barrier();
        places[lane] = place;
        [[unroll]] for (uint h = 0; h < HEADS; ++h) scores[h] = 0;
        if (chunk + tile_of_lane * TILE <= end) {
            [[dont_unroll]] for (uint i = 0; i < OCTETS; i += AT_ONCE) {
                uvec4 first[AT_ONCE], second[AT_ONCE];
                [[unroll]] for (uint e = 0; e < AT_ONCE; ++e) kv_octet_words(place, i + e, first[e], second[e]);
                [[unroll]] for (uint e = 0; e < AT_ONCE; ++e) {
                    vec4 low, high;
                    kv_octet_of(first[e], second[e], place, i + e, low, high);
                    score(2 * (i + e), low);
                    score(2 * (i + e) + 1, high);
                }
            }
        }
        [[unroll]] for (uint h = 0; h < HEADS; ++h) {
            float score = scores[h] * scale;
            if (softcap != 0.0) score = softcap * tanh_exact(score / softcap);
            scores[h] = key >= begin && key <= end ? score : LOWEST;
            weights[h * LANES + lane] = scores[h];
        }
        barrier();
        uint low = (max(begin, chunk) - chunk) / AHEAD * AHEAD, high = min(end, chunk + LANES - 1) - chunk;
        uint tiles = high / TILE + 1;
        for (uint i = lane; i < HEADS * SHARES; i += LANES) {
            float largest = LOWEST;
            [[unroll]] for (uint e = 0; e < TILE / SHARE; ++e) largest = max(largest, weights[i * (TILE / SHARE) + e]);
            gathered[i] = largest;
        }
        barrier();
        if (lane < HEADS * TILES) {
            uint h = lane / TILES;
            float now = carried[h];
            for (uint i = 0; i < (lane % TILES + 1) * SHARE; ++i) now = max(now, gathered[h * SHARES + i]);
            tile_best[lane] = now;
        }
        barrier();
        [[unroll]] for (uint h = 0; h < HEADS; ++h)
            weights[h * LANES + lane] = scores[h] == LOWEST ? 0.0 : exp(scores[h] - tile_best[h * TILES + tile_of_lane]);
        barrier();
        for (uint i = lane; i < HEADS * SHARES; i += LANES) {
            precise float sum = 0;
            [[unroll]] for (uint e = 0; e < TILE / SHARE; ++e) sum += weights[i * (TILE / SHARE) + e];
            gathered[i] = sum;
        }
        if (takes_values) {
            for (uint span = 0; span < SPANS; ++span) {
                uint pair = SPANS > 1 ? span * LANES + lane : lane % PAIRS;
                if (pair >= PAIRS) break;
                uvec2 coming[AHEAD];
                bring_values(coming, low, high, to_value, pair);
                [[dont_unroll]] for (uint first = low; first <= high; first += AHEAD) {
                    if (first == low || first % TILE == 0)
                        [[unroll]] for (uint i = 0; i < HEADS_EACH; ++i) {
                            uint h = min(own + i, HEADS - 1) * TILES + first / TILE;
                            float before = first / TILE == 0 ? carried[h / TILES] : tile_best[h - 1];
                            outs[i * SPANS + span] *= exp(before - tile_best[h]);
                        }
                    uvec2 words[AHEAD];
                    [[unroll]] for (uint j = 0; j < AHEAD; ++j) words[j] = coming[j];
                    bring_values(coming, first + AHEAD, high, to_value, pair);
                    [[unroll]] for (uint j = 0; j < AHEAD; ++j) {
                        if (j % FEWEST == 0 && first + j > high) break;
                        vec2 value = kv_pair_of(words[j], places[first + j] + to_value, pair);
                        [[unroll]] for (uint i = 0; i < HEADS_EACH; ++i) {
                            vec2 weight = vec2(weights[min(own + i, HEADS - 1) * LANES + first + j]);
                            outs[i * SPANS + span] = fma(weight, value, outs[i * SPANS + span]);
                        }
                    }
                }
            }
        }
        barrier();
        if (lane < HEADS * SHARE) {
            uint h = lane / SHARE;
            for (uint t = 0; t < tiles; ++t) {
                float now = tile_best[h * TILES + t];
                precise float before = share_sum * exp(share_best - now);
                share_sum = before + gathered[h * SHARES + t * SHARE + lane % SHARE];
                share_best = now;
            }
        }
        if (lane < HEADS) carried[lane] = tile_best[lane * TILES + tiles - 1];
    }
    barrier();
    if (lane < HEADS * SHARE) gathered[lane] = share_sum;
    barrier();
    if (takes_values) {
        for (uint i = 0; i < HEADS_EACH && own + i < HEADS; ++i) {
            uint h = own + i, at = part_at(row, head0 + h, gl_WorkGroupID.z);
            float merged = LOWEST;
            vec2 factors = merge_factors(merged, carried[h]);
            for (uint span = 0; span < SPANS; ++span) {
                uint pair = SPANS > 1 ? span * LANES + lane : lane % PAIRS;
                if (pair >= PAIRS) break;
                vec2 value = outs[i * SPANS + span];
                value = vec2(merge(factors, 0, value.x), merge(factors, 0, value.y));
                if (alone) {
                    weights[h * HEAD_DIM + 2 * pair] = value.x;
                    weights[h * HEAD_DIM + 2 * pair + 1] = value.y;
                } else {
                    parts[at + 2 + 2 * pair] = value.x;
                    parts[at + 3 + 2 * pair] = value.y;
                }
                if (pair == 0) {
                    precise float sum = (gathered[h * SHARE] + gathered[h * SHARE + 1])
                        + (gathered[h * SHARE + 2] + gathered[h * SHARE + 3]);
                    sum = merge(factors, 0, sum);
                    if (alone) {
                        gathered[h * SHARE] = sum;
                    } else {
                        parts[at] = merged;
                        parts[at + 1] = sum;
                    }
                }
            }
        }
    }
    if (outputs == 0) return;
    barrier();
    if (!alone && !last_to_come(row * (heads / HEADS) + gl_WorkGroupID.x, splits)) return;

    const uint MADE = HEADS * HEAD_DIM / 4;
    for (uint i = 0; i < MADE; i += LANES) {
        uint quad = i + lane, h = min(4 * quad / HEAD_DIM, HEADS - 1);
        vec4 values = vec4(0);
        if (quad < MADE) {
            if (alone) {
                float merged = LOWEST;
                vec2 factors = merge_factors(merged, carried[h]);
                float sum = merge(factors, 0, gathered[h * SHARE]);
                for (uint e = 0; e < 4; ++e) values[e] = merge(factors, 0, weights[4 * quad + e]);
                values /= sum;
            } else {
                values = merged_quad(part_at(row, head0 + h, 0), HEAD_DIM + 2, splits, 4 * quad % HEAD_DIM);
            }
        }
        uint target = quad < MADE ? head0 * HEAD_DIM / 4 + quad : 0xffffffffu;
        store_quads(outputs, row, target, (heads * HEAD_DIM + 31) / 32, vec4[1](values));
    }
}
