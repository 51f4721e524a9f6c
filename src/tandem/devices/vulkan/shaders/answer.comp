// A row's answer: its candidates, and the masses of all chunks added up; a greedy row's token goes to its slot.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "step.glsl"
#include "sampling.glsl"

const uint ANSWER_HEAD = 6, ANSWER_WORDS = ANSWER_HEAD + 2 * MOST;

layout(set = 0, binding = 2) readonly buffer Chosen { uvec2 chosen[]; };
layout(set = 0, binding = 3) readonly buffer Parts { uvec4 parts[]; };
layout(set = 0, binding = 4) writeonly buffer Answers { uint answers[]; };
layout(set = 0, binding = 5) writeonly buffer Slots { int slots[]; };

layout(push_constant) uniform Push {
    uint chunks;
    uint slot_count;
};

uvec2 add(uvec2 a, uvec2 b) {
    uint carry;
    uint low = uaddCarry(a.x, b.x, carry);
    return uvec2(low, a.y + b.y + carry);
}

void main() {
    uint index = gl_WorkGroupID.y, lane = gl_LocalInvocationID.x;
    if (index >= batch_samples()) return;
    uint k = asked_candidates(index), flags = asked_flags(index), at = index * ANSWER_WORDS;
    uint highest = chosen[index * MOST].x;
    bool bad = highest == 0u;
    for (uint i = lane; i < k; i += LANES) {
        uvec2 place = chosen[index * MOST + i];
        answers[at + ANSWER_HEAD + 2 * i] = place.y;
        answers[at + ANSWER_HEAD + 2 * i + 1] = logit_bits(place.x);
    }
    if (lane != 0u) return;
    uvec4 total = uvec4(0);
    if (k != 0u && (flags & (TOTAL | RAW_TOTAL)) != 0u && !bad && highest != MINUS_INFINITY) {
        for (uint chunk = 0; chunk < chunks; ++chunk) {
            uvec4 part = parts[index * chunks + chunk];
            total = uvec4(add(total.xy, part.xy), add(total.zw, part.zw));
        }
    }
    answers[at] = k;
    answers[at + 1] = uint(k != 0u && bad);
    for (uint i = 0; i < 4; ++i) answers[at + 2 + i] = total[i];
    uint slot = sample_slot(index);
    if (k != 0u && (flags & TAKES_SLOT) != 0u && !bad && slot < slot_count) slots[slot] = int(chosen[index * MOST].y);
}
