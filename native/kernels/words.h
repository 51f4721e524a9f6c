// Vectors of 32-bit words for code that only moves bits. GCC's vector notation, which every instruction set
// compiles: results do not depend on it.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/simd.h"

namespace tandem::TANDEM_ISA {

typedef uint32_t Words __attribute__((vector_size(32)));
typedef uint32_t HalfWords __attribute__((vector_size(16)));
typedef uint8_t WordBytes __attribute__((vector_size(32)));
typedef uint16_t WordHalves __attribute__((vector_size(32)));

TANDEM_INLINE Words load_words(const void* p) {
    Words v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
TANDEM_INLINE HalfWords load_half_words(const void* p) {
    HalfWords v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
TANDEM_INLINE void store_words(void* p, Words v) { std::memcpy(p, &v, sizeof v); }

// Past the caches, to an address that divides by 32; finish_streaming before others may read.
TANDEM_INLINE void stream_words(void* p, Words v) {
#if defined(__AVX2__)
    _mm256_stream_si256(static_cast<__m256i*>(p), (__m256i)v);
#else
    store_words(p, v);
#endif
}
TANDEM_INLINE void finish_streaming() {
#if defined(__AVX2__)
    _mm_sfence();
#endif
}

TANDEM_INLINE Words join(HalfWords low, HalfWords high) {
    return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7);
}

// 32 bits at `p` to 32 bytes of 0 or 255.
TANDEM_INLINE Words spread_bits(const uint8_t* p) {
    uint32_t bits;
    std::memcpy(&bits, p, sizeof bits);
    const WordBytes all = (WordBytes)(Words{bits, bits, bits, bits, bits, bits, bits, bits});
    const WordBytes own =
        __builtin_shufflevector(all, all, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1,  //
                                18, 18, 18, 18, 18, 18, 18, 18, 19, 19, 19, 19, 19, 19, 19, 19);
    const uint64_t each = 0x8040201008040201;
    typedef uint64_t Longs __attribute__((vector_size(32)));
    const WordBytes bit = (WordBytes)(Longs{each, each, each, each});
    return (Words)((own & bit) == bit);
}

// v[i] word k becomes v[k] word i.
TANDEM_INLINE void transpose(Words (&v)[8]) {
    Words a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
        a[i] = __builtin_shufflevector(v[i], v[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        a[i + 1] = __builtin_shufflevector(v[i], v[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    for (int i = 0; i < 8; i += 4) {
        for (int k = 0; k < 2; ++k) {
            b[i + 2 * k] = __builtin_shufflevector(a[i + k], a[i + k + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            b[i + 2 * k + 1] = __builtin_shufflevector(a[i + k], a[i + k + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    }
    for (int i = 0; i < 4; ++i) {
        v[i] = __builtin_shufflevector(b[i], b[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        v[i + 4] = __builtin_shufflevector(b[i], b[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
}

// The lower, or the upper, 16 bits of 16 words.
TANDEM_INLINE Words lower_halves(Words a, Words b) {
    return (Words)__builtin_shufflevector((WordHalves)a, (WordHalves)b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20,
                                          22, 24, 26, 28, 30);
}
TANDEM_INLINE Words upper_halves(Words a, Words b) {
    return (Words)__builtin_shufflevector((WordHalves)a, (WordHalves)b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21,
                                          23, 25, 27, 29, 31);
}

}  // namespace tandem::TANDEM_ISA
