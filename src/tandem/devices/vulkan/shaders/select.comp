// A row's first k places, in two rounds: of each chunk of its logits, then (FINAL) of what the chunks gave, in order.
// With k of 1 that is a minimum; otherwise the k-th place is found byte by byte by counting (a radix select). Of a row that
// is drawn from as a whole: the token of the highest logit, then the places by score of those of the DRAWN highest scores.
#version 460
#extension GL_EXT_control_flow_attributes : require
#extension GL_GOOGLE_include_directive : require
#include "step.glsl"
#include "sampling.glsl"
#include "noise.glsl"

layout(constant_id = 1) const bool FINAL = false;

layout(set = 0, binding = 2) readonly buffer Source { uint source[]; };  // logits, or places of all chunks
layout(set = 0, binding = 3) readonly buffer Masks { uint masks[]; };
layout(set = 0, binding = 4) writeonly buffer Places { uvec2 places[]; };  // MOST for each chunk, or row

layout(push_constant) uniform Push {
    uint vocab;
    uint chunk_tokens;
    uint chunks;
};

const uint AT_ONCE = 8;

shared uvec2 kept[MOST];
shared uint counts[256];
shared uint sums[16];
shared uvec2 lowest[LANES];
shared uint found;

uvec2 place_at(uint index, uint k, int mask, uint i) {
    if (FINAL) {
        uint at = 2 * ((index * chunks + i / k) * MOST + i % k);
        return uvec2(source[at], source[at + 1]);
    }
    uint token = gl_WorkGroupID.x * chunk_tokens + i;
    uint word = descending(source[index * vocab + token]);
    if (word != 0u && !ALLOWS(masks, mask, vocab, token)) word = MINUS_INFINITY;
    return uvec2(word, token);
}

uint byte_of(uvec2 place, uint pass) { return (pass < 4 ? place.x >> (24 - 8 * pass) : place.y >> (56 - 8 * pass)) & 255u; }

// Whether the bytes before `pass` are those of the prefix.
bool matches(uvec2 place, uvec2 prefix, uint pass) {
    if (pass == 0) return true;
    if (pass < 4) return place.x >> (32 - 8 * pass) == prefix.x >> (32 - 8 * pass);
    if (place.x != prefix.x || pass == 4) return place.x == prefix.x;
    return place.y >> (64 - 8 * pass) == prefix.y >> (64 - 8 * pass);
}

// The first DRAWN places by score, in order.
struct Best {
    uvec2 places[DRAWN];
};
shared Best best_of[LANES];

void insert(inout Best best, uvec2 place) {
    if (!before(place, best.places[DRAWN - 1])) return;
    [[unroll]] for (uint i = 0; i < DRAWN; ++i) {
        bool first = before(place, best.places[i]);
        uvec2 other = best.places[i];
        if (first) best.places[i] = place;
        if (first) place = other;
    }
}

void insert_token(inout Best best, inout uvec2 first, uint index, uint token, int mask, uint word) {
    uint logit = source[index * vocab + token];
    uvec2 place = uvec2(descending(logit), token);
    if (place.x != 0u && !ALLOWS(masks, mask, vocab, token)) place.x = MINUS_INFINITY;
    if (before(place, first)) first = place;
    if (place.x == 0u || place.x == MINUS_INFINITY) {
        insert(best, place);
        return;
    }
    float score = uintBitsToFloat(logit) * asked_float(index, 2) + gumbel(word);
    insert(best, uvec2(descending(floatBitsToUint(score)), token));
}

void draw(uint index, uint target, int mask) {
    uint lane = gl_LocalInvocationID.x;
    uvec2 first = uvec2(0xffffffffu);
    Best best;
    [[unroll]] for (uint i = 0; i < DRAWN; ++i) best.places[i] = uvec2(0xffffffffu);
    if (FINAL) {
        for (uint chunk = lane; chunk < chunks; chunk += LANES) {
            uint at = 2 * (index * chunks + chunk) * MOST;
            uvec2 place = uvec2(source[at], source[at + 1]);
            if (before(place, first)) first = place;
            [[unroll]] for (uint i = 1; i <= DRAWN; ++i) insert(best, uvec2(source[at + 2 * i], source[at + 2 * i + 1]));
        }
    } else {
        // Four tokens share a block of words.
        uint start = gl_WorkGroupID.x * chunk_tokens, stop = min(start + chunk_tokens, vocab);
        for (uint i = lane; i < chunk_tokens / 4; i += LANES) {
            uint token = start + 64 * (i / 16) + i % 16;
            uvec4 words = noise_words(index, token);
            [[unroll]] for (uint e = 0; e < 4; ++e)
                if (token + 16 * e < stop) insert_token(best, first, index, token + 16 * e, mask, words[e]);
        }
    }
    lowest[lane] = first;
    best_of[lane] = best;
    for (uint width = LANES / 2; width > 0; width /= 2) {
        barrier();
        if (lane < width) {
            if (before(lowest[lane + width], lowest[lane])) lowest[lane] = lowest[lane + width];
            Best other = best_of[lane + width];
            [[unroll]] for (uint i = 0; i < DRAWN; ++i) insert(best, other.places[i]);
            best_of[lane] = best;
        }
    }
    if (lane != 0u) return;
    places[target] = lowest[0];
    [[unroll]] for (uint i = 0; i < DRAWN; ++i) places[target + 1 + i] = best.places[i];
}

