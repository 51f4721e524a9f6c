// The KV pages of one layer. A page is [keys, values][KV heads][positions of a page][head size], float16 pairs or
// float32; pages lie in up to four bindings, `chunk_pages` of them in each.
layout(constant_id = 1) const uint HEAD_DIM = 64;
layout(constant_id = 2) const bool KV_FLOAT32 = false;
const uint HEAD_WORDS = KV_FLOAT32 ? HEAD_DIM : HEAD_DIM / 2;

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

// (binding, first word in it) of a head's key (kind 0) or value (kind 1) at a position.
uvec2 kv_place(KvShape kv, uint page, uint kind, uint head, uint position) {
    uint row = (kind * kv.kv_heads + head) * kv.page_size + position % kv.page_size;
    uint page_words = 2 * kv.kv_heads * kv.page_size * HEAD_WORDS;
    return uvec2(page / kv.chunk_pages, page % kv.chunk_pages * page_words + row * HEAD_WORDS);
}

uint kv_word(uvec2 place, uint word) {
    switch (place.x) {
        case 0: return pages0[place.y + word];
        case 1: return pages1[place.y + word];
        case 2: return pages2[place.y + word];
        default: return pages3[place.y + word];
    }
}

void set_kv_word(uvec2 place, uint word, uint value) {
    switch (place.x) {
        case 0: pages0[place.y + word] = value; break;
        case 1: pages1[place.y + word] = value; break;
        case 2: pages2[place.y + word] = value; break;
        default: pages3[place.y + word] = value;
    }
}

// Elements 2i and 2i + 1.
vec2 kv_pair(uvec2 place, uint i) {
    if (KV_FLOAT32) return uintBitsToFloat(uvec2(kv_word(place, 2 * i), kv_word(place, 2 * i + 1)));
    return unpackHalf2x16(kv_word(place, i));
}

void set_kv_pair(uvec2 place, uint i, vec2 pair) {
    if (KV_FLOAT32) {
        set_kv_word(place, 2 * i, floatBitsToUint(pair.x));
        set_kv_word(place, 2 * i + 1, floatBitsToUint(pair.y));
    } else {
        set_kv_word(place, i, packHalf2x16(pair));
    }
}
