// Zero-filled memory for the lifetime of a block, a pool or a program: page-aligned, from mmap, so that
// untouched parts cost nothing and huge pages back large ones.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tandem {

class MappedMemory {
 public:
    MappedMemory() = default;
    explicit MappedMemory(size_t bytes);  // throws std::bad_alloc
    ~MappedMemory();
    MappedMemory(MappedMemory&& other) noexcept;
    MappedMemory& operator=(MappedMemory&& other) noexcept;

    uint8_t* data() const { return data_; }
    size_t bytes() const { return bytes_; }

 private:
    uint8_t* data_ = nullptr;
    size_t bytes_ = 0;
};

}  // namespace tandem
