// The masses of a chunk of a row's logits relative to its highest, at the asked temperature and at temperature 1:
// counts of 2^-40, native/kernels/logit_row.h's mass_of bit for bit, in sums of two words.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "step.glsl"
#include "sampling.glsl"

layout(set = 0, binding = 2) readonly buffer Logits { uint logits[]; };
layout(set = 0, binding = 3) readonly buffer Masks { uint masks[]; };
layout(set = 0, binding = 4) readonly buffer Chosen { uvec2 chosen[]; };
layout(set = 0, binding = 5) writeonly buffer Parts { uvec4 parts[]; };

layout(push_constant) uniform Push {
    uint vocab;
    uint chunk_tokens;
    uint chunks;
};

shared uvec4 tree[LANES];

uvec2 add(uvec2 a, uvec2 b) {
    uint carry;
    uint low = uaddCarry(a.x, b.x, carry);
    return uvec2(low, a.y + b.y + carry);
}

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
    uvec2 total = uvec2(0), raw_total = uvec2(0);
    for (uint token = start + lane; token < stop; token += LANES) {
        uint bits = logits[index * vocab + token];
        if (bits == MINUS_INFINITY) continue;
        if (mask >= 0 && (masks[uint(mask) * ((vocab + 31) / 32) + token / 32] >> (token & 31u) & 1u) == 0u) continue;
        precise float behind = uintBitsToFloat(bits) - highest;
        precise float d = behind * inverse;
        if ((flags & TOTAL) != 0u) total = add(total, mass_of(d));
        if ((flags & RAW_TOTAL) != 0u) raw_total = add(raw_total, mass_of(behind));
    }
    tree[lane] = uvec4(total, raw_total);
    for (uint width = LANES / 2; width > 0; width /= 2) {
        barrier();
        if (lane < width) {
            uvec4 other = tree[lane + width];
            tree[lane] = uvec4(add(tree[lane].xy, other.xy), add(tree[lane].zw, other.zw));
        }
    }
    if (lane == 0u) parts[index * chunks + gl_WorkGroupID.x] = tree[0];
}
