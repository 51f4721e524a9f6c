// A head of one row after the Q/K/V products: bias, QK-norm, rope. TEAM lanes work on one; whoever includes this has
// `vectors`, and in shared memory elements of heads, HEAD, and a word for each lane, TEAM_WORDS.
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

const uint NONE = 0xffffffffu, TEAM = 64;

// As workgroup_sum in a workgroup of TEAM lanes.
float team_sum(float value) {
    uint lane = gl_LocalInvocationID.x, member = lane % TEAM;
    TEAM_WORDS(lane) = floatBitsToUint(value);
    for (uint width = TEAM / 2; width > 0; width /= 2) {
        barrier();
        if (member < width) {
            value += uintBitsToFloat(TEAM_WORDS(lane + width));
            TEAM_WORDS(lane) = floatBitsToUint(value);
        }
    }
    barrier();
    float sum = uintBitsToFloat(TEAM_WORDS(lane - member));
    barrier();
    return sum;
}

// What the product left of element i of head `index`, biased.
float biased(Heads of, float element, uint index, uint i) {
    return of.bias_at != NONE ? element + vectors[of.bias_at + index * HEAD_DIM + i] : element;
}

// All lanes call it when the elements of their team's head stand in HEAD(at) and on; when it returns they are done, for
// all lanes to see. value: a value's, which has neither norm nor rope; query: a query's; else a key's.
void norm_and_turn(Heads of, uint at, bool query, bool value, uint position) {
    uint member = gl_LocalInvocationID.x % TEAM;
    barrier();
    if (of.q_norm_at != NONE) {
        precise float squares = 0;
        for (uint i = member; i < HEAD_DIM; i += TEAM) squares += HEAD(at + i) * HEAD(at + i);
        precise float root = sqrt(team_sum(squares) / float(HEAD_DIM) + (query ? of.q_eps : of.k_eps));
        uint weight_at = query ? of.q_norm_at : of.k_norm_at;
        if (!value)
            for (uint i = member; i < HEAD_DIM; i += TEAM) HEAD(at + i) = HEAD(at + i) / root * vectors[weight_at + i];
        barrier();
    }
    if (!value) {
        uint half_dims = of.rope_dims / 2;
        for (uint i = member; i < half_dims; i += TEAM) {
            uint a = at + (of.interleaved != 0 ? 2 * i : i), b = of.interleaved != 0 ? a + 1 : a + half_dims;
            vec2 turn = cos_sin(float(position) * vectors[of.frequencies_at + i]);
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
