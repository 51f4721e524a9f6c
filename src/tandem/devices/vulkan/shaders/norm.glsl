// The norm of a row of the residual stream, by a workgroup: hidden += post_norm(sum of the parts + bias), then
// rms_norm(hidden) * weight for the product that follows. Either half may be left out. A lane holds its elements in
// registers from beginning to end. Whoever includes this has `norm` (norm_push.glsl); the buffers hidden, weight, parts
// (from PARTS on) and vectors, each in fours, too; COUNT parts, EACH quads of a lane, WHOLE: everything begins and ends
// at whole quads; ASKS_EARLY: the weight is asked for before anything waits; WIDE: registers hold no more than must be.
const uint NONE = 0xffffffffu;

// Elements 4 * quad and on of what begins at `at`, zero beyond the width.
#define LOAD(name)                                                                                      \
    vec4 load_##name(uint at, uint quad) {                                                              \
        if (WHOLE) return 4 * quad < norm.width ? name##4[at / 4 + quad] : vec4(0);                     \
        vec4 values = vec4(0);                                                                          \
        for (uint i = 0; i < 4 && 4 * quad + i < norm.width; ++i) values[i] = name[at + 4 * quad + i];  \
        return values;                                                                                  \
    }
LOAD(hidden)
LOAD(weight)
LOAD(parts)
LOAD(vectors)

float squares_of(vec4 v) {
    precise float squares = (v.x * v.x + v.y * v.y) + (v.z * v.z + v.w * v.w);
    return squares;
}

// hidden[row] += what is to be added; its norm becomes row `index` for the product.
void norm_row(uint row, uint index) {
    uint lane = gl_LocalInvocationID.x;
    uint blocks = (norm.width + 31) / 32, first = row * norm.width;

    precise vec4 values[EACH];
    vec4 scales[EACH];
    [[unroll]] for (uint i = 0; i < EACH; ++i) values[i] = load_hidden(first, i * LANES + lane);
    if (ASKS_EARLY && norm.weight_at != NONE)
        [[unroll]] for (uint i = 0; i < EACH; ++i) scales[i] = load_weight(norm.weight_at, i * LANES + lane);
    if (COUNT != 0) {
        precise vec4 added[EACH];
        [[unroll]] for (uint i = 0; i < EACH; ++i) added[i] = load_parts(PARTS + first, i * LANES + lane);
        [[unroll]] for (uint part = 1; part < COUNT; ++part)
            [[unroll]] for (uint i = 0; i < EACH; ++i)
                added[i] += load_parts(PARTS + part * norm.part_stride + first, i * LANES + lane);
        if (norm.bias_at != NONE)
            [[unroll]] for (uint i = 0; i < EACH; ++i) added[i] += load_vectors(norm.bias_at, i * LANES + lane);
        if (norm.post_norm_at != NONE) {
            vec4 post_scales[EACH];
            if (!WIDE)
                [[unroll]] for (uint i = 0; i < EACH; ++i)
                    post_scales[i] = load_vectors(norm.post_norm_at, i * LANES + lane);
            precise float squares = 0;
            [[unroll]] for (uint i = 0; i < EACH; ++i) squares += squares_of(added[i]);
            precise float root = sqrt(workgroup_sum(squares) / float(norm.width) + norm.post_eps);
            if (WIDE)
                [[unroll]] for (uint i = 0; i < EACH; ++i)
                    post_scales[i] = load_vectors(norm.post_norm_at, i * LANES + lane);
            [[unroll]] for (uint i = 0; i < EACH; ++i) added[i] = added[i] / root * post_scales[i];
        }
        [[unroll]] for (uint i = 0; i < EACH; ++i) {
            values[i] += added[i];
            uint quad = i * LANES + lane;
            if (WHOLE) {
                if (4 * quad < norm.width) hidden4[first / 4 + quad] = values[i];
            } else {
                for (uint e = 0; e < 4 && 4 * quad + e < norm.width; ++e) hidden[first + 4 * quad + e] = values[i][e];
            }
        }
    }
    if (norm.weight_at == NONE) return;

    if (!ASKS_EARLY)
        [[unroll]] for (uint i = 0; i < EACH; ++i) scales[i] = load_weight(norm.weight_at, i * LANES + lane);
    precise float squares = 0;
    [[unroll]] for (uint i = 0; i < EACH; ++i) squares += squares_of(values[i]);
    precise float root = sqrt(workgroup_sum(squares) / float(norm.width) + norm.eps);
    float bound = 0;
    [[unroll]] for (uint i = 0; i < EACH; i += QUADS) {
        vec4 normed[QUADS];
        [[unroll]] for (uint e = 0; e < QUADS; ++e)
            normed[e] = i + e < EACH ? values[min(i + e, EACH - 1)] / root * scales[min(i + e, EACH - 1)] : vec4(0);
        bound = max(bound, store_quads(norm.outputs, index, i * LANES + lane, blocks, normed));
    }
    if ((norm.outputs & AS_BYTES) == 0) return;
    bound = workgroup_max(bound);
    for (uint i = lane; i < (blocks + 31) / 32; i += LANES) store_bound(index, blocks, i, bound);
}
