#include "kernels/packed_matrix.h"

#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>

#include "src/mapped_memory.h"

namespace tandem {
namespace {

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Memory that matrices share until the last of them is gone: many are smaller than a huge page, and on pages
// of 4 KiB their products were measured a quarter slower. What is not used is never touched, so it costs
// nothing.
struct Chunk {
    MappedMemory memory;
    size_t used;
};

std::shared_ptr<uint8_t> map_shared(size_t bytes) {
    constexpr size_t kHugePage = size_t{2} << 20, kChunk = size_t{64} << 20;
    static std::mutex mutex;
    static std::weak_ptr<Chunk> current;
    const std::lock_guard lock(mutex);
    std::shared_ptr<Chunk> chunk = current.lock();
    if (!chunk || chunk->used + bytes > chunk->memory.bytes()) {
        const bool own = bytes > kChunk / 2;
        chunk = std::make_shared<Chunk>(MappedMemory((own ? bytes : kChunk) + kHugePage), size_t{0});
        chunk->used = -reinterpret_cast<uintptr_t>(chunk->memory.data()) % kHugePage;
        if (!own) current = chunk;
    }
    uint8_t* data = chunk->memory.data() + chunk->used;
    chunk->used += static_cast<size_t>(round_up(static_cast<int64_t>(bytes), 64));
    return {chunk, data};
}

}  // namespace

int64_t source_bytes(WeightType type, int64_t rows, int64_t columns) {
    const SourceBlock unit = source_block(type);
    if (unit.bytes == 0) {
        throw std::invalid_argument("products do not take weights of GGUF type " +
                                    std::to_string(static_cast<int>(type)));
    }
    const std::string shape = std::to_string(rows) + " x " + std::to_string(columns);
    if (rows < 1 || columns < 1) throw std::invalid_argument("a " + shape + " matrix is empty");
    if (columns % unit.columns != 0) {
        throw std::invalid_argument("a " + shape + " matrix of GGUF type " +
                                    std::to_string(static_cast<int>(type)) +
                                    " needs columns that are a multiple of " + std::to_string(unit.columns));
    }
    int64_t bytes;
    if (__builtin_mul_overflow(rows, columns / unit.columns, &bytes) ||
        __builtin_mul_overflow(bytes, unit.bytes, &bytes)) {
        throw std::invalid_argument("a " + shape + " matrix is larger than any memory");
    }
    return bytes;
}

void check_source(WeightType type, int64_t rows, int64_t columns, size_t bytes) {
    const int64_t expected = source_bytes(type, rows, columns);
    if (static_cast<int64_t>(bytes) != expected) {
        throw std::invalid_argument("a " + std::to_string(rows) + " x " + std::to_string(columns) +
                                    " matrix of GGUF type " + std::to_string(static_cast<int>(type)) +
                                    " takes " + std::to_string(expected) + " bytes, not " +
                                    std::to_string(bytes));
    }
}

PackedMatrix packed_layout(WeightType type, int64_t rows, int64_t columns) {
    source_bytes(type, rows, columns);  // checks the shape
    const int64_t groups = (rows + kGroupRows - 1) / kGroupRows;
    int64_t group_bytes;
    if (is_quantized(type)) {
        const int64_t blocks = columns / kBlockColumns, rest = blocks % kPanelBlocks;
        group_bytes = blocks / kPanelBlocks * panel_bytes(type);
        if (rest > 0) group_bytes += header_bytes(type) + rest * block_bytes(type);
    } else {
        group_bytes = round_up(columns * kGroupRows * float_bytes(type), 64);
    }
    return {type, rows, columns, groups, group_bytes, groups * group_bytes, nullptr, {}};
}

PackedMatrix make_packed(WeightType type, int64_t rows, int64_t columns) {
    PackedMatrix w = packed_layout(type, rows, columns);
    w.memory = map_shared(static_cast<size_t>(w.bytes));
    w.data = w.memory.get();
    return w;
}

}  // namespace tandem
