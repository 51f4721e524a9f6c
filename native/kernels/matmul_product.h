// What every product kernel is asked for.
#pragma once

#include "kernels/kernels.h"
#include "kernels/simd.h"

namespace tandem::TANDEM_ISA {

struct Product {
    const PackedMatrix* w;
    int64_t group_begin, group_end;
    const Activations* x;
    int rows;
    float* out;
    int64_t out_stride;
};

constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

}  // namespace tandem::TANDEM_ISA
