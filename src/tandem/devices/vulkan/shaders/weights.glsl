// Packed matrices, as packing.py lays them out in panels of 16 rows; binding 1. A block is 32 elements of a row.
layout(constant_id = 1) const uint TYPE = 0;

const uint F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q4_K = 12, Q5_K = 13, Q6_K = 14, BF16 = 30;
const bool HAS_NIBBLES = TYPE >= Q4_0 && TYPE <= Q6_K && TYPE != Q8_0;
const bool HAS_FIFTH = TYPE == Q5_0 || TYPE == Q5_1 || TYPE == Q5_K;

layout(set = 0, binding = 1) readonly buffer Words { uint words[]; };
layout(set = 0, binding = 1) readonly buffer Quads { uvec4 quads[]; };

// A row: the word where its panel begins, and its number there.
const uint PANEL = 16;
uvec2 row_place(uint row, uint row_words) { return uvec2(row / PANEL * PANEL * row_words, row % PANEL); }

// The quad and the word that are `index`th of a row.
uvec4 row_quad(uvec2 row, uint index) { return quads[row.x / 4 + index * PANEL + row.y]; }
uint row_word(uvec2 row, uint index) { return words[row.x + index * PANEL + row.y]; }

vec4 unsigned_bytes(uint w) { return vec4(w & 0xffu, w >> 8 & 0xffu, w >> 16 & 0xffu, w >> 24); }
vec4 signed_bytes(uint w) { return vec4(ivec4(w << 24, w << 16, w << 8, w) >> 24); }

float half_of(uint word, uint index) {
    vec2 pair = unpackHalf2x16(word);
    return index % 2 == 0 ? pair.x : pair.y;
}

// The 6-bit scale and minimum of sub-block i (0..7) in the 12 bytes that follow a K-quant's two halves.
vec2 scale_and_minimum(uvec4 head, uint i) {
    uint low = head.y >> 8 * (i % 4), middle = head.z >> 8 * (i % 4), high = head.w >> 8 * (i % 4);
    uvec2 pair = i < 4 ? uvec2(low, middle) & 63 : uvec2((high & 15) | (low >> 2 & 48), (high >> 4 & 15) | (middle >> 2 & 48));
    return unpackHalf2x16(head.x) * vec2(pair);
}

// The words that hold a block's scales.
uvec4 scale_words(uvec2 row, uint block, uint blocks) {
    if (TYPE == Q4_0 || TYPE == Q5_0 || TYPE == Q8_0)
        return uvec4(row_word(row, blocks * (TYPE == Q8_0 ? 8 : TYPE == Q5_0 ? 5 : 4) + block / 2));
    if (TYPE == Q4_1 || TYPE == Q5_1) return uvec4(row_word(row, blocks * (TYPE == Q5_1 ? 5 : 4) + block));
    if (TYPE == Q4_K || TYPE == Q5_K) return row_quad(row, blocks * (TYPE == Q5_K ? 5 : 4) / 4 + block / 8);
    if (TYPE == Q6_K) {
        uint scales = blocks * 6;
        return uvec4(row_word(row, scales + block / 2), row_word(row, scales + blocks / 2 + block / 16), 0, 0);
    }
    return uvec4(0);
}

// What turns quants q into values: factor.x * q + factor.y for elements 0..15, factor.z * q + factor.w for 16..31.
vec4 factors_of(uvec4 scales, uint block) {
    if (TYPE == Q4_0 || TYPE == Q5_0 || TYPE == Q8_0) {
        float d = half_of(scales.x, block);
        float shift = TYPE == Q8_0 ? 0.0 : TYPE == Q5_0 ? -16.0 * d : -8.0 * d;
        return vec4(d, shift, d, shift);
    }
    if (TYPE == Q4_1 || TYPE == Q5_1) return unpackHalf2x16(scales.x).xyxy;
    if (TYPE == Q4_K || TYPE == Q5_K) {
        vec2 pair = scale_and_minimum(scales, block % 8);
        return vec4(pair.x, -pair.y, pair.x, -pair.y);
    }
    if (TYPE == Q6_K) {
        vec4 four = signed_bytes(scales.x) * half_of(scales.y, block / 8);
        vec2 two = block % 2 == 0 ? four.xy : four.zw;
        return vec4(two.x, -32.0 * two.x, two.y, -32.0 * two.y);
    }
    return vec4(1, 0, 1, 0);
}

vec4 block_factors(uvec2 row, uint block, uint blocks) { return factors_of(scale_words(row, block, blocks), block); }

