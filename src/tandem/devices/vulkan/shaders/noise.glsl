// The sampler's noise, native/kernels/philox.h: the same words, and Gumbel noise in float32, within 1e-5 of the host's. What
// is chosen by it is a guess that the host checks.

// Words of the tokens first, first + 16, first + 32 and first + 48, where first / 16 is a multiple of 4.
uvec4 noise_words(uint index, uint first) {
    uvec4 c = uvec4(16 * (first / 64) + first % 16, ask_word(index, 12), ask_word(index, 11), 0);
    uvec2 key = uvec2(ask_word(index, 9), ask_word(index, 10));
    [[unroll]] for (uint round = 0; round < 10; ++round) {
        uint high0, low0, high1, low1;
        umulExtended(0xd2511f53u, c.x, high0, low0);
        umulExtended(0xcd9e8d57u, c.z, high1, low1);
        c = uvec4(high1 ^ c.y ^ key.x, low1, high0 ^ c.w ^ key.y, low0);
        key += uvec2(0x9e3779b9u, 0xbb67ae85u);
    }
    return c;
}

// 2 * atanh(s) for s up to 1/3.
float twice_atanh(float s) {
    float z = s * s, series = 1.0 / 15.0;
    [[unroll]] for (int n = 13; n >= 1; n -= 2) series = series * z + 1.0 / float(n);
    return 2.0 * s * series;
}

// Of a positive normal number; GLSL's own may be off by 2^-21 near 1.
float natural_log(float x) {
    uint bits = floatBitsToUint(x);
    float exponent = float(int(bits >> 23) - 127), m = uintBitsToFloat((bits & 0x7fffffu) | 0x3f800000u);
    if (m > 1.41421356) {
        m *= 0.5;
        exponent += 1.0;
    }
    return exponent * 0.693147181 + twice_atanh((m - 1.0) / (m + 1.0));
}

float gumbel(uint word) {
    // -log(u) from 1 - u where u is nearer to 1, which float32 would round to it.
    bool high = word >= 0x80000000u;
    float small = (float(high ? ~word : word) + 0.5) * 2.3283064365386963e-10;
    float minus_log = high ? twice_atanh(small / (2.0 - small)) : -natural_log(small);
    return -natural_log(minus_log);
}

float noise_of(uint index, uint token) {
    uint lane = token / 16 % 4;
    return gumbel(noise_words(index, token - 16 * lane)[lane]);
}
