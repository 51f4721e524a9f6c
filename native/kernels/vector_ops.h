// The native vectors of the product kernels: 16 output rows a vector on AVX-512 (VNNI), 8 on AVX2 with or
// without VNNI. A group of 16 rows is kGroupVectors of them.
#pragma once

#include "kernels/packed_matrix.h"
#include "kernels/simd.h"

namespace tandem::TANDEM_ISA {

#if defined(__AVX512F__)

using Bytes = __m512i;
using Floats = __m512;
inline constexpr int kVectorRows = 16;

TANDEM_INLINE Bytes load_bytes(const uint8_t* p) { return _mm512_load_si512(p); }
TANDEM_INLINE void store_bytes(uint8_t* p, Bytes a) { _mm512_store_si512(p, a); }
TANDEM_INLINE Bytes all_bytes(int value) { return _mm512_set1_epi8(static_cast<char>(value)); }
TANDEM_INLINE Bytes bit_and(Bytes a, Bytes b) { return _mm512_and_si512(a, b); }
// a | (b & mask)
TANDEM_INLINE Bytes or_masked(Bytes a, Bytes b, Bytes mask) {
    return _mm512_ternarylogic_epi32(a, b, mask, 0xf8);
}
// Shifts whole 16-bit pairs: bits that cross into a neighbouring byte are for the caller to mask. Negative:
// right.
template <int kLeft>
TANDEM_INLINE Bytes shift_pairs(Bytes a) {
    if constexpr (kLeft > 0) return _mm512_slli_epi16(a, kLeft);
    if constexpr (kLeft < 0) return _mm512_srli_epi16(a, -kLeft);
    return a;
}
TANDEM_INLINE Bytes broadcast_quad(const int8_t* p) {
    int32_t quad;
    std::memcpy(&quad, p, sizeof quad);
    return _mm512_set1_epi32(quad);
}

TANDEM_INLINE Floats zero_floats() { return _mm512_setzero_ps(); }
TANDEM_INLINE Floats all_floats(float x) { return _mm512_set1_ps(x); }
TANDEM_INLINE Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
TANDEM_INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
TANDEM_INLINE Floats load_floats(const float* p) { return _mm512_loadu_ps(p); }
TANDEM_INLINE void store_floats(float* p, Floats a) { _mm512_storeu_ps(p, a); }
TANDEM_INLINE Floats widen_f16(const uint8_t* p) {
    return _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(p)));
}
TANDEM_INLINE Floats widen_bf16(const uint8_t* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_load_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
TANDEM_INLINE Floats widen_u8(const uint8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(p))));
}
TANDEM_INLINE Floats widen_i8(const uint8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(p))));
}

// The running int32 dots of 16 rows. `first` is what they count from; `add` takes the weights of one quad and
// the broadcast activation quad, in steps counted from 0.
template <WeightType T>
struct Dot {
    static constexpr int kZeroPoint = zero_point(T);
    __m512i sum;
    TANDEM_INLINE void start(int32_t first) { sum = _mm512_set1_epi32(first); }
    template <int kStep>
    TANDEM_INLINE void add(Bytes w, Bytes x) {
        sum = _mm512_dpbusd_epi32(sum, w, x);
    }
    TANDEM_INLINE Floats finish(int32_t) const { return _mm512_cvtepi32_ps(sum); }
};

template <WeightType T>
TANDEM_INLINE Bytes load_byte_quad(const uint8_t* p) {
    return load_bytes(p);
}

#else

using Bytes = __m256i;
using Floats = __m256;
inline constexpr int kVectorRows = 8;

TANDEM_INLINE Bytes load_bytes(const uint8_t* p) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(p));
}
TANDEM_INLINE void store_bytes(uint8_t* p, Bytes a) { _mm256_store_si256(reinterpret_cast<__m256i*>(p), a); }
TANDEM_INLINE Bytes all_bytes(int value) { return _mm256_set1_epi8(static_cast<char>(value)); }
TANDEM_INLINE Bytes bit_and(Bytes a, Bytes b) { return _mm256_and_si256(a, b); }
TANDEM_INLINE Bytes or_masked(Bytes a, Bytes b, Bytes mask) {
    return _mm256_or_si256(a, _mm256_and_si256(b, mask));
}
template <int kLeft>
TANDEM_INLINE Bytes shift_pairs(Bytes a) {
    if constexpr (kLeft > 0) return _mm256_slli_epi16(a, kLeft);
    if constexpr (kLeft < 0) return _mm256_srli_epi16(a, -kLeft);
    return a;
}
TANDEM_INLINE Bytes broadcast_quad(const int8_t* p) {
    int32_t quad;
    std::memcpy(&quad, p, sizeof quad);
    return _mm256_set1_epi32(quad);
}

