// Fills a Kernels table from the templates of one instruction set; included once by each kernels_<isa>.cpp.
#pragma once

#include "kernels/attention.h"
#include "kernels/ceilings.h"
#include "kernels/elementwise.h"
#include "kernels/matmul.h"
#include "kernels/quantize.h"
#include "kernels/repack.h"
#include "kernels/sampling.h"
#include "kernels/weight_search.h"

namespace tandem::TANDEM_ISA {

inline Kernels make_table(const char* name) {
    return {
        .name = name,
        .repack = repack,
        .quantize_row = quantize_row,
        .matmul = matmul,
        .rms_norm = rms_norm,
        .gate_up = gate_up,
        .add = add,
        .scale = scale,
        .softcap = softcap,
        .rope = rope,
        .store_kv = store_kv,
        .attention = attention,
        .fold_attention = fold_attention,
        .read_floats = read_floats,
        .write_weights = write_weights,
        .probes = make_probes(),
        .sampler = {scan, copy, total_mass, bucket_masses, find_bucket, count_before, noise_bounds},
    };
}

}  // namespace tandem::TANDEM_ISA
