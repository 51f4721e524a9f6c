// What the machine can do at most with n threads at once: the probes of an instruction set, timed.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "kernels/kernels.h"

namespace tandem {

// Multiply-adds per second of all threads together, by unit: int8, f32, and bf16 where the CPU has such dots.
// Each is measured once, for about `seconds`.
std::vector<std::pair<std::string, double>> multiply_rates(const Kernels& kernels, int threads,
                                                           double seconds);

// Bytes per second at which the threads, each its own part, read a buffer of at least `bytes` bytes over and
// over for about `seconds`; the best pass counts.
double read_rate(const Kernels& kernels, int threads, int64_t bytes, double seconds);

}  // namespace tandem
