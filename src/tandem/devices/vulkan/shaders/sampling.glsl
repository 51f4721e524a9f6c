// What a step asks of its sampled rows; tandem/devices/candidates.py lays it out. Logits are handled by their bits, so
// that no driver's treatment of NaN, -0 or subnormals shows.
const uint ASK_WORDS = 16, MOST = 64, DRAWN = 4;
// Of a chunk: total and raw total, then what comes before the drawn tokens, two each.
const uint MASSES = 1 + DRAWN / 2;
const uint TOTAL = 1, RAW_TOTAL = 2, TAKES_SLOT = 4, NOISE = 8, BY_SCORE = 16;
const uint MINUS_INFINITY = 0xff800000u;

layout(set = 0, binding = 1) readonly buffer Asks { int asks[]; };

uint ask_word(uint index, uint word) { return uint(asks[index * ASK_WORDS + word]); }
uint asked_candidates(uint index) { return ask_word(index, 0); }
uint asked_flags(uint index) { return ask_word(index, 1); }
float asked_float(uint index, uint word) { return intBitsToFloat(asks[index * ASK_WORDS + word]); }
int asked_mask(uint index) { return asks[index * ASK_WORDS + 3]; }

uint asked_kept(uint index) { return ask_word(index, 13); }
float asked_top_p(uint index) { return asked_float(index, 14); }
float asked_floor(uint index) { return asked_float(index, 15); }

bool not_finite(uint bits) { return bits == 0x7f800000u || (bits & 0x7fffffffu) > 0x7f800000u; }

// A token's place in the order (logit descending, id ascending): smaller comes first. A logit that is not finite comes
// before all others, a word of 0.
uint descending(uint bits) {
    if (not_finite(bits)) return 0u;
    if (bits == 0x80000000u) bits = 0u;
    return (bits & 0x80000000u) != 0u ? bits : ~(bits ^ 0x80000000u);
}
uint logit_bits(uint word) { return (word & 0x80000000u) != 0u ? word : ~word ^ 0x80000000u; }
// Whether a mask (row, or -1) allows a token.
#define ALLOWS(masks, mask, vocab, token) \
    (mask < 0 || (masks[uint(mask) * ((vocab + 31) / 32) + (token) / 32] >> ((token) & 31u) & 1u) != 0u)

bool before(uvec2 a, uvec2 b) { return a.x < b.x || (a.x == b.x && a.y < b.y); }

// The place by logit of a token that was drawn, given its place by score.
uvec2 place_by_logit(uvec2 drawn, uint logit) {
    return uvec2(drawn.x == 0u || drawn.x == MINUS_INFINITY ? drawn.x : descending(logit), drawn.y);
}
