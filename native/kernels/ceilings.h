// What one core can do at most, to hold the other kernels against: loops of independent multiply-adds on
// registers alone, with the widest instructions that this set's kernels use, and a read of memory.
#pragma once

#include "kernels/kernels.h"
#include "kernels/simd.h"

namespace tandem::TANDEM_ISA {

// Independent chains of one instruction: more than its latency times its units on any core we know (5 x 2),
// and few enough that they and their operands stay in registers.
#if defined(__AVX512F__)
inline constexpr int kChains = 16;
#elif defined(__AVX2__)
inline constexpr int kChains = 12;
#else
inline constexpr int kChains = 4;
#endif

// Keeps the compiler from knowing a value, and so from working out what is done with it or merging equal
// chains.
template <typename T>
TANDEM_INLINE void hide(T& value) {
    asm volatile("" : "+m"(value));
}

#if defined(__AVX512F__)

inline constexpr int64_t kInt8Macs = kChains * 64;
inline int64_t probe_int8(int64_t iterations) {
    __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(-2), sums[kChains] = {};
    hide(a);
    hide(b);
    hide(sums);
    for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 16
        for (int c = 0; c < kChains; ++c) sums[c] = _mm512_dpbusd_epi32(sums[c], a, b);
    }
    for (int c = 1; c < kChains; ++c) sums[0] = _mm512_add_epi32(sums[0], sums[c]);
    return _mm512_reduce_add_epi32(sums[0]);
}

// Called only where the CPU has bf16 dots, which is not asked of a CPU for this set's other kernels.
inline constexpr int64_t kBf16Macs = kChains * 32;
__attribute__((target("avx512bf16"))) inline int64_t probe_bf16(int64_t iterations) {
    __m512i a = _mm512_set1_epi16(0x3f80), b = a;  // 1.0
    hide(a);
    hide(b);
    __m512 sums[kChains] = {};
    hide(sums);
    for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 16
        for (int c = 0; c < kChains; ++c) sums[c] = _mm512_dpbf16_ps(sums[c], (__m512bh)a, (__m512bh)b);
    }
    for (int c = 1; c < kChains; ++c) sums[0] = _mm512_add_ps(sums[0], sums[c]);
    return static_cast<int64_t>(_mm512_reduce_add_ps(sums[0]));
}

#elif defined(__AVX2__)

inline constexpr int64_t kInt8Macs = kChains * 32;
inline int64_t probe_int8(int64_t iterations) {
    __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(-2), sums[kChains] = {};
    [[maybe_unused]] const __m256i ones = _mm256_set1_epi16(1);
    hide(sums);
    for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 16
        for (int c = 0; c < kChains; ++c) {
#if defined(TANDEM_VPDPBUSD)
            asm volatile(TANDEM_VPDPBUSD " %2, %1, %0" : "+x"(sums[c]) : "x"(a), "x"(b));
#else
            __m256i pairs;
            // Volatile, or all chains would share one product.
            asm volatile("vpmaddubsw %2, %1, %0" : "=x"(pairs) : "x"(a), "x"(b));
            sums[c] = _mm256_add_epi32(sums[c], _mm256_madd_epi16(pairs, ones));
#endif
        }
    }
    for (int c = 1; c < kChains; ++c) sums[0] = _mm256_add_epi32(sums[0], sums[c]);
    return _mm256_extract_epi32(sums[0], 0);
}

inline constexpr int64_t kBf16Macs = 0;
inline int64_t probe_bf16(int64_t) { return 0; }

#else

inline constexpr int64_t kInt8Macs = kChains * kLanes;
inline int64_t probe_int8(int64_t iterations) {
    int8_t a[kLanes], b[kLanes];
    int32_t sums[kChains][kLanes] = {};
    for (int i = 0; i < kLanes; ++i) a[i] = 3, b[i] = -2;
    for (int64_t i = 0; i < iterations; ++i) {
        for (int c = 0; c < kChains; ++c) {
            hide(a);
            for (int lane = 0; lane < kLanes; ++lane) sums[c][lane] += a[lane] * b[lane];
        }
    }
    return sums[0][0] + sums[kChains - 1][kLanes - 1];
}

inline constexpr int64_t kBf16Macs = 0;
inline int64_t probe_bf16(int64_t) { return 0; }

#endif

// F32x16 is two registers on AVX2.
inline constexpr int kF32Chains = kChains == 12 ? 6 : kChains;
inline constexpr int64_t kF32Macs = kF32Chains * kLanes;
inline int64_t probe_f32(int64_t iterations) {
    F32x16 a = splat(0.5f), b = splat(1.0f), sums[kF32Chains];
    hide(a);
    hide(b);
    for (F32x16& sum : sums) sum = b;
    hide(sums);
    for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 16
        for (int c = 0; c < kF32Chains; ++c) sums[c] = fma(a, sums[c], b);  // tends to 2
    }
    for (int c = 1; c < kF32Chains; ++c) sums[0] = sums[0] + sums[c];
    return static_cast<int64_t>(reduce_add(sums[0]));
}

// Far enough ahead that a line arrives in time at 40 GB/s a core with a latency of 100 ns.
inline constexpr int64_t kReadAhead = 4096;

// Reads every word; `bytes` is a multiple of 512.
inline int64_t probe_read(const uint8_t* data, int64_t bytes) {
#if defined(__AVX512F__)
    __m512i seen[8] = {};
    for (int64_t i = 0; i < bytes; i += 512) {
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j) {
            __builtin_prefetch(data + i + kReadAhead + 64 * j, 0, 3);
            seen[j] = _mm512_or_si512(seen[j], _mm512_loadu_si512(data + i + 64 * j));
        }
    }
    for (int j = 1; j < 8; ++j) seen[0] = _mm512_or_si512(seen[0], seen[j]);
    return _mm512_reduce_or_epi64(seen[0]);
#elif defined(__AVX2__)
    __m256i seen[8] = {};
    for (int64_t i = 0; i < bytes; i += 256) {
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j) {
            if (j % 2 == 0) __builtin_prefetch(data + i + kReadAhead + 32 * j, 0, 3);
            const auto* at = reinterpret_cast<const __m256i*>(data + i + 32 * j);
            seen[j] = _mm256_or_si256(seen[j], _mm256_loadu_si256(at));
        }
    }
    for (int j = 1; j < 8; ++j) seen[0] = _mm256_or_si256(seen[0], seen[j]);
    return _mm256_extract_epi64(seen[0], 0) | _mm256_extract_epi64(seen[0], 1);
#else
    uint64_t seen = 0, word;
    for (int64_t i = 0; i < bytes; i += 8) {
        std::memcpy(&word, data + i, 8);
        seen |= word;
    }
    return static_cast<int64_t>(seen);
#endif
}

inline Probes make_probes() {
    return {
        .int8_macs = kInt8Macs,
        .bf16_macs = kBf16Macs,
        .f32_macs = kF32Macs,
        .int8 = probe_int8,
        .bf16 = probe_bf16,
        .f32 = probe_f32,
        .read = probe_read,
    };
}

}  // namespace tandem::TANDEM_ISA
