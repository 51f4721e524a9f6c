// product.comp for quantized weights, with activations that quantize.comp has made 8-bit: exact integer dots, scaled
// in float32. Lanes and order of the sum are those of product.comp.
#version 460
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_spirv_intrinsics : require
#include "step.glsl"
#include "weights.glsl"
#include "math.glsl"

layout(constant_id = 2) const uint ROWS = 1;
const uint SHARE = 16;
// What quants are stored above, where that is one number for the whole type.
const int ZERO = TYPE == Q4_0 ? 8 : TYPE == Q5_0 ? 16 : TYPE == Q6_K ? 32 : 0;
const bool HAS_MINIMUM = TYPE == Q4_1 || TYPE == Q5_1 || TYPE == Q4_K || TYPE == Q5_K;

layout(set = 0, binding = 2) readonly buffer Words8 { uint q[]; };
layout(set = 0, binding = 2) readonly buffer Quads8 { uvec4 q4[]; };
layout(set = 0, binding = 3) writeonly buffer Y { float y[]; };

layout(push_constant) uniform Push {
    uint blocks;     // of a row of W
    uint outputs;    // rows of W in this binding
    uint row_words;  // words of a row of W
    uint q_stride;   // words of a row of activations
    uint y_stride;   // of a row of y
    uint y_first;    // where the first output goes in a row of y
    uint sampled;    // 1: the rows are the batch's samples
    float softcap;   // 0: none
};

// OpSDot of four packed signed bytes (SPV_KHR_integer_dot_product).
spirv_instruction(extensions = ["SPV_KHR_integer_dot_product"], capabilities = [6018, 6019], id = 4450)
int packed_dot(uint a, uint b, spirv_literal int format);

int dot_quad(uvec4 a, uvec4 b) {
    return packed_dot(a.x, b.x, 0) + packed_dot(a.y, b.y, 0) + packed_dot(a.z, b.z, 0) + packed_dot(a.w, b.w, 0);
}

// A block's quants as bytes: elements 0..15 and 16..31.
void unpack_bytes(uint row, uint block, out uvec4 low, out uvec4 high) {
    if (TYPE == Q8_0) {
        low = quads[row / 4 + block * 2];
        high = quads[row / 4 + block * 2 + 1];
        return;
    }
    uvec4 packed = quads[row / 4 + block];
    low = packed & 0x0f0f0f0fu;
    high = packed >> 4 & 0x0f0f0f0fu;
    for (uint w = 0; w < 4; ++w) {
        uvec2 bits = high_bits(row, block, blocks, w);
        low[w] |= bits.x;
        high[w] |= bits.y;
    }
}

shared float parts[ROWS * LANES];

void main() {
    uint lane = gl_LocalInvocationID.x, part = lane % SHARE;
    uint output_index = gl_WorkGroupID.x * (LANES / SHARE) + lane / SHARE;
    uint count = sampled != 0 ? batch_samples() : batch_rows(), first = gl_WorkGroupID.y * ROWS;
    if (first >= count) return;

    precise float sums[ROWS];
    for (uint r = 0; r < ROWS; ++r) sums[r] = 0;
    if (output_index < outputs) {
        for (uint block = part; block < blocks; block += SHARE) {
            uvec4 low, high;
            unpack_bytes(output_index * row_words, block, low, high);
            vec4 factors = block_factors(output_index * row_words, block, blocks);
            for (uint r = 0; r < ROWS; ++r) {
                uint row = min(first + r, count - 1) * q_stride, at = row + blocks * 8 + block * 2;
                int halves = int(q[at + 1]);
                ivec2 totals = ivec2(halves << 16, halves) >> 16;
                int d0 = dot_quad(low, q4[row / 4 + block * 2]) - ZERO * totals.x;
                int d1 = dot_quad(high, q4[row / 4 + block * 2 + 1]) - ZERO * totals.y;
                precise float value = TYPE == Q6_K ? fma(factors.x, float(d0), factors.z * float(d1)) : factors.x * float(d0 + d1);
                if (HAS_MINIMUM) value = fma(factors.y, float(totals.x + totals.y), value);
                sums[r] = fma(uintBitsToFloat(q[at]), value, sums[r]);
            }
        }
    }
    for (uint r = 0; r < ROWS; ++r) parts[r * LANES + lane] = sums[r];
    for (uint width = SHARE / 2; width > 0; width /= 2) {
        barrier();
        if (part < width)
            for (uint r = 0; r < ROWS; ++r) parts[r * LANES + lane] += parts[r * LANES + lane + width];
    }
    if (part == 0 && output_index < outputs) {
        for (uint r = 0; r < ROWS && first + r < count; ++r) {
            float value = parts[r * LANES + lane];
            if (softcap != 0.0) value = softcap * tanh_exact(value / softcap);
            y[(first + r) * y_stride + y_first + output_index] = value;
        }
    }
}
