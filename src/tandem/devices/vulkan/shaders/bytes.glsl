// Quantized weights as bytes, for exact integer dots with 8-bit activations.
#include "counted.glsl"

// What quants are stored above, where that is one number for the whole type.
const int ZERO = TYPE == Q4_0 ? 8 : TYPE == Q5_0 ? 16 : TYPE == Q6_K ? 32 : 0;
const bool HAS_MINIMUM = TYPE == Q4_1 || TYPE == Q5_1 || TYPE == Q4_K || TYPE == Q5_K;

// OpSDot of four packed signed bytes (SPV_KHR_integer_dot_product).
spirv_instruction(extensions = ["SPV_KHR_integer_dot_product"], capabilities = [6018, 6019], id = 4450)
int packed_dot(uint a, uint b, spirv_literal int format);

int dot_quad(uvec4 a, uvec4 b, int start) {
    return start + packed_dot(a.x, b.x, 0) + packed_dot(a.y, b.y, 0) + packed_dot(a.z, b.z, 0) + packed_dot(a.w, b.w, 0);
}

// A block's quants as stored: elements 0..15 and 16..31.
void unpack_bytes(uvec2 row, uint block, uint blocks, out uvec4 low, out uvec4 high) {
    if (TYPE == Q8_0) {
        low = row_quad(row, block * 2);
        high = row_quad(row, block * 2 + 1);
    } else {
        join_bits(row_quad(row, block), high_words(row, block, blocks), low, high);
    }
}

// One block's part of an output: quants of weights and activations, the weights' factors, the activations' sums.
float block_value(uvec4 low, uvec4 high, uvec4 x_low, uvec4 x_high, vec4 factors, ivec2 totals) {
    int total = totals.x + totals.y;
    precise float value;
    if (TYPE == Q6_K) {
        float second = counted(dot_quad(high, x_high, COUNTER - ZERO * totals.y));
        value = fma(factors.x, counted(dot_quad(low, x_low, COUNTER - ZERO * totals.x)), factors.z * second);
    } else {
        value = factors.x * counted(dot_quad(high, x_high, dot_quad(low, x_low, COUNTER - ZERO * total)));
    }
    if (HAS_MINIMUM) value = fma(factors.y, float(total), value);
    return value;
}

ivec2 halves(uint packed) { return ivec2(int(packed) << 16, int(packed)) >> 16; }
