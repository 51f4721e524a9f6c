// The module's own operator new, so that every container and every object is counted without a word in its
// code. Linked with -Bsymbolic-functions: neither do others allocate here, nor does this module elsewhere.
#include "src/allocations.h"

#include <atomic>
#include <cstdlib>
#include <new>

namespace tandem {

namespace {
std::atomic<uint64_t> counted{0};
}

uint64_t allocations() { return counted.load(std::memory_order_relaxed); }

void count_allocation(size_t bytes) {
    if (bytes >= kCountedAllocation) counted.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace tandem

// The other forms (arrays, nothrow) call these; the library's sized forms of delete do too.
void* operator new(size_t bytes) {
    tandem::count_allocation(bytes);
    if (void* p = std::malloc(bytes ? bytes : 1)) return p;
    throw std::bad_alloc();
}

void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }

void* operator new[](size_t bytes) { return operator new(bytes); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete[](void* p, size_t) noexcept { std::free(p); }

void* operator new(size_t bytes, std::align_val_t alignment) {
    tandem::count_allocation(bytes);
    const auto unit = static_cast<size_t>(alignment);
    if (void* p = std::aligned_alloc(unit, (bytes + unit - 1) / unit * unit)) return p;
    throw std::bad_alloc();
}

void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, size_t, std::align_val_t) noexcept { std::free(p); }
