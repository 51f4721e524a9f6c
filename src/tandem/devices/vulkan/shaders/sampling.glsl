// What a step asks of its sampled rows; tandem/devices/candidates.py lays it out. Logits are handled by their bits, so
// that no driver's treatment of NaN, -0 or subnormals shows.
const uint ASK_WORDS = 9, MOST = 64;
const uint TOTAL = 1, RAW_TOTAL = 2, TAKES_SLOT = 4;
const uint MINUS_INFINITY = 0xff800000u;

layout(set = 0, binding = 1) readonly buffer Asks { int asks[]; };

uint ask_word(uint index, uint word) { return uint(asks[index * ASK_WORDS + word]); }
uint asked_candidates(uint index) { return ask_word(index, 0); }
uint asked_flags(uint index) { return ask_word(index, 1); }
float asked_float(uint index, uint word) { return intBitsToFloat(asks[index * ASK_WORDS + word]); }
int asked_mask(uint index) { return asks[index * ASK_WORDS + 3]; }

bool not_finite(uint bits) { return bits == 0x7f800000u || (bits & 0x7fffffffu) > 0x7f800000u; }

// A token's place in the order (logit descending, id ascending): smaller comes first. A logit that is not finite comes
// before all others, a word of 0.
uint descending(uint bits) {
    if (not_finite(bits)) return 0u;
    if (bits == 0x80000000u) bits = 0u;
    return (bits & 0x80000000u) != 0u ? bits : ~(bits ^ 0x80000000u);
}
uint logit_bits(uint word) { return (word & 0x80000000u) != 0u ? word : ~word ^ 0x80000000u; }
