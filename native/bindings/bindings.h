#pragma once

#include <nanobind/nanobind.h>

namespace tandem {

void bind_matmul(nanobind::module_& m);
void bind_batch(nanobind::module_& m);
void bind_cpu(nanobind::module_& m);
void bind_sampler(nanobind::module_& m);
void bind_quantizer(nanobind::module_& m);
void bind_scoring(nanobind::module_& m);
void bind_bench(nanobind::module_& m);

}  // namespace tandem
