// Rows of activations to int8, for products with quantized weights: each block of 32 gets a scale, amax / 127, its
// integers, round-half-even(x * (127 / amax)), and the sums of their halves. Where amax is at most 2^-120 (whose
// reciprocal would overflow) the block counts as zero. A row is the words of all blocks' integers, then (scale, sums).
#version 460
#extension GL_GOOGLE_include_directive : require
#include "step.glsl"

layout(set = 0, binding = 1) readonly buffer X { vec4 x[]; };
layout(set = 0, binding = 2) writeonly buffer Q { uint q[]; };

layout(push_constant) uniform Push {
    uint blocks;
    uint q_stride;  // words
    uint sampled;
};

void main() {
    uint block = gl_GlobalInvocationID.x, row = gl_WorkGroupID.y;
    if (row >= (sampled != 0 ? batch_samples() : batch_rows()) || block >= blocks) return;
    vec4 values[8], largest = vec4(0);
    for (uint i = 0; i < 8; ++i) {
        values[i] = x[(row * blocks + block) * 8 + i];
        largest = max(largest, abs(values[i]));
    }
    float amax = max(max(largest.x, largest.y), max(largest.z, largest.w));
    bool zero = amax <= uintBitsToFloat(0x03800000u);
    float inverse = zero ? 0.0 : 127.0 / amax;
    ivec2 sums = ivec2(0);
    for (uint i = 0; i < 8; ++i) {
        ivec4 n = ivec4(roundEven(values[i] * inverse));
        sums[i / 4] += n.x + n.y + n.z + n.w;
        n &= 0xff;
        q[row * q_stride + block * 8 + i] = uint(n.x | n.y << 8 | n.z << 16 | n.w << 24);
    }
    uint at = row * q_stride + blocks * 8 + block * 2;
    q[at] = floatBitsToUint(zero ? 0.0 : amax / 127.0);
    q[at + 1] = uint(sums.x & 0xffff) | uint(sums.y) << 16;
}
