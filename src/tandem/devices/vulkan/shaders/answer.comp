// A row's answer: its candidates, and the masses of all chunks added up; and a token to its slot: the likeliest, or the one
// that noise chooses, as tandem/devices/candidates.py says. Noise is float32 here: the host looks whether it agrees.
#version 460
#extension GL_EXT_control_flow_attributes : require
#extension GL_GOOGLE_include_directive : require
#include "step.glsl"
#include "sampling.glsl"
#include "noise.glsl"
#include "mass_sum.glsl"

const uint ANSWER_HEAD = 7, ANSWER_WORDS = ANSWER_HEAD + 2 * MOST, TAKEN = 6;
const float NOTHING = -3.0e38;

layout(set = 0, binding = 2) readonly buffer Chosen { uvec2 chosen[]; };
layout(set = 0, binding = 3) readonly buffer Parts { uvec4 parts[]; };
layout(set = 0, binding = 4) writeonly buffer Answers { uint answers[]; };
layout(set = 0, binding = 5) writeonly buffer Slots { int slots[]; };
layout(set = 0, binding = 6) readonly buffer Logits { uint logits[]; };

layout(push_constant) uniform Push {
    uint vocab;
    uint chunks;
    uint slot_count;
};

shared float mass_of_candidates[MOST];
shared float scores[MOST];

// Of all chunks, for lane 0; every lane comes here.
uvec4 added_up(uint index, uint part) {
    uvec4 total = uvec4(0);
    for (uint chunk = gl_LocalInvocationID.x; chunk < chunks; chunk += LANES)
        total = add(total, parts[(index * chunks + chunk) * MASSES + part]);
    return workgroup_mass(total);
}

float approximate(uvec2 mass) { return float(mass.y) * 4294967296.0 + float(mass.x); }

// Of a row that is drawn from as a whole: its candidates, and the first of the drawn that top-p keeps. Every lane comes
// here, and the first one tells.
int drawn(uint index, uint at, bool weighed, uvec2 total) {
    float top_p = asked_top_p(index), target = top_p * approximate(total);
    int taken = -1;
    [[unroll]] for (uint i = 0; i < DRAWN; i += 2) {
        uvec4 ahead = weighed ? added_up(index, 1 + i / 2) : uvec4(0);
        [[unroll]] for (uint e = 0; e < 2 && gl_LocalInvocationID.x == 0u; ++e) {
            uvec2 mass = e == 0 ? ahead.xy : ahead.zw;
            uvec2 place = chosen[index * MOST + 1 + i + e];
            uint to = at + ANSWER_HEAD + 2 * (1 + i + e);
            answers[to] = place.y;
            answers[to + 1] = logit_bits(place_by_logit(place, logits[index * vocab + place.y]).x);
            answers[to + 2 * DRAWN] = mass.x;
            answers[to + 2 * DRAWN + 1] = mass.y;
            if (taken < 0 && (top_p >= 1.0 || approximate(mass) < target)) taken = int(place.y);
        }
    }
    return taken;
}

// The one that noise chooses among candidates by logit. Every lane comes here, and the first one tells.
int chosen_by_noise(uint index, uint k, uint flags, uvec2 total) {
    uint lane = gl_LocalInvocationID.x, kept = min(asked_kept(index), k);
    float highest = uintBitsToFloat(logit_bits(chosen[index * MOST].x)), inverse = asked_float(index, 2);
    for (uint i = lane; i < kept; i += LANES) {
        uvec2 place = chosen[index * MOST + i];
        float d = (uintBitsToFloat(logit_bits(place.x)) - highest) * inverse;
        mass_of_candidates[i] = exp(max(d, -80.0)) * 1099511627776.0;
        scores[i] = i == 0u || d >= asked_floor(index) ? d + noise_of(index, place.y) : NOTHING;
    }
    barrier();
    if (lane != 0u) return -1;
    float top_p = asked_top_p(index), target = top_p * approximate(total);
    if (top_p < 1.0 && (flags & TOTAL) == 0u) {
        float all = 0.0;
        for (uint i = 0; i < kept; ++i) all += mass_of_candidates[i];
        target = top_p * all;
    }
    uint best = 0;
    float mass = mass_of_candidates[0];
    for (uint i = 1; i < kept && (top_p >= 1.0 || mass < target); ++i) {
        mass += mass_of_candidates[i];
        if (scores[i] > scores[best]) best = i;
    }
    return int(chosen[index * MOST + best].y);
}

void main() {
    uint index = gl_WorkGroupID.y, lane = gl_LocalInvocationID.x;
    if (index >= batch_samples()) return;
    uint k = asked_candidates(index), flags = asked_flags(index), at = index * ANSWER_WORDS;
    uint highest = chosen[index * MOST].x;
    bool by_score = (flags & BY_SCORE) != 0u, bad = highest == 0u, any = k != 0u && !bad && highest != MINUS_INFINITY;
    for (uint i = lane; i < (by_score ? 1u : k); i += LANES) {
        uvec2 place = chosen[index * MOST + i];
        answers[at + ANSWER_HEAD + 2 * i] = place.y;
        answers[at + ANSWER_HEAD + 2 * i + 1] = logit_bits(place.x);
    }
    uvec4 total = any && (flags & (TOTAL | RAW_TOTAL)) != 0u ? added_up(index, 0) : uvec4(0);
    int token = any ? int(chosen[index * MOST].y) : -1;
    if (any && by_score) {
        token = drawn(index, at, (flags & TOTAL) != 0u, total.xy);
    } else if (any && (flags & NOISE) != 0u) {
        token = chosen_by_noise(index, k, flags, total.xy);
    }
    if (lane != 0u) return;
    bool takes = (flags & TAKES_SLOT) != 0u && token >= 0;
    answers[at] = k;
    answers[at + 1] = uint(k != 0u && bad);
    for (uint i = 0; i < 4; ++i) answers[at + 2 + i] = total[i];
    answers[at + TAKEN] = takes ? uint(token) : 0xffffffffu;
    uint slot = sample_slot(index);
    if (takes && slot < slot_count) slots[slot] = token;
}
