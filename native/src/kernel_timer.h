// Times kernels on all threads as a program runs them, without the program around them.
#pragma once

#include <vector>

#include "kernels/kernels.h"

namespace tandem {

// Seconds of one product of float32 rows x [rows][columns] with a matrix, the mean of calls that take
// `seconds` together. The matrices, all of one type and shape, take turns, so that weights come from memory
// as they do in a model when they are more than the caches hold. Quantizing x is not counted.
double time_products(const Kernels& kernels, int threads, const std::vector<const PackedMatrix*>& matrices,
                     const float* x, int rows, double seconds);

// Seconds to normalize `rows` rows of `columns` float32 and quantize them, rows shared among the threads.
double time_normalize(const Kernels& kernels, int threads, int64_t rows, int64_t columns, double seconds);

// Seconds to repack `copies` matrices, one after the other, from GGUF bytes that lie in memory one after the
// other into memory that is there already, pieces shared among the threads.
double time_repack(const Kernels& kernels, int threads, WeightType type, int64_t rows, int64_t columns,
                   const uint8_t* source, int64_t copies, double seconds);

// Bytes per second at which the threads are given memory that nobody had: the kernel finds and clears it.
double first_touch_rate(int threads, int64_t bytes);

}  // namespace tandem
