// How often this module has taken 4 KiB or more from the system: the counter behind `allocations_per_step`.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tandem {

constexpr size_t kCountedAllocation = 4096;

// Since the module was loaded, over all threads.
uint64_t allocations();
// For memory that does not come from operator new.
void count_allocation(size_t bytes);

}  // namespace tandem
