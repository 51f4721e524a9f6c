// Weights from a file's bytes into packed matrices, on all threads of a lane.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/kernels.h"
#include "src/lane.h"

namespace tandem {

struct PackTask {
    PackedMatrix* matrix;   // from make_packed
    const uint8_t* source;  // its GGUF bytes
    // Whether the bytes are a mapped file, whose pages are brought in ahead of the packing and let go after
    // it: what is resident at a time stays small, and what was let go can be mapped again.
    bool mapped;
};

// Waits for what the lane has queued before, then fills all matrices.
void pack(Lane& lane, const Kernels& kernels, std::span<const PackTask> tasks);

}  // namespace tandem
