// Memory that the programs of a lane work in, one after another: it holds nothing between two runs.
#pragma once

#include "src/mapped_memory.h"

namespace tandem {

class Scratch {
 public:
    // Not while a program of the lane runs. Throws std::bad_alloc.
    void reserve(size_t bytes) {
        if (bytes > memory_.bytes()) memory_ = MappedMemory(bytes);
    }
    uint8_t* data() const { return memory_.data(); }
    size_t bytes() const { return memory_.bytes(); }

 private:
    MappedMemory memory_;
};

}  // namespace tandem
