// Rows of float32 weights as GGUF stores them, where scales are searched for: K types, and any type under
// importance weights. Sixteen sub-blocks are searched at once, one a lane, so that each sum is one sequence
// over the sub-block's values on every instruction set.
//
// The searches are llama.cpp's (ggml-quants.c: make_qkx2_quants, make_qkx3_quants, make_qx_quants): round
// with a ladder of scales, refit scale and minimum to the rounded values by least squares, keep the best. The
// error is not summed again for each rung: with a refitted scale and minimum it is what remains of sum(w x^2)
// after scale * sum(w q x) + minimum * sum(w x), so the rung with the largest such gain wins.
#pragma once

#include "kernels/gguf_blocks.h"
#include "kernels/weight_blocks.h"

namespace tandem::TANDEM_ISA {

inline constexpr int kSuperColumns = 256;
// Below this a sub-block counts as zeros.
inline constexpr float kTinyScale = 1e-15f;

// Values of 16 sub-blocks, a lane each: v[i] holds value i of every one.
struct Columns {
    alignas(64) float v[kBlockColumns][kLanes];
};

// Sub-blocks of `count` values each, one after another in `x`; absent lanes are zeros.
inline void gather(const float* x, int count, int lanes, Columns& out) {
    if (lanes < kLanes) std::memset(&out, 0, sizeof out);
    for (int lane = 0; lane < lanes; ++lane) {
        for (int i = 0; i < count; ++i) out.v[i][lane] = x[lane * count + i];
    }
}

// Rounded to nearest, (x + minimum) / scale in [low, low + most], stored from 0 on, back in the order of `x`.
// Lanes whose scale is 0 give 0 - low.
inline void scatter_quants(const Columns& x, int count, F32x16 scale, F32x16 minimum, float low, float most,
                           uint8_t* q) {
    const F32x16 zero = splat(0.0f);
    const F32x16 divisor = select_above(abs(scale), zero, scale, splat(1.0f));
    for (int i = 0; i < count; ++i) {
        F32x16 v = round((load(x.v[i]) + minimum) / divisor);
        v = select_above(abs(scale), zero, max(min(v, splat(low + most)), splat(low)), zero);
        int8_t lanes[kLanes];
        store_i8(lanes, v - splat(low));
        for (int lane = 0; lane < kLanes; ++lane) q[lane * count + i] = static_cast<uint8_t>(lanes[lane]);
    }
}

struct Affine {
    F32x16 scale, minimum;  // x ~ scale * q - minimum
};

// How a ladder of scales is walked: (most + first + step * k) / range for k in [0, steps].
struct Ladder {
    float first, step;
    int steps;
};

inline Affine fit_affine(const Columns& x, const Columns& weight, float most, Ladder ladder) {
    const F32x16 zero = splat(0.0f), one = splat(1.0f), top = splat(most);
    F32x16 low = load(x.v[0]), high = low, sum_w = zero, sum_x = zero;
    for (int i = 0; i < kBlockColumns; ++i) {
        const F32x16 v = load(x.v[i]), w = load(weight.v[i]);
        low = min(low, v);
        high = max(high, v);
        sum_w = sum_w + w;
        sum_x = sum_x + w * v;
    }
    low = min(low, zero);
    const F32x16 range = high - low, safe = select_above(range, zero, range, one);
    F32x16 scale = keep_above(range, zero, safe / top), minimum = low, best = zero;
    const F32x16 plain = top / safe;
    for (int i = 0; i < kBlockColumns; ++i) {
        const F32x16 v = load(x.v[i]), y = scale * min(round(plain * (v - low)), top) + low;
        best = best + load(weight.v[i]) * y * (v + v - y);
    }
    for (int k = 0; k <= ladder.steps; ++k) {
        const F32x16 inverse = splat(most + ladder.first + ladder.step * static_cast<float>(k)) / safe;
        F32x16 sum_q = zero, sum_qq = zero, sum_qx = zero;
        for (int i = 0; i < kBlockColumns; ++i) {
            const F32x16 v = load(x.v[i]);
            const F32x16 q = min(round(inverse * (v - low)), top), wq = load(weight.v[i]) * q;
            sum_q = sum_q + wq;
            sum_qq = sum_qq + wq * q;
            sum_qx = sum_qx + wq * v;
        }
        const F32x16 determinant = sum_w * sum_qq - sum_q * sum_q;
        const F32x16 divisor = select_above(determinant, zero, determinant, one);
        F32x16 s = (sum_w * sum_qx - sum_x * sum_q) / divisor;
        F32x16 m = (sum_qq * sum_x - sum_q * sum_qx) / divisor;
        // A minimum above zero cannot be stored.
        s = select_above(m, zero, sum_qx / select_above(sum_qq, zero, sum_qq, one), s);
        m = min(m, zero);
        const F32x16 gain = select_above(determinant, zero, s * sum_qx + m * sum_x, zero);
        scale = select_above(gain, best, s, scale);
        minimum = select_above(gain, best, m, minimum);
        best = max(gain, best);
    }
    return {scale, zero - minimum};
}

// x ~ scale * q with q in [-half, half).
inline F32x16 fit_symmetric(const Columns& x, const Columns& weight, int count, float half) {
    const F32x16 zero = splat(0.0f), lowest = splat(-half), highest = splat(half - 1.0f);
    F32x16 largest = zero, peak = zero;
    for (int i = 0; i < count; ++i) {
        const F32x16 v = load(x.v[i]);
        peak = select_above(abs(v), largest, v, peak);
        largest = max(abs(v), largest);
    }
    const F32x16 tiny = splat(kTinyScale), divisor = select_above(largest, tiny, peak, splat(1.0f));
    F32x16 scale = zero, best = zero;
    for (int k = 0; k <= 18; ++k) {
        // The plain scale first: of equals it stays. Then from -9 to 9 tenths of a quant more.
        const int tenths = k == 0 ? 0 : k <= 9 ? k - 10 : k - 9;
        const F32x16 inverse = splat(-(half + 0.1f * static_cast<float>(tenths))) / divisor;
        F32x16 sum_qx = zero, sum_qq = zero;
        for (int i = 0; i < count; ++i) {
            const F32x16 v = load(x.v[i]);
            const F32x16 q = max(min(round(inverse * v), highest), lowest), wq = load(weight.v[i]) * q;
            sum_qx = sum_qx + wq * v;
            sum_qq = sum_qq + wq * q;
        }
        const F32x16 s = sum_qx / select_above(sum_qq, zero, sum_qq, splat(1.0f));
        const F32x16 gain = s * sum_qx;
        scale = select_above(gain, best, s, scale);
        best = max(gain, best);
    }
    return keep_above(largest, tiny, scale);
}

// importance * sqrt(variance + x^2): what matters, and large values more (ggml-quants.c, the *_impl rows).
inline void weigh(const float* x, const float* importance, int64_t n, float variance, float* out) {
    for (int64_t i = 0; i < n; ++i) out[i] = importance[i] * std::sqrt(variance + x[i] * x[i]);
}

inline float sum_of_squares(const float* x, int64_t n) {
    float sum = 0.0f;
    for (int64_t i = 0; i < n; ++i) sum += x[i] * x[i];
    return sum;
}

// Q4_0, Q4_1, Q5_0, Q5_1 under importance weights.
template <WeightType T>
void search_blocks(const float* x, int64_t columns, const float* importance, uint8_t* out) {
    constexpr float kMost = (1 << quant_bits(T)) - 1;
    const float variance = sum_of_squares(x, columns) / static_cast<float>(columns);
    constexpr int kSpan = kLanes * kBlockColumns;
    Columns v, w;
    for (int64_t begin = 0; begin < columns; begin += kSpan) {
        const int64_t n = columns - begin < kSpan ? columns - begin : kSpan;
        const int lanes = static_cast<int>(n / kBlockColumns);
        float weights[kSpan];
        weigh(x + begin, importance + begin, n, variance, weights);
        gather(x + begin, kBlockColumns, lanes, v);
        gather(weights, kBlockColumns, lanes, w);
        Affine fit{splat(0.0f), splat(0.0f)};
        if constexpr (has_minimum(T)) {
            fit = fit_affine(v, w, kMost, {-0.9f, 0.05f, 36});
        } else {
            fit.scale = fit_symmetric(v, w, kBlockColumns, static_cast<float>(zero_point(T)));
        }
        float scale[kLanes], minimum[kLanes];
        store(scale, fit.scale);
        store(minimum, fit.minimum);
        uint8_t q[kSpan];
        scatter_quants(v, kBlockColumns, fit.scale, fit.minimum, static_cast<float>(-zero_point(T)), kMost,
                       q);
        for (int lane = 0; lane < lanes; ++lane) {
            put_block<T>(out, scale[lane], -minimum[lane], q + lane * kBlockColumns);
            out += source_block(T).bytes;
        }
    }
}

// Eight values, none negative, as d * whole with 6-bit whole numbers: of nine roundings the
// one that fits best by least squares under `weight` (ggml-quants.c, make_qp_quants, without its last
// refinement). The values become those that are stored; returns d.
inline float fit_six_bits(const float* weight, float* values, uint8_t* whole) {
    float most = 0.0f;
    for (int j = 0; j < 8; ++j) most = values[j] > most ? values[j] : most;
    float best = 0.0f, d = 0.0f;
    for (int tenths = -4; tenths <= 4 && most > kTinyScale; ++tenths) {
        const float inverse = (63.0f + 0.1f * static_cast<float>(tenths)) / most;
        float sum_qx = 0.0f, sum_qq = 0.0f;
        for (int j = 0; j < 8; ++j) {
            const float rounded = std::fmin(63.0f, std::nearbyint(inverse * values[j]));
            sum_qx += weight[j] * rounded * values[j];
            sum_qq += weight[j] * rounded * rounded;
        }
        if (sum_qq > 0.0f && sum_qx / sum_qq * sum_qx > best) {
            best = sum_qx / sum_qq * sum_qx;
            d = sum_qx / sum_qq;
        }
    }
    // A small d loses bits as float16; the whole numbers make up for it.
    const float stored = f16_value(f16_bits(d));
    for (int j = 0; j < 8; ++j) {
        whole[j] =
            static_cast<uint8_t>(stored > 0.0f ? std::fmin(63.0f, std::nearbyint(values[j] / stored)) : 0.0f);
        values[j] = stored * static_cast<float>(whole[j]);
    }
    return d;
}

// The header of a Q4_K or Q5_K block. `scale` and `minimum`, eight each, become those that are stored.
inline void put_k_scales(const float* weight, float* scale, float* minimum, uint8_t* out) {
    uint8_t scales[8], minimums[8];
    put_f16(out, fit_six_bits(weight, scale, scales));
    put_f16(out + 2, fit_six_bits(weight, minimum, minimums));
    uint8_t* packed = out + 4;
    for (int j = 0; j < 4; ++j) {
        packed[j] = static_cast<uint8_t>(scales[j] | scales[j + 4] >> 4 << 6);
        packed[j + 4] = static_cast<uint8_t>(minimums[j] | minimums[j + 4] >> 4 << 6);
        packed[j + 8] = static_cast<uint8_t>((scales[j + 4] & 15) | (minimums[j + 4] & 15) << 4);
    }
}

// Q4_K, Q5_K: two super-blocks at a time, eight sub-blocks of 32 each.
template <WeightType T>
void search_affine_k(const float* x, int64_t columns, const float* importance, uint8_t* out) {
    constexpr float kMost = (1 << quant_bits(T)) - 1;
    constexpr Ladder kLadder = T == WeightType::kQ4_K ? Ladder{-1.0f, 0.1f, 20} : Ladder{-0.5f, 0.1f, 15};
    Columns v, w;
    for (int64_t begin = 0; begin < columns; begin += 2 * kSuperColumns) {
        const int blocks = columns - begin >= 2 * kSuperColumns ? 2 : 1;
        gather(x + begin, kBlockColumns, 8 * blocks, v);
        if (importance) {
            float weights[2 * kSuperColumns];
            for (int b = 0; b < blocks; ++b) {
                const int64_t at = begin + b * kSuperColumns;
                const float variance = sum_of_squares(x + at, kSuperColumns) * (2.0f / kSuperColumns);
                weigh(x + at, importance + at, kSuperColumns, variance, weights + b * kSuperColumns);
            }
            gather(weights, kBlockColumns, 8 * blocks, w);
        } else {
            F32x16 squares = splat(0.0f);
            for (int i = 0; i < kBlockColumns; ++i) squares = squares + load(v.v[i]) * load(v.v[i]);
            float usual[kLanes];
            store(usual, squares * splat(1.0f / kBlockColumns));
            for (float& u : usual) u = std::sqrt(u);
            for (int i = 0; i < kBlockColumns; ++i) store(w.v[i], load(usual) + abs(load(v.v[i])));
        }
        const Affine fit = fit_affine(v, w, kMost, importance ? Ladder{-0.9f, 0.05f, 36} : kLadder);
        float total[kLanes], scale[kLanes], minimum[kLanes];
        F32x16 sum = splat(0.0f);
        for (int i = 0; i < kBlockColumns; ++i) sum = sum + load(w.v[i]);
        store(total, sum);
        store(scale, fit.scale);
        store(minimum, fit.minimum);
        for (int b = 0; b < blocks; ++b) {
            put_k_scales(total + 8 * b, scale + 8 * b, minimum + 8 * b, out + b * source_block(T).bytes);
        }
        uint8_t q[2 * kSuperColumns];
        scatter_quants(v, kBlockColumns, load(scale), load(minimum), 0.0f, kMost, q);
        for (int b = 0; b < blocks; ++b) {
            const uint8_t* s = q + b * kSuperColumns;
            uint8_t* low = out + (T == WeightType::kQ5_K ? 48 : 16);
            for (int j = 0; j < 4; ++j, low += kBlockColumns) {
                for (int i = 0; i < kBlockColumns; ++i) {
                    low[i] = static_cast<uint8_t>((s[64 * j + i] & 15) | s[64 * j + 32 + i] << 4);
                }
            }
            if constexpr (T == WeightType::kQ5_K) {
                for (int i = 0; i < kBlockColumns; ++i) {
                    int bits = 0;
                    for (int j = 0; j < 8; ++j) bits |= s[kBlockColumns * j + i] >> 4 << j;
                    out[16 + i] = static_cast<uint8_t>(bits);
                }
            }
            out += source_block(T).bytes;
        }
    }
}

inline void search_q6_k(const float* x, int64_t columns, const float* importance, uint8_t* out) {
    constexpr int kCount = 16;
    Columns v, w;
    for (int64_t begin = 0; begin < columns; begin += kSuperColumns, out += 210) {
        gather(x + begin, kCount, kLanes, v);
        if (importance) {
            gather(importance + begin, kCount, kLanes, w);
        } else {
            for (int i = 0; i < kCount; ++i) store(w.v[i], load(v.v[i]) * load(v.v[i]));
        }
        float scale[kLanes];
        store(scale, fit_symmetric(v, w, kCount, 32.0f));
        float peak = 0.0f;
        for (const float s : scale) peak = std::fabs(s) > std::fabs(peak) ? s : peak;
        const float inverse = std::fabs(peak) < kTinyScale ? 0.0f : -128.0f / peak;
        const float d = inverse == 0.0f ? 0.0f : 1.0f / inverse;
        put_f16(out + 208, d);
        const float stored = f16_value(f16_bits(d));
        for (int j = 0; j < kLanes; ++j) {
            const float s = std::nearbyint(inverse * scale[j]);
            const auto whole = static_cast<int8_t>(s < 127.0f ? s : 127.0f);
            out[192 + j] = static_cast<uint8_t>(whole);
            scale[j] = stored * static_cast<float>(whole);
        }
        uint8_t q[kSuperColumns];
        scatter_quants(v, kCount, load(scale), splat(0.0f), -32.0f, 63.0f, q);
        for (int half = 0; half < 2; ++half) {
            const uint8_t* s = q + 128 * half;
            uint8_t *low = out + 64 * half, *high = out + 128 + 32 * half;
            for (int i = 0; i < 64; ++i) low[i] = static_cast<uint8_t>((s[i] & 15) | s[i + 64] << 4);
            for (int i = 0; i < 32; ++i) {
                high[i] = static_cast<uint8_t>(s[i] >> 4 | s[i + 32] >> 4 << 2 | s[i + 64] >> 4 << 4 |
                                               s[i + 96] >> 4 << 6);
            }
        }
    }
}

template <WeightType T>
void write_blocks(const float* x, int64_t columns, const float* importance, uint8_t* out) {
    if constexpr (T != WeightType::kQ8_0) {
        if (importance) return search_blocks<T>(x, columns, importance, out);
    }
    for (int64_t c = 0; c < columns; c += kBlockColumns, out += source_block(T).bytes) {
        quantize_block<T>(x + c, out);
    }
}

// One row in GGUF's layout of `type`. importance: a weight for each column, or null; Q8_0 and float types
// have no use for it.
inline void write_weights(WeightType type, const float* x, int64_t columns, const float* importance,
                          uint8_t* out) {
    switch (type) {
        case WeightType::kF32:
        case WeightType::kF16:
        case WeightType::kBF16:
            return write_floats(type, x, columns, out);
        case WeightType::kQ4_0:
            return write_blocks<WeightType::kQ4_0>(x, columns, importance, out);
        case WeightType::kQ4_1:
            return write_blocks<WeightType::kQ4_1>(x, columns, importance, out);
        case WeightType::kQ5_0:
            return write_blocks<WeightType::kQ5_0>(x, columns, importance, out);
        case WeightType::kQ5_1:
            return write_blocks<WeightType::kQ5_1>(x, columns, importance, out);
        case WeightType::kQ8_0:
            return write_blocks<WeightType::kQ8_0>(x, columns, importance, out);
        case WeightType::kQ4_K:
            return search_affine_k<WeightType::kQ4_K>(x, columns, importance, out);
        case WeightType::kQ5_K:
            return search_affine_k<WeightType::kQ5_K>(x, columns, importance, out);
        case WeightType::kQ6_K:
            return search_q6_k(x, columns, importance, out);
    }
}

}  // namespace tandem::TANDEM_ISA
