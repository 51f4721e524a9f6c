// Sixteen float32 lanes with one meaning on every instruction set. AVX-512 holds them in one register, AVX2
// in two, the scalar build in an array; every operation is the same IEEE operation per lane and every
// reduction the same tree, so a kernel written on F32x16 gives the same bits on all of them. The scalar build
// is the specification.
//
// Included by one translation unit per instruction set, which defines TANDEM_ISA (the namespace) and is
// compiled with that set's flags and -ffp-contract=off: fma happens only where fma() is written.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#ifndef TANDEM_ISA
#error "define TANDEM_ISA to the instruction set's namespace before including this header"
#endif

#define TANDEM_INLINE inline __attribute__((always_inline))

namespace tandem::TANDEM_ISA {

inline constexpr int kLanes = 16;

#if defined(__AVX512F__)

struct F32x16 {
    __m512 v;
};

TANDEM_INLINE F32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
TANDEM_INLINE void store(float* p, F32x16 a) { _mm512_storeu_ps(p, a.v); }
TANDEM_INLINE F32x16 splat(float x) { return {_mm512_set1_ps(x)}; }
TANDEM_INLINE F32x16 operator+(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
TANDEM_INLINE F32x16 operator-(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
TANDEM_INLINE F32x16 operator*(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
TANDEM_INLINE F32x16 operator/(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
TANDEM_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// a > b ? a : b, the second operand where either is NaN; min alike.
TANDEM_INLINE F32x16 max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
TANDEM_INLINE F32x16 min(F32x16 a, F32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
TANDEM_INLINE F32x16 abs(F32x16 a) { return {_mm512_abs_ps(a.v)}; }
// a > threshold ? v : 0
TANDEM_INLINE F32x16 keep_above(F32x16 a, F32x16 threshold, F32x16 v) {
    return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a.v, threshold.v, _CMP_GT_OQ), v.v)};
}
// a > threshold ? x : y
TANDEM_INLINE F32x16 select_above(F32x16 a, F32x16 threshold, F32x16 x, F32x16 y) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, threshold.v, _CMP_GT_OQ), y.v, x.v)};
}
// To the nearest integer, ties to even.
TANDEM_INLINE F32x16 round(F32x16 a) {
    return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// 2^n for integral n in [-126, 127].
TANDEM_INLINE F32x16 exp2_int(F32x16 n) {
    return {_mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127)), 23))};
}
// 2^(n - 127) for the n in [0, 254] in the low bits of the lanes' representation; 0 for n = 0.
TANDEM_INLINE F32x16 exp2_low_bits(F32x16 a) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a.v), 23))};
}
TANDEM_INLINE F32x16 load_f16(const uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
TANDEM_INLINE void store_f16(uint16_t* p, F32x16 a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
TANDEM_INLINE F32x16 load_bf16(const uint16_t* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
TANDEM_INLINE F32x16 load_i8(const int8_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
// Lanes as int8, from values already integral and in range.
TANDEM_INLINE void store_i8(int8_t* p, F32x16 a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a.v)));
}

#elif defined(__AVX2__)

struct F32x16 {
    __m256 lo, hi;
};

TANDEM_INLINE F32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
TANDEM_INLINE void store(float* p, F32x16 a) {
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}
TANDEM_INLINE F32x16 splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
TANDEM_INLINE F32x16 operator+(F32x16 a, F32x16 b) {
    return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
TANDEM_INLINE F32x16 operator-(F32x16 a, F32x16 b) {
    return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
TANDEM_INLINE F32x16 operator*(F32x16 a, F32x16 b) {
    return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
TANDEM_INLINE F32x16 operator/(F32x16 a, F32x16 b) {
    return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
TANDEM_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
TANDEM_INLINE F32x16 max(F32x16 a, F32x16 b) {
    return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
TANDEM_INLINE F32x16 min(F32x16 a, F32x16 b) {
    return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}
TANDEM_INLINE F32x16 abs(F32x16 a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
TANDEM_INLINE F32x16 keep_above(F32x16 a, F32x16 threshold, F32x16 v) {
    return {_mm256_and_ps(v.lo, _mm256_cmp_ps(a.lo, threshold.lo, _CMP_GT_OQ)),
            _mm256_and_ps(v.hi, _mm256_cmp_ps(a.hi, threshold.hi, _CMP_GT_OQ))};
}
TANDEM_INLINE F32x16 select_above(F32x16 a, F32x16 threshold, F32x16 x, F32x16 y) {
    return {_mm256_blendv_ps(y.lo, x.lo, _mm256_cmp_ps(a.lo, threshold.lo, _CMP_GT_OQ)),
            _mm256_blendv_ps(y.hi, x.hi, _mm256_cmp_ps(a.hi, threshold.hi, _CMP_GT_OQ))};
}
TANDEM_INLINE F32x16 round(F32x16 a) {
    constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(a.lo, mode), _mm256_round_ps(a.hi, mode)};
}
TANDEM_INLINE F32x16 exp2_int(F32x16 n) {
    const __m256i bias = _mm256_set1_epi32(127);
    return {
        _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.lo), bias), 23)),
        _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.hi), bias), 23)),
    };
}
TANDEM_INLINE F32x16 exp2_low_bits(F32x16 a) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a.lo), 23)),
            _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a.hi), 23))};
}
TANDEM_INLINE F32x16 load_f16(const uint16_t* p) {
    const auto* q = reinterpret_cast<const __m128i*>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
}
TANDEM_INLINE void store_f16(uint16_t* p, F32x16 a) {
    auto* q = reinterpret_cast<__m128i*>(p);
    _mm_storeu_si128(q, _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(q + 1, _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT));
}
TANDEM_INLINE F32x16 load_bf16(const uint16_t* p) {
    const auto* q = reinterpret_cast<const __m128i*>(p);
    return {
        _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(q)), 16)),
        _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(q + 1)), 16)),
    };
}
TANDEM_INLINE F32x16 load_i8(const int8_t* p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
}
TANDEM_INLINE void store_i8(int8_t* p, F32x16 a) {
    const __m256i words = _mm256_permute4x64_epi64(
        _mm256_packs_epi32(_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)), 0xd8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}