TANDEM_INLINE Floats zero_floats() { return _mm256_setzero_ps(); }
TANDEM_INLINE Floats all_floats(float x) { return _mm256_set1_ps(x); }
TANDEM_INLINE Floats multiply(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
TANDEM_INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
TANDEM_INLINE Floats load_floats(const float* p) { return _mm256_loadu_ps(p); }
TANDEM_INLINE void store_floats(float* p, Floats a) { _mm256_storeu_ps(p, a); }
TANDEM_INLINE Floats widen_f16(const uint8_t* p) {
    return _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(p)));
}
TANDEM_INLINE Floats widen_bf16(const uint8_t* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
TANDEM_INLINE Floats widen_u8(const uint8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
TANDEM_INLINE Floats widen_i8(const uint8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}

#if defined(TANDEM_VPDPBUSD)

// The running int32 dots of 8 rows, as on AVX-512. TANDEM_VPDPBUSD is the instruction in the encoding that
// the CPU has: AVX-VNNI's or AVX-512 VL's.
template <WeightType T>
struct Dot {
    static constexpr int kZeroPoint = zero_point(T);
    __m256i sum;
    TANDEM_INLINE void start(int32_t first) { sum = _mm256_set1_epi32(first); }
    template <int kStep>
    TANDEM_INLINE void add(Bytes w, Bytes x) {
        __asm__(TANDEM_VPDPBUSD " %2, %1, %0" : "+x"(sum) : "x"(w), "xm"(x));
    }
    TANDEM_INLINE Floats finish(int32_t) const { return _mm256_cvtepi32_ps(sum); }
};

template <WeightType T>
TANDEM_INLINE Bytes load_byte_quad(const uint8_t* p) {
    return load_bytes(p);
}

#else

// Keeps a sum as it is: GCC would rebalance the chain of additions into a tree and run out of registers.
TANDEM_INLINE __m256i in_order(__m256i a) {
    __asm__("" : "+x"(a));
    return a;
}

// Products of unsigned and signed bytes come as saturating int16 pairs. Weights of n bits leave room for
// several pairs in int16 before they must be widened: 16 * 15 * 127, 8 * 31 * 127 and 4 * 63 * 127 are all
// below 2^15. Unsigned 8-bit weights would overflow, so those are taken signed, as |w| and sign(w) x, which
// is at most 2 * 128 * 127.
template <WeightType T>
struct Dot {
    static constexpr int kZeroPoint = quant_bits(T) == 8 ? 0 : zero_point(T);
    static constexpr int kRoom = quant_bits(T) == 4 ? 8 : quant_bits(T) == 5 ? 4 : quant_bits(T) == 6 ? 2 : 1;
    __m256i sum, pairs;
    TANDEM_INLINE void start(int32_t) {}
    template <int kStep>
    TANDEM_INLINE void add(Bytes w, Bytes x) {
        __m256i products;
        if constexpr (quant_bits(T) == 8) {
            products = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
        } else {
            products = _mm256_maddubs_epi16(w, x);
        }
        pairs = kStep % kRoom == 0 ? products : in_order(_mm256_add_epi16(pairs, products));
        if constexpr (kStep % kRoom == kRoom - 1) {
            const __m256i wide = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
            sum = kStep == kRoom - 1 ? wide : in_order(_mm256_add_epi32(sum, wide));
        }
    }
    TANDEM_INLINE Floats finish(int32_t first) const {
        if constexpr (kZeroPoint == 0) return _mm256_cvtepi32_ps(sum);
        return _mm256_cvtepi32_ps(_mm256_add_epi32(sum, _mm256_set1_epi32(first)));
    }
};

template <WeightType T>
TANDEM_INLINE Bytes load_byte_quad(const uint8_t* p) {
    return _mm256_xor_si256(load_bytes(p), all_bytes(0x80));
}

#endif

#endif

inline constexpr int kGroupVectors = kGroupRows / kVectorRows;

}  // namespace tandem::TANDEM_ISA
