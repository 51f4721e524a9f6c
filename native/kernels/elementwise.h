// Row-wise kernels on F32x16: norm, activation, residual, rope, KV store. One definition on every instruction
// set.
#pragma once

#include "kernels/kernels.h"
#include "kernels/simd.h"

namespace tandem::TANDEM_ISA {

// The last n < 16 elements as a vector; the other lanes are zero.
TANDEM_INLINE F32x16 load_part(const float* p, int64_t n) {
    float part[kLanes] = {};
    std::memcpy(part, p, n * sizeof(float));
    return load(part);
}

TANDEM_INLINE void store_part(float* p, F32x16 a, int64_t n) {
    float part[kLanes];
    store(part, a);
    std::memcpy(p, part, n * sizeof(float));
}

// y[i] = f(x[i], …) over whole vectors and a zero-padded last one, the same operations in both.
template <typename F>
TANDEM_INLINE void for_each_vector(int64_t n, F f) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) f(i, int64_t{kLanes});
    if (i < n) f(i, n - i);
}

TANDEM_INLINE F32x16 load_upto(const float* p, int64_t n) { return n == kLanes ? load(p) : load_part(p, n); }
TANDEM_INLINE void store_upto(float* p, F32x16 a, int64_t n) {
    if (n == kLanes) {
        store(p, a);
    } else {
        store_part(p, a, n);
    }
}

inline void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* y) {
    F32x16 squares = splat(0.0f);
    for_each_vector(n, [&](int64_t i, int64_t m) {
        const F32x16 v = load_upto(x + i, m);
        squares = fma(v, v, squares);
    });
    const float mean = reduce_add(squares) / static_cast<float>(n);
    const F32x16 inverse = splat(1.0f / std::sqrt(mean + eps));
    for_each_vector(n, [&](int64_t i, int64_t m) {
        store_upto(y + i, load_upto(x + i, m) * inverse * load_upto(weight + i, m), m);
    });
}

TANDEM_INLINE F32x16 sigmoid(F32x16 x) {
    const F32x16 one = splat(1.0f);
    return one / (one + exp(splat(0.0f) - x));
}

inline void gate_up(Activation kind, float* gate, const float* up, int64_t n) {
    for_each_vector(n, [&](int64_t i, int64_t m) {
        const F32x16 x = load_upto(gate + i, m);
        F32x16 inner = x;
        if (kind == Activation::kGeluTanh) {
            // (1 + tanh(u)) / 2 = sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3)
            inner = splat(1.5957691216057308f) * fma(x * x * x, splat(0.044715f), x);
        }
        store_upto(gate + i, x * sigmoid(inner) * load_upto(up + i, m), m);
    });
}

inline void add(float* y, const float* x, int64_t n) {
    for_each_vector(
        n, [&](int64_t i, int64_t m) { store_upto(y + i, load_upto(y + i, m) + load_upto(x + i, m), m); });
}

inline void scale(float* y, float factor, int64_t n) {
    for_each_vector(n,
                    [&](int64_t i, int64_t m) { store_upto(y + i, load_upto(y + i, m) * splat(factor), m); });
}

// cap * tanh(x / cap), tanh(t) = 1 - 2 / (exp(2t) + 1)
TANDEM_INLINE F32x16 capped(F32x16 x, float cap) {
    const F32x16 one = splat(1.0f);
    const F32x16 t = min(x * splat(2.0f / cap), splat(80.0f));
    return splat(cap) * (one - splat(2.0f) / (exp(t) + one));
}

inline void softcap(float* x, float cap, int64_t n) {
    for_each_vector(n, [&](int64_t i, int64_t m) { store_upto(x + i, capped(load_upto(x + i, m), cap), m); });
}

inline void rope(float* head, const float* cos, const float* sin, int dims, bool interleaved) {
    const int half = dims / 2;
    if (interleaved) {
        for (int i = 0; i < half; ++i) {
            const float a = head[2 * i], b = head[2 * i + 1];
            head[2 * i] = std::fma(a, cos[i], -(b * sin[i]));
            head[2 * i + 1] = std::fma(b, cos[i], a * sin[i]);
        }
        return;
    }
    for_each_vector(half, [&](int64_t i, int64_t m) {
        const F32x16 a = load_upto(head + i, m), b = load_upto(head + half + i, m);
        const F32x16 c = load_upto(cos + i, m), s = load_upto(sin + i, m);
        store_upto(head + i, fma(a, c, splat(0.0f) - b * s), m);
        store_upto(head + half + i, fma(b, c, a * s), m);
    });
}

// Values of one head at one position as int8 with a float16 scale per 32: q[i * q_stride], scales[block *
// scale_stride]. scale = max |x| / 127, rounded; q = round(x * 127 / max |x|).
TANDEM_INLINE void quantize_head(const float* x, int head_dim, int8_t* q, int q_stride, uint16_t* scales,
                                 int scale_stride) {
    for (int block = 0; block < head_dim / 32; ++block, x += 32) {
        const F32x16 low = load(x), high = load(x + kLanes);
        const float largest = reduce_max(max(abs(low), abs(high)));
        const F32x16 inverse = splat(largest > 0.0f ? 127.0f / largest : 0.0f);
        int8_t values[32];
        store_i8(values, round(low * inverse));
        store_i8(values + kLanes, round(high * inverse));
        for (int i = 0; i < 32; ++i) q[(block * 32 + i) * q_stride] = values[i];
        uint16_t half[kLanes];
        store_f16(half, splat(largest / 127.0f));
        scales[block * scale_stride] = half[0];
    }
}

inline void store_kv(KvType type, const float* k, const float* v, int head_dim, int slot, uint8_t* k_page,
                     uint8_t* v_page) {
    const int padded = (head_dim + kLanes - 1) / kLanes * kLanes;
    if (type == KvType::kQ8_0) {
        const int blocks = head_dim / 32;
        quantize_head(k, head_dim, reinterpret_cast<int8_t*>(k_page) + slot, kPageSize,
                      reinterpret_cast<uint16_t*>(k_page + head_dim * kPageSize) + slot, kPageSize);
        quantize_head(v, head_dim, reinterpret_cast<int8_t*>(v_page) + slot * head_dim, 1,
                      reinterpret_cast<uint16_t*>(v_page + head_dim * kPageSize) + slot * blocks, 1);
        return;
    }
    if (type == KvType::kF32) {
        auto* keys = reinterpret_cast<float*>(k_page);
        for (int d = 0; d < head_dim; ++d) keys[d * kPageSize + slot] = k[d];
        std::memcpy(reinterpret_cast<float*>(v_page) + slot * padded, v, head_dim * sizeof(float));
        return;
    }
    auto* keys = reinterpret_cast<uint16_t*>(k_page);
    auto* values = reinterpret_cast<uint16_t*>(v_page) + slot * padded;
    for_each_vector(head_dim, [&](int64_t i, int64_t m) {
        uint16_t half[kLanes];
        store_f16(half, load_upto(k + i, m));
        for (int64_t j = 0; j < m; ++j) keys[(i + j) * kPageSize + slot] = half[j];
        store_f16(values + i, load_upto(v + i, m));
    });
}

}  // namespace tandem::TANDEM_ISA