#else

struct F32x16 {
    float v[kLanes];
};

template <typename F>
TANDEM_INLINE F32x16 each_lane(F f) {
    F32x16 r;
    for (int i = 0; i < kLanes; ++i) r.v[i] = f(i);
    return r;
}

TANDEM_INLINE F32x16 load(const float* p) {
    return each_lane([&](int i) { return p[i]; });
}
TANDEM_INLINE void store(float* p, F32x16 a) { std::memcpy(p, a.v, sizeof(a.v)); }
TANDEM_INLINE F32x16 splat(float x) {
    return each_lane([&](int) { return x; });
}
TANDEM_INLINE F32x16 operator+(F32x16 a, F32x16 b) {
    return each_lane([&](int i) { return a.v[i] + b.v[i]; });
}
TANDEM_INLINE F32x16 operator-(F32x16 a, F32x16 b) {
    return each_lane([&](int i) { return a.v[i] - b.v[i]; });
}
TANDEM_INLINE F32x16 operator*(F32x16 a, F32x16 b) {
    return each_lane([&](int i) { return a.v[i] * b.v[i]; });
}
TANDEM_INLINE F32x16 operator/(F32x16 a, F32x16 b) {
    return each_lane([&](int i) { return a.v[i] / b.v[i]; });
}
TANDEM_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
    return each_lane([&](int i) { return std::fma(a.v[i], b.v[i], c.v[i]); });
}
TANDEM_INLINE F32x16 max(F32x16 a, F32x16 b) {
    return each_lane([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
TANDEM_INLINE F32x16 min(F32x16 a, F32x16 b) {
    return each_lane([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
TANDEM_INLINE F32x16 abs(F32x16 a) {
    return each_lane([&](int i) { return std::fabs(a.v[i]); });
}
TANDEM_INLINE F32x16 keep_above(F32x16 a, F32x16 threshold, F32x16 v) {
    return each_lane([&](int i) { return a.v[i] > threshold.v[i] ? v.v[i] : 0.0f; });
}
TANDEM_INLINE F32x16 select_above(F32x16 a, F32x16 threshold, F32x16 x, F32x16 y) {
    return each_lane([&](int i) { return a.v[i] > threshold.v[i] ? x.v[i] : y.v[i]; });
}
TANDEM_INLINE F32x16 round(F32x16 a) {
    return each_lane([&](int i) { return std::nearbyintf(a.v[i]); });
}
TANDEM_INLINE F32x16 exp2_int(F32x16 n) {
    return each_lane([&](int i) {
        const uint32_t bits = static_cast<uint32_t>(static_cast<int32_t>(n.v[i]) + 127) << 23;
        float r;
        std::memcpy(&r, &bits, sizeof r);
        return r;
    });
}
TANDEM_INLINE F32x16 exp2_low_bits(F32x16 a) {
    return each_lane([&](int i) {
        uint32_t bits;
        std::memcpy(&bits, &a.v[i], sizeof bits);
        bits <<= 23;
        float r;
        std::memcpy(&r, &bits, sizeof r);
        return r;
    });
}
TANDEM_INLINE float f16_to_f32(uint16_t h) {
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16;
    const uint32_t magnitude = h & 0x7fff;
    float f;
    if (magnitude >= 0x7c00) {  // infinity and NaN; a NaN is made quiet, as the hardware does
        uint32_t bits = sign | 0x7f800000 | ((magnitude & 0x3ff) << 13) | (magnitude > 0x7c00 ? 0x400000 : 0);
        std::memcpy(&f, &bits, sizeof f);
        return f;
    }
    // Shifting moves the exponent field into place 112 too low; the multiplication mends that, subnormals
    // included.
    const uint32_t bits = magnitude << 13;
    std::memcpy(&f, &bits, sizeof f);
    f *= 0x1p112f;
    return sign ? -f : f;
}
TANDEM_INLINE uint16_t f32_to_f16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return sign | 0x7e00 | static_cast<uint16_t>((bits >> 13) & 0x1ff);
    if (bits >= 0x477ff000) return sign | 0x7c00;  // rounds to 65,536 or more
    if (bits < 0x38800000) {  // subnormal half: the addition rounds to a multiple of 2^-24
        float f;
        std::memcpy(&f, &bits, sizeof f);
        f += 0.5f;
        std::memcpy(&bits, &f, sizeof bits);
        return sign | static_cast<uint16_t>(bits - 0x3f000000);
    }
    bits += 0xfff + ((bits >> 13) & 1);
    return sign | static_cast<uint16_t>((bits - 0x38000000) >> 13);
}
TANDEM_INLINE F32x16 load_f16(const uint16_t* p) {
    return each_lane([&](int i) { return f16_to_f32(p[i]); });
}
TANDEM_INLINE void store_f16(uint16_t* p, F32x16 a) {
    for (int i = 0; i < kLanes; ++i) p[i] = f32_to_f16(a.v[i]);
}
TANDEM_INLINE F32x16 load_bf16(const uint16_t* p) {
    return each_lane([&](int i) {
        const uint32_t bits = static_cast<uint32_t>(p[i]) << 16;
        float r;
        std::memcpy(&r, &bits, sizeof r);
        return r;
    });
}
TANDEM_INLINE F32x16 load_i8(const int8_t* p) {
    return each_lane([&](int i) { return static_cast<float>(p[i]); });
}
TANDEM_INLINE void store_i8(int8_t* p, F32x16 a) {
    for (int i = 0; i < kLanes; ++i) p[i] = static_cast<int8_t>(a.v[i]);
}

#endif

TANDEM_INLINE float f16_value(uint16_t h) {
#if defined(__AVX2__)
    return _cvtsh_ss(h);
#else
    return f16_to_f32(h);
#endif
}

TANDEM_INLINE uint16_t f16_bits(float x) {
#if defined(__AVX2__)
    return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT);
#else
    return f32_to_f16(x);
#endif
}

// Lanes i and i+8, then +4, +2, +1: one tree everywhere.
TANDEM_INLINE float reduce_add(F32x16 a) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
    const __m256 s8 = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
#else
    const __m256 s8 = _mm256_add_ps(a.lo, a.hi);
#endif
    const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
    const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
    return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
#else
    float s[kLanes];
    std::memcpy(s, a.v, sizeof s);
    for (int width = 8; width > 0; width /= 2) {
        for (int i = 0; i < width; ++i) s[i] += s[i + width];
    }
    return s[0];
#endif
}

// A tree like reduce_add's.
TANDEM_INLINE float reduce_max(F32x16 a) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
    const __m256 s8 = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
#else
    const __m256 s8 = _mm256_max_ps(a.lo, a.hi);
#endif
    const __m128 s4 = _mm_max_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
    const __m128 s2 = _mm_max_ps(s4, _mm_movehl_ps(s4, s4));
    return _mm_cvtss_f32(_mm_max_ss(s2, _mm_movehdup_ps(s2)));
#else
    float s[kLanes];
    std::memcpy(s, a.v, sizeof s);
    for (int width = 8; width > 0; width /= 2) {
        for (int i = 0; i < width; ++i) s[i] = s[i] > s[i + width] ? s[i] : s[i + width];
    }
    return s[0];
#endif
}

TANDEM_INLINE float first_lane(F32x16 a) {
#if defined(__AVX512F__)
    return _mm512_cvtss_f32(a.v);
#elif defined(__AVX2__)
    return _mm256_cvtss_f32(a.lo);
#else
    return a.v[0];
#endif
}

// Asks for a cache line, into the second level.
TANDEM_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

// Natural exponential for x <= 88; below -87.3 it is exactly 0, so that masked scores (-infinity) vanish.
// Cody-Waite reduction and the degree-6 minimax polynomial of Cephes' expf; error under 2 ulp.
TANDEM_INLINE F32x16 exp(F32x16 x) {
    const F32x16 lowest = splat(-87.3f);
    const F32x16 clamped = max(min(x, splat(88.0f)), lowest);
    const F32x16 n = round(clamped * splat(1.44269504088896341f));
    F32x16 r = fma(n, splat(-0.693359375f), clamped);
    r = fma(n, splat(2.12194440e-4f), r);
    F32x16 p = splat(1.9875691500e-4f);
    p = fma(p, r, splat(1.3981999507e-3f));
    p = fma(p, r, splat(8.3334519073e-3f));
    p = fma(p, r, splat(4.1665795894e-2f));
    p = fma(p, r, splat(1.6666665459e-1f));
    p = fma(p, r, splat(5.0000001201e-1f));
    p = fma(p, r * r, r + splat(1.0f)) * exp2_int(n);
    return keep_above(x, lowest, p);
}

}  // namespace tandem::TANDEM_ISA