void main() {
    uint index = gl_WorkGroupID.y, lane = gl_LocalInvocationID.x;
    if (index >= batch_samples()) return;
    uint k = asked_candidates(index);
    if (k == 0u) return;
    int mask = asked_mask(index);
    uint count = FINAL ? chunks * k : min(chunk_tokens, vocab - gl_WorkGroupID.x * chunk_tokens);
    uint target = (FINAL ? index : index * chunks + gl_WorkGroupID.x) * MOST;
    uvec2 last = uvec2(0xffffffffu);

    if ((asked_flags(index) & BY_SCORE) != 0u) {
        draw(index, target, mask);
        return;
    }
    if (k == 1u) {
        uvec2 first = last;
        // Many are asked for before one is looked at.
        for (uint i = lane; i < count; i += LANES * AT_ONCE) {
            uvec2 these[AT_ONCE];
            [[unroll]] for (uint e = 0; e < AT_ONCE; ++e) these[e] = place_at(index, k, mask, min(i + e * LANES, count - 1));
            [[unroll]] for (uint e = 0; e < AT_ONCE; ++e)
                if (before(these[e], first)) first = these[e];
        }
        lowest[lane] = first;
        for (uint width = LANES / 2; width > 0; width /= 2) {
            barrier();
            if (lane < width && before(lowest[lane + width], lowest[lane])) lowest[lane] = lowest[lane + width];
        }
        if (lane == 0u) places[target] = lowest[0];
        return;
    }

    if (count > k) {
        uvec2 prefix = uvec2(0);
        uint need = k;
        for (uint pass = 0; pass < 8; ++pass) {
            for (uint i = lane; i < 256; i += LANES) counts[i] = 0;
            barrier();
            for (uint i = lane; i < count; i += LANES) {
                uvec2 place = place_at(index, k, mask, i);
                if (matches(place, prefix, pass)) atomicAdd(counts[byte_of(place, pass)], 1);
            }
            barrier();
            if (lane < 16) {
                uint sum = 0;
                [[unroll]] for (uint i = 0; i < 16; ++i) sum += counts[lane * 16 + i];
                sums[lane] = sum;
            }
            barrier();
            uint part = 0;
            while (sums[part] < need) need -= sums[part++];
            uint byte = part * 16;
            while (counts[byte] < need) need -= counts[byte++];
            bool whole = counts[byte] == need;
            uint rest = pass < 4 ? 24 - 8 * pass : 56 - 8 * pass;
            if (pass < 4) prefix.x |= byte << rest;
            else prefix.y |= byte << rest;
            barrier();
            // The last place that may belong to the first k: all bits behind the prefix set.
            last = pass < 4 ? uvec2(prefix.x | ((1u << rest) - 1u), 0xffffffffu)
                            : uvec2(prefix.x, prefix.y | ((1u << rest) - 1u));
            if (whole) break;
        }
    }
    if (lane < MOST) kept[lane] = uvec2(0xffffffffu);
    if (lane == 0u) found = 0u;
    barrier();
    for (uint i = lane; i < count; i += LANES) {
        uvec2 place = place_at(index, k, mask, i);
        if (!before(last, place)) {
            uint at = atomicAdd(found, 1);
            if (at < MOST) kept[at] = place;
        }
    }
    barrier();
    for (uint i = lane; i < k; i += LANES) {
        uint rank = i;
        if (FINAL) {
            rank = 0;
            for (uint j = 0; j < k; ++j) rank += uint(before(kept[j], kept[i]));
        }
        places[target + rank] = kept[i];
    }
}
