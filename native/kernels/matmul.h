// Products of packed weights with a few or many rows of activations: the definition that all instruction sets
// keep.
//
// For one output element, over the blocks b of 32 columns in ascending order, with x's scale dx, integers q
// and their sum from quantize.h, the weight's integers w, all of float32 with fma where it is written and acc
// starting at 0:
//   Q4_0 Q5_0 Q8_0   acc = fma(d * dx, float(dot(w, q)), acc)
//   Q4_1 Q5_1        acc = fma(d * dx, float(dot(w, q)), acc); acc = fma(m, dx * float(sum), acc)
//   Q4_K Q5_K        the same with d * scale for d and -(dmin * minimum) for m
//   Q6_K             t = fma(d * scale1, float(dot1), (d * scale0) * float(dot0)); acc = fma(dx, t, acc),
//   where dot0 is
//                    over the block's first 16 columns and dot1 over the others
//   F32 F16 BF16     acc = fma(w, x, acc) over single columns, float32 activations
// The dots are exact in int32, so how they are taken (as unsigned weights with the zero point folded in
// through the sum of q, in any order, in any width) does not show. An element depends on its own row alone:
// the number of rows, the range of groups and the instruction set leave its bits unchanged.
#pragma once

#include "kernels/kernels.h"
#include "kernels/simd.h"

#if defined(__AVX2__)
#include "kernels/matmul_float.h"
#include "kernels/matmul_quantized.h"
#else
#include "kernels/matmul_scalar.h"
#endif

namespace tandem::TANDEM_ISA {

inline void matmul(const PackedMatrix& w, int64_t group_begin, int64_t group_end, const Activations& x,
                   int rows, float* out, int64_t out_stride) {
    const Product p{&w, group_begin, group_end, &x, rows, out, out_stride};
    switch (w.type) {
        case WeightType::kF32:
            return multiply_float<WeightType::kF32>(p);
        case WeightType::kF16:
            return multiply_float<WeightType::kF16>(p);
        case WeightType::kBF16:
            return multiply_float<WeightType::kBF16>(p);
        case WeightType::kQ4_0:
            return multiply_quantized<WeightType::kQ4_0>(p);
        case WeightType::kQ4_1:
            return multiply_quantized<WeightType::kQ4_1>(p);
        case WeightType::kQ5_0:
            return multiply_quantized<WeightType::kQ5_0>(p);
        case WeightType::kQ5_1:
            return multiply_quantized<WeightType::kQ5_1>(p);
        case WeightType::kQ8_0:
            return multiply_quantized<WeightType::kQ8_0>(p);
        case WeightType::kQ4_K:
            return multiply_quantized<WeightType::kQ4_K>(p);
        case WeightType::kQ5_K:
            return multiply_quantized<WeightType::kQ5_K>(p);
        case WeightType::kQ6_K:
            return multiply_quantized<WeightType::kQ6_K>(p);
    }
}

}  // namespace tandem::TANDEM_ISA
