// Weights from a file's bytes into packed matrices, on all threads of a lane.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "kernels/kernels.h"
#include "src/lane.h"

namespace tandem {

struct FileRange {
    std::string path;  // for messages
    int descriptor;    // open for reading while packing lasts
    int64_t offset;    // of the first byte
};

struct PackTask {
    PackedMatrix* matrix;   // from make_packed
    const uint8_t* source;  // its GGUF bytes, where there is no file
    const FileRange* file;  // or null
};

// Waits for what the lane has queued before, then fills all matrices. Files are read, a piece at a time, so
// that one that fails or is cut short meanwhile is an error of ours: StepFailed, which names it.
void pack(Lane& lane, const Kernels& kernels, std::span<const PackTask> tasks);

}  // namespace tandem
