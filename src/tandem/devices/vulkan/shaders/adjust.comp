// Bias, penalties and stop tokens, on the few logits of a row that they change, in place; afterwards (UNDO) those get
// their old values back, for the rows that the host wants whole.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "step.glsl"
#include "sampling.glsl"

layout(constant_id = 1) const bool UNDO = false;
const uint ADJUSTMENT_WORDS = 5, COUNTED = 1, STOP = 2;

layout(set = 0, binding = 2) buffer Adjustments { uint adjustments[]; };
layout(set = 0, binding = 3) buffer Logits { uint logits[]; };

layout(push_constant) uniform Push { uint vocab; };

// a / b for a > 0 and b > 0, correctly rounded, which GLSL's is not.
float divide(float a, float b) {
    uint x = floatBitsToUint(a), y = floatBitsToUint(b);
    uint m = (x & 0x7fffffu) | 0x800000u, divisor = (y & 0x7fffffu) | 0x800000u;
    int exponent = int(x >> 23) - int(y >> 23) + 127;
    if (m < divisor) {
        m <<= 1;
        --exponent;
    }
    if (x < 0x800000u || exponent <= 0) return a / b;  // subnormal: what the driver makes of it
    if (exponent >= 255) return uintBitsToFloat(0x7f800000u);
    uint quotient = 0;
    for (uint i = 0; i < 25; ++i) {
        quotient <<= 1;
        if (m >= divisor) {
            m -= divisor;
            quotient |= 1u;
        }
        m <<= 1;
    }
    uint rounded = quotient >> 1;
    if ((quotient & 1u) != 0u && (m != 0u || (rounded & 1u) != 0u)) ++rounded;
    return uintBitsToFloat((uint(exponent) << 23) + (rounded - 0x800000u));
}

uint adjusted(uint bits, uint kind, uint produced, float bias, uint index) {
    // One that is not finite fails the row, whatever it would become.
    if (not_finite(bits)) return 0x7f800000u;
    if (bits == MINUS_INFINITY || (kind & STOP) != 0u) return MINUS_INFINITY;
    precise float x = uintBitsToFloat(bits) + bias;
    if ((kind & COUNTED) != 0u) {
        float repetition = asked_float(index, 6);
        precise float multiplied = x * repetition;
        x = x > 0.0 ? divide(x, repetition) : multiplied;
    }
    if (produced > 0u) {
        precise float frequency = asked_float(index, 7) * float(produced);
        x = x - frequency;
        x = x - asked_float(index, 8);
    }
    return floatBitsToUint(x);
}

void main() {
    uint index = gl_WorkGroupID.y;
    if (index >= batch_samples() || asked_candidates(index) == 0u) return;
    uint first = ask_word(index, 4), count = ask_word(index, 5);
    for (uint i = gl_GlobalInvocationID.x; i < count; i += gl_NumWorkGroups.x * LANES) {
        uint at = (first + i) * ADJUSTMENT_WORDS, logit = index * vocab + adjustments[at];
        if (UNDO) {
            logits[logit] = adjustments[at + 4];
        } else {
            uint bits = logits[logit];
            adjustments[at + 4] = bits;
            logits[logit] =
                adjusted(bits, adjustments[at + 1], adjustments[at + 2], uintBitsToFloat(adjustments[at + 3]), index);
        }
    }
}
