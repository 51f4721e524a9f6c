// The KV pages of one layer. A page is [keys, values][KV heads][positions of a page][head size], float16 pairs, float32
// or 8-bit; 8-bit ones have a float16 scale for each 32 elements, in the same order behind them all. Pages lie in up to
// four bindings, `chunk_pages` of them in each.
layout(constant_id = 1) const uint HEAD_DIM = 64;
layout(constant_id = 2) const uint KV_TYPE = 0;
layout(constant_id = 3) const uint CHUNKS = 4;

// Lanes that work on one head of a row before attention (heads.glsl).
const uint TEAM = 64;

const uint KV_F16 = 0, KV_F32 = 1, KV_Q8_0 = 2;
const uint HEAD_WORDS = KV_TYPE == KV_F32 ? HEAD_DIM : KV_TYPE == KV_F16 ? HEAD_DIM / 2 : HEAD_DIM / 4;
const uint HEAD_SCALES = KV_TYPE == KV_Q8_0 ? HEAD_DIM / 32 : 0;

// Who reads what it has written says so.
#ifndef PAGES_ACCESS
#define PAGES_ACCESS
#endif

layout(set = 0, binding = 3) PAGES_ACCESS buffer Pages0 { uint pages0[]; };
layout(set = 0, binding = 3) PAGES_ACCESS readonly buffer Wide0 { uvec4 wide0[]; };
layout(set = 0, binding = 4) PAGES_ACCESS buffer Pages1 { uint pages1[]; };
layout(set = 0, binding = 4) PAGES_ACCESS readonly buffer Wide1 { uvec4 wide1[]; };
layout(set = 0, binding = 5) PAGES_ACCESS buffer Pages2 { uint pages2[]; };
layout(set = 0, binding = 5) PAGES_ACCESS readonly buffer Wide2 { uvec4 wide2[]; };
layout(set = 0, binding = 6) PAGES_ACCESS buffer Pages3 { uint pages3[]; };
layout(set = 0, binding = 6) PAGES_ACCESS readonly buffer Wide3 { uvec4 wide3[]; };

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

// Four words; `at` counts such.
uvec4 kv_words(uint chunk, uint at) {
    if (CHUNKS == 1) return wide0[at];
    switch (chunk) {
        case 0: return wide0[at];
        case 1: return wide1[at];
        case 2: return wide2[at];
        default: return wide3[at];
    }
}

void set_kv_word(uint chunk, uint at, uint value) {
    switch (CHUNKS == 1 ? 0u : chunk) {
        case 0: pages0[at] = value; break;
        case 1: pages1[at] = value; break;
        case 2: pages2[at] = value; break;
        default: pages3[at] = value;
    }
}

// Writes the bits of `mask`; another half of the word may be another row's.
void set_kv_bits(uint chunk, uint at, uint mask, uint value) {
    switch (CHUNKS == 1 ? 0u : chunk) {
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

// The words that hold elements 2i and 2i + 1, and what they say.
uvec2 kv_pair_words(uvec3 place, uint i) {
    if (KV_TYPE == KV_F16) return uvec2(kv_word(place.x, place.y + i), 0);
    if (KV_TYPE == KV_F32) return uvec2(kv_word(place.x, place.y + 2 * i), kv_word(place.x, place.y + 2 * i + 1));
    return uvec2(kv_word(place.x, place.y + i / 2), kv_word(place.x, (place.z + i / 16) / 2));
}

vec2 kv_pair_of(uvec2 words, uvec3 place, uint i) {
    if (KV_TYPE == KV_F16) return unpackHalf2x16(words.x);
    if (KV_TYPE == KV_F32) return uintBitsToFloat(words);
    uint word = words.x >> 16 * (i % 2);
    vec2 scales = unpackHalf2x16(words.y);
    return vec2(ivec2(word << 24, word << 16) >> 24) * ((place.z + i / 16) % 2 == 0 ? scales.x : scales.y);
}

vec2 kv_pair(uvec3 place, uint i) { return kv_pair_of(kv_pair_words(place, i), place, i); }

// Elements 4i to 4i + 3.
vec4 kv_quad(uvec3 place, uint i) {
    if (KV_TYPE != KV_Q8_0) return vec4(kv_pair(place, 2 * i), kv_pair(place, 2 * i + 1));
    uint word = kv_word(place.x, place.y + i);
    return vec4(ivec4(word << 24, word << 16, word << 8, word) >> 24) * kv_scale(place, i / 8);
}

// The words that hold elements 8i to 8i + 7 of a head, and what they say: zeros beyond it.
void kv_octet_words(uvec3 place, uint i, out uvec4 first, out uvec4 second) {
    first = second = uvec4(0);
    if (HEAD_DIM % 8 != 0) {
        if (8 * i < HEAD_DIM) first = floatBitsToUint(kv_quad(place, 2 * i));
        if (8 * i + 4 < HEAD_DIM) second = floatBitsToUint(kv_quad(place, 2 * i + 1));
    } else if (8 * i >= HEAD_DIM) {
        return;
    } else if (KV_TYPE == KV_F16) {
        first = kv_words(place.x, place.y / 4 + i);
    } else if (KV_TYPE == KV_F32) {
        first = kv_words(place.x, place.y / 4 + 2 * i);
        second = kv_words(place.x, place.y / 4 + 2 * i + 1);
    } else {
        first.xy = uvec2(kv_word(place.x, place.y + 2 * i), kv_word(place.x, place.y + 2 * i + 1));
        first.z = kv_word(place.x, (place.z + i / 4) / 2);
    }
}

void kv_octet_of(uvec4 first, uvec4 second, uvec3 place, uint i, out vec4 low, out vec4 high) {
    if (HEAD_DIM % 8 != 0 || KV_TYPE == KV_F32) {
        low = uintBitsToFloat(first);
        high = uintBitsToFloat(second);
    } else if (KV_TYPE == KV_F16) {
        low = vec4(unpackHalf2x16(first.x), unpackHalf2x16(first.y));
        high = vec4(unpackHalf2x16(first.z), unpackHalf2x16(first.w));
    } else {
        vec2 scales = unpackHalf2x16(first.z);
        float scale = (place.z + i / 4) % 2 == 0 ? scales.x : scales.y;
        low = vec4(ivec4(first.x << 24, first.x << 16, first.x << 8, first.x) >> 24) * scale;
        high = vec4(ivec4(first.y << 24, first.y << 16, first.y << 8, first.y) >> 24) * scale;
    }
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
