// A head of one row after the Q/K/V products: bias, QK-norm, rope. TEAM lanes work on one; whoever includes this has
// `vectors`, and in shared memory elements of heads, HEAD, and a word for each lane, TEAM_WORDS.
#include "tree.glsl"

struct Heads {
    uint bias_at;         // of q, k and v, one after another; or NONE
    uint q_norm_at;       // or NONE, and so k_norm_at
    uint k_norm_at;
    float q_eps;
    float k_eps;
    uint frequencies_at;
    uint rope_dims;       // 0: no rope
    uint interleaved;
};

const uint NONE = 0xffffffffu, LATER_IN_TEAM = TEAM / 8;

// As workgroup_sum in a workgroup of TEAM lanes. They meet before the words are written again.
float team_sum(float value) {
    uint lane = gl_LocalInvocationID.x, member = lane % TEAM;
    TEAM_WORDS(lane) = floatBitsToUint(value);
    barrier();
    float parts[8];
    if (member < LATER_IN_TEAM) {
        [[unroll]] for (uint i = 0; i < 8; ++i) parts[i] = uintBitsToFloat(TEAM_WORDS(lane + LATER_IN_TEAM * i));
        JOIN_AS_TREE(parts, 8, PLUS);
        TEAM_WORDS(lane) = floatBitsToUint(parts[0]);
    }
    barrier();
    [[unroll]] for (uint i = 0; i < LATER_IN_TEAM; ++i) parts[i] = uintBitsToFloat(TEAM_WORDS(lane - member + i));
    JOIN_AS_TREE(parts, LATER_IN_TEAM, PLUS);
    return parts[0];
}

// What the product left of element i of head `index`, biased.
float biased(Heads of, float element, uint index, uint i) {
    return of.bias_at != NONE ? element + vectors[of.bias_at + index * HEAD_DIM + i] : element;
}

// What a lane needs of the vectors: asked for together with the elements, as each wait counts.
const uint SHARE_OF_HEAD = (HEAD_DIM + TEAM - 1) / TEAM, FREQUENCIES = (HEAD_DIM / 2 + TEAM - 1) / TEAM;
float frequencies[FREQUENCIES];

void bring_weights(Heads of, bool query, out float scales[SHARE_OF_HEAD]) {
    uint member = gl_LocalInvocationID.x % TEAM;
    [[unroll]] for (uint i = 0; i < HEAD_DIM; i += TEAM)
        scales[i / TEAM] =
            of.q_norm_at != NONE ? vectors[(query ? of.q_norm_at : of.k_norm_at) + min(i + member, HEAD_DIM - 1)] : 0.0;
}

void bring_frequencies(Heads of) {
    uint member = gl_LocalInvocationID.x % TEAM;
    if (of.rope_dims != 0)
        [[unroll]] for (uint i = 0; i < HEAD_DIM / 2; i += TEAM)
            frequencies[i / TEAM] = vectors[of.frequencies_at + min(i + member, of.rope_dims / 2 - 1)];
}

// All lanes call it when the elements of their team's head stand in HEAD(at) and on, and their frequencies were
// brought; when it returns they are done, for all lanes to see. value: a value's, which has neither norm nor rope; query:
// a query's; else a key's. scales: of the norm.
void norm_and_turn(Heads of, uint at, bool query, bool value, uint position, float scales[SHARE_OF_HEAD]) {
    uint member = gl_LocalInvocationID.x % TEAM;
    barrier();
    if (of.q_norm_at != NONE) {
        precise float squares = 0;
        for (uint i = member; i < HEAD_DIM; i += TEAM) squares += HEAD(at + i) * HEAD(at + i);
        precise float root = sqrt(team_sum(squares) / float(HEAD_DIM) + (query ? of.q_eps : of.k_eps));
        if (!value)
            [[unroll]] for (uint i = 0; i < HEAD_DIM; i += TEAM)
                if (i + member < HEAD_DIM) HEAD(at + i + member) = HEAD(at + i + member) / root * scales[i / TEAM];
        barrier();
    }
    if (!value) {
        uint half_dims = of.rope_dims / 2;
        [[unroll]] for (uint e = 0; e < FREQUENCIES; ++e) {
            uint i = e * TEAM + member;
            if (i >= half_dims) break;
            uint a = at + (of.interleaved != 0 ? 2 * i : i), b = of.interleaved != 0 ? a + 1 : a + half_dims;
            vec2 turn = cos_sin(float(position) * frequencies[e]);
            float x = HEAD(a), y = HEAD(b);
            precise float turned_x = x * turn.x - y * turn.y, turned_y = y * turn.x + x * turn.y;
            HEAD(a) = turned_x;
            HEAD(b) = turned_y;
        }
    }
    barrier();
}

// A key (kind 0) or value (kind 1), done, to its page.
void store_head(uint at, KvShape kv, uint sequence, uint kind, uint kv_head, uint position) {
    uvec3 place = kv_place(kv, page_of(kv, sequence, position), kind, kv_head, position);
    for (uint i = gl_LocalInvocationID.x % TEAM; i < HEAD_DIM / 4; i += TEAM) {
        vec4 values = vec4(HEAD(at + 4 * i), HEAD(at + 4 * i + 1), HEAD(at + 4 * i + 2), HEAD(at + 4 * i + 3));
        float largest = 0;
        if (KV_TYPE == KV_Q8_0)
            for (uint e = i / 8 * 32; e < i / 8 * 32 + 32; ++e) largest = max(largest, abs(HEAD(at + e)));
        set_kv_quad(place, i, values, largest);
    }
}
