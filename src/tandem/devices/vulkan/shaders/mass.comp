// The masses of a chunk of a row's logits relative to its highest, at the asked temperature and at temperature 1:
// counts of 2^-40, native/kernels/logit_row.h's mass_of bit for bit, in sums of two words. Of a row that is drawn from as a
// whole also what comes before each of the drawn tokens.
#version 460
#extension GL_EXT_control_flow_attributes : require
#extension GL_GOOGLE_include_directive : require
#include "step.glsl"
#include "sampling.glsl"
#include "mass_sum.glsl"

layout(set = 0, binding = 2) readonly buffer Logits { uint logits[]; };
layout(set = 0, binding = 3) readonly buffer Masks { uint masks[]; };
layout(set = 0, binding = 4) readonly buffer Chosen { uvec2 chosen[]; };
layout(set = 0, binding = 5) writeonly buffer Parts { uvec4 parts[]; };  // MASSES for each chunk

layout(push_constant) uniform Push {
    uint vocab;
    uint chunk_tokens;
    uint chunks;
};

uvec2 mass_of(float d) {
    const float ROUND = 12582912.0;  // 1.5 * 2^23: adding it rounds to an integer
    precise float x = uintBitsToFloat(min(floatBitsToUint(d), floatBitsToUint(-40.0)));
    precise float scaled = x * 1.44269504088896341;
    precise float t = scaled + ROUND;
    precise float n = t - ROUND;
    precise float high = n * 0.693359375;
    precise float low = n * 2.12194440e-4;
    precise float reduced = x - high;
    precise float r = reduced + low;
    precise float p = 1.9875691500e-4;
    p = p * r + 1.3981999507e-3;
    p = p * r + 8.3334519073e-3;
    p = p * r + 4.1665795894e-2;
    p = p * r + 1.6666665459e-1;
    p = p * r + 5.0000001201e-1;
    precise float square = r * r;
    p = (p * square + r) + 1.0;
    uint e = floatBitsToUint(p) + ((floatBitsToUint(t) - floatBitsToUint(ROUND)) << 23);
    uint exponent = e >> 23, m = (e & 0x7fffffu) | 0x800000u;
    if (exponent >= 110u) {
        uint shift = exponent - 110u;
        return uvec2(m << shift, shift == 0u ? 0u : m >> (32u - shift));
    }
    uint shift = 110u - exponent;
    if (shift > 25u) return uvec2(0);
    uint whole = m >> shift, rest = m & ((1u << shift) - 1u), half_way = 1u << (shift - 1u);
    return uvec2(whole + uint(rest > half_way || (rest == half_way && (whole & 1u) != 0u)), 0u);
}

void main() {
    uint index = gl_WorkGroupID.y, lane = gl_LocalInvocationID.x;
    if (index >= batch_samples() || asked_candidates(index) == 0u) return;
    uint flags = asked_flags(index), highest_word = chosen[index * MOST].x;
    if ((flags & (TOTAL | RAW_TOTAL)) == 0u || highest_word == 0u || highest_word == MINUS_INFINITY) return;
    float highest = uintBitsToFloat(logit_bits(highest_word)), inverse = asked_float(index, 2);
    int mask = asked_mask(index);
    uint start = gl_WorkGroupID.x * chunk_tokens, stop = min(start + chunk_tokens, vocab);
    bool by_score = (flags & BY_SCORE) != 0u;
    uvec2 drawn[DRAWN], ahead[DRAWN];
    [[unroll]] for (uint i = 0; i < DRAWN; ++i) {
        uvec2 place = chosen[index * MOST + 1 + i];
        drawn[i] = by_score ? place_by_logit(place, logits[index * vocab + place.y]) : uvec2(0);
        ahead[i] = uvec2(0);
    }
    uvec2 total = uvec2(0), raw_total = uvec2(0);
    for (uint token = start + lane; token < stop; token += LANES) {
        uint bits = logits[index * vocab + token];
        if (bits == MINUS_INFINITY) continue;
        if (!ALLOWS(masks, mask, vocab, token)) continue;
        precise float behind = uintBitsToFloat(bits) - highest;
        precise float d = behind * inverse;
        if ((flags & RAW_TOTAL) != 0u) raw_total = add(raw_total, mass_of(behind));
        if ((flags & TOTAL) == 0u) continue;
        uvec2 mass = mass_of(d);
        total = add(total, mass);
        if (!by_score) continue;
        uvec2 place = uvec2(descending(bits), token);
        [[unroll]] for (uint i = 0; i < DRAWN; ++i)
            if (before(place, drawn[i])) ahead[i] = add(ahead[i], mass);
    }
    uint target = (index * chunks + gl_WorkGroupID.x) * MASSES;
    uvec4 sum = workgroup_mass(uvec4(total, raw_total));
    if (lane == 0u) parts[target] = sum;
    if (!by_score) return;
    [[unroll]] for (uint i = 0; i < DRAWN; i += 2) {
        sum = workgroup_mass(uvec4(ahead[i], ahead[i + 1]));
        if (lane == 0u) parts[target + 1 + i / 2] = sum;
    }
}
