#include "src/mapped_memory.h"

#include <sys/mman.h>

#include <new>
#include <utility>

#include "src/allocations.h"

namespace tandem {

MappedMemory::MappedMemory(size_t bytes) : bytes_(bytes) {
    if (bytes == 0) return;
    void* p =
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    count_allocation(bytes);
    constexpr size_t huge_page = size_t{2} << 20;
    if (bytes >= 2 * huge_page) madvise(p, bytes, MADV_HUGEPAGE);
    data_ = static_cast<uint8_t*>(p);
}

MappedMemory::~MappedMemory() {
    if (data_) munmap(data_, bytes_);
}

MappedMemory::MappedMemory(MappedMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

MappedMemory& MappedMemory::operator=(MappedMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
}

}  // namespace tandem
