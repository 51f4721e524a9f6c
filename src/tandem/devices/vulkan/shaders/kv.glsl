// The KV pages of one layer. A page is [keys, values][KV heads][positions of a page][head size], float16 pairs, float32
// or 8-bit; 8-bit ones have a float16 scale for each 32 elements, in the same order behind them all. Pages lie in up to
// four bindings, `chunk_pages` of them in each.
layout(constant_id = 1) const uint HEAD_DIM = 64;
layout(constant_id = 2) const uint KV_TYPE = 0;
layout(constant_id = 3) const uint CHUNKS = 4;

const uint KV_F16 = 0, KV_F32 = 1, KV_Q8_0 = 2;
const uint HEAD_WORDS = KV_TYPE == KV_F32 ? HEAD_DIM : KV_TYPE == KV_F16 ? HEAD_DIM / 2 : HEAD_DIM / 4;
const uint HEAD_SCALES = KV_TYPE == KV_Q8_0 ? HEAD_DIM / 32 : 0;

layout(set = 0, binding = 3) buffer Pages0 { uint pages0[]; };
layout(set = 0, binding = 4) buffer Pages1 { uint pages1[]; };
layout(set = 0, binding = 5) buffer Pages2 { uint pages2[]; };
layout(set = 0, binding = 6) buffer Pages3 { uint pages3[]; };

struct KvShape {
    uint group;        // of the batch's page tables
    uint kv_heads;
    uint page_size;
    uint chunk_pages;
};

uint page_of(KvShape kv, uint sequence, uint position) {
    int entry = step_data[6] + int(sequence) * step_data[7] + 4 + 2 * int(kv.group);
    int offset = step_data[entry], first = step_data[entry + 1];
    return uint(step_data[step_data[10] + offset + int(position / kv.page_size) - first]);
}

// (binding, first word in it, first scale in it counted in halves) of a head's key (kind 0) or value (kind 1).
uvec3 kv_place(KvShape kv, uint page, uint kind, uint head, uint position) {
    uint rows = 2 * kv.kv_heads * kv.page_size;
    uint row = (kind * kv.kv_heads + head) * kv.page_size + position % kv.page_size;
    uint first = page % kv.chunk_pages * (rows * HEAD_WORDS + rows * HEAD_SCALES / 2);
    return uvec3(page / kv.chunk_pages, first + row * HEAD_WORDS, 2 * (first + rows * HEAD_WORDS) + row * HEAD_SCALES);
}

// From a key's place to that of its value.
uvec3 value_offset(KvShape kv) {
    uint rows = kv.kv_heads * kv.page_size;
    return uvec3(0, rows * HEAD_WORDS, rows * HEAD_SCALES);
}

uint kv_word(uint chunk, uint at) {
    if (CHUNKS == 1) return pages0[at];
    switch (chunk) {
        case 0: return pages0[at];
        case 1: return pages1[at];
        case 2: return pages2[at];
        default: return pages3[at];
    }
}

void set_kv_word(uint chunk, uint at, uint value) {
    switch (chunk) {
        case 0: pages0[at] = value; break;
        case 1: pages1[at] = value; break;
        case 2: pages2[at] = value; break;
        default: pages3[at] = value;
    }
}

// Writes the bits of `mask`; another half of the word may be another row's.
void set_kv_bits(uint chunk, uint at, uint mask, uint value) {
    switch (chunk) {
        case 0: atomicAnd(pages0[at], ~mask); atomicOr(pages0[at], value); break;
        case 1: atomicAnd(pages1[at], ~mask); atomicOr(pages1[at], value); break;
        case 2: atomicAnd(pages2[at], ~mask); atomicOr(pages2[at], value); break;
        default: atomicAnd(pages3[at], ~mask); atomicOr(pages3[at], value);
    }
}

float kv_scale(uvec3 place, uint block) {
    vec2 pair = unpackHalf2x16(kv_word(place.x, (place.z + block) / 2));
    return (place.z + block) % 2 == 0 ? pair.x : pair.y;
}

// Elements 2i and 2i + 1.
vec2 kv_pair(uvec3 place, uint i) {
    if (KV_TYPE == KV_F16) return unpackHalf2x16(kv_word(place.x, place.y + i));
    if (KV_TYPE == KV_F32)
        return uintBitsToFloat(uvec2(kv_word(place.x, place.y + 2 * i), kv_word(place.x, place.y + 2 * i + 1)));
    uint word = kv_word(place.x, place.y + i / 2) >> 16 * (i % 2);
    return vec2(ivec2(word << 24, word << 16) >> 24) * kv_scale(place, i / 16);
}

// Elements 4i to 4i + 3.
vec4 kv_quad(uvec3 place, uint i) {
    if (KV_TYPE != KV_Q8_0) return vec4(kv_pair(place, 2 * i), kv_pair(place, 2 * i + 1));
    uint word = kv_word(place.x, place.y + i);
    return vec4(ivec4(word << 24, word << 16, word << 8, word) >> 24) * kv_scale(place, i / 8);
}

// `largest`: of the absolute values of the 32 elements that the quad is among.
void set_kv_quad(uvec3 place, uint i, vec4 values, float largest) {
    if (KV_TYPE == KV_F16) {
        set_kv_word(place.x, place.y + 2 * i, packHalf2x16(values.xy));
        set_kv_word(place.x, place.y + 2 * i + 1, packHalf2x16(values.zw));
    } else if (KV_TYPE == KV_F32) {
        for (uint e = 0; e < 4; ++e) set_kv_word(place.x, place.y + 4 * i + e, floatBitsToUint(values[e]));
    } else {
        ivec4 n = ivec4(roundEven(values * (largest > 0.0 ? 127.0 / largest : 0.0))) & 0xff;
        set_kv_word(place.x, place.y + i, uint(n.x | n.y << 8 | n.z << 16 | n.w << 24));
        if (i % 8 == 0) {
            uint half_at = place.z + i / 8, shift = 16 * (half_at % 2);
            uint bits = packHalf2x16(vec2(largest / 127.0, 0)) & 0xffffu;
            set_kv_bits(place.x, half_at / 2, 0xffffu << shift, bits << shift);
        }
    }
}