// The words that hold the bits above the fourth of a block's elements.
uvec2 high_words(uvec2 row, uint block, uint blocks) {
    if (HAS_FIFTH) return uvec2(row_word(row, blocks * 4 + block));
    uint at = row.x + blocks * 4 * PANEL + (block * PANEL + row.y) * 2;
    return TYPE == Q6_K ? uvec2(words[at], words[at + 1]) : uvec2(0);
}

// Those of elements 4w..4w+3 (first half of the block) and 16+4w..: bytes, shifted to bit 4.
uvec2 high_of(uvec2 bits, uint w) {
    if (HAS_FIFTH) return (bits >> uvec2(w, w + 4) & 0x01010101u) << 4;
    return TYPE == Q6_K ? (bits >> 2 * w & 0x03030303u) << 4 : uvec2(0);
}

// Quants as stored, of elements 0..15 and 16..31: from a block's nibbles and its words of high bits.
void join_bits(uvec4 packed, uvec2 bits, out uvec4 low, out uvec4 high) {
    low = packed & 0x0f0f0f0fu;
    high = packed >> 4 & 0x0f0f0f0fu;
    [[unroll]] for (uint w = 0; w < 4; ++w) {
        uvec2 above = high_of(bits, w);
        low[w] |= above.x;
        high[w] |= above.y;
    }
}

// Eight values of an F16 or BF16 matrix.
void unpack_16bit(uvec4 q, out vec4 first, out vec4 second) {
    if (TYPE == F16) {
        first = vec4(unpackHalf2x16(q.x), unpackHalf2x16(q.y));
        second = vec4(unpackHalf2x16(q.z), unpackHalf2x16(q.w));
    } else {
        first = uintBitsToFloat(uvec4(q.x << 16, q.x & 0xffff0000u, q.y << 16, q.y & 0xffff0000u));
        second = uintBitsToFloat(uvec4(q.z << 16, q.z & 0xffff0000u, q.w << 16, q.w & 0xffff0000u));
    }
}

// The 32 values of one block.
void unpack_block(uvec2 row, uint block, uint blocks, out vec4 v[8]) {
    if (TYPE == F32) {
        [[unroll]] for (uint i = 0; i < 8; ++i) v[i] = uintBitsToFloat(row_quad(row, block * 8 + i));
    } else if (TYPE == F16 || TYPE == BF16) {
        [[unroll]] for (uint i = 0; i < 4; ++i) unpack_16bit(row_quad(row, block * 4 + i), v[2 * i], v[2 * i + 1]);
    } else {
        vec4 factors = block_factors(row, block, blocks);
        if (TYPE == Q8_0) {
            uvec4 low = row_quad(row, block * 2), high = row_quad(row, block * 2 + 1);
            [[unroll]] for (uint i = 0; i < 4; ++i) {
                v[i] = signed_bytes(low[i]) * factors.x;
                v[i + 4] = signed_bytes(high[i]) * factors.x;
            }
        } else if (HAS_NIBBLES) {
            uvec4 q = row_quad(row, block);
            uvec2 bits = high_words(row, block, blocks);
            [[unroll]] for (uint w = 0; w < 4; ++w) {
                uvec2 high = high_of(bits, w);
                v[w] = unsigned_bytes((q[w] & 0x0f0f0f0fu) | high.x) * factors.x + factors.y;
                v[w + 4] = unsigned_bytes((q[w] >> 4 & 0x0f0f0f0fu) | high.y) * factors.z + factors.w;
            }
        }
    }
}

// Half of what `unpack_block` gives: elements 16 * part and on.
void unpack_half(uvec2 row, uint block, uint blocks, uint part, out vec4 v[4]) {
    if (TYPE == F32) {
        [[unroll]] for (uint i = 0; i < 4; ++i) v[i] = uintBitsToFloat(row_quad(row, block * 8 + part * 4 + i));
        return;
    }
    if (TYPE == F16 || TYPE == BF16) {
        [[unroll]] for (uint i = 0; i < 2; ++i) unpack_16bit(row_quad(row, block * 4 + part * 2 + i), v[2 * i], v[2 * i + 1]);
        return;
    }
    vec4 factors = block_factors(row, block, blocks);
    vec2 factor = part == 0 ? factors.xy : factors.zw;
    uvec4 q = row_quad(row, TYPE == Q8_0 ? block * 2 + part : block);
    uvec2 bits = high_words(row, block, blocks);
    [[unroll]] for (uint w = 0; w < 4; ++w) {
        if (TYPE == Q8_0) {
            v[w] = signed_bytes(q[w]) * factor.x;
        } else {
            uvec2 high = high_of(bits, w);
            uint quants = (q[w] >> 4 * part & 0x0f0f0f0fu) | (part == 0 ? high.x : high.y);
            v[w] = unsigned_bytes(quants) * factor.x + factor.y;
        }
    }
}
