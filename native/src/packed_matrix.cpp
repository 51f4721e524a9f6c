#include "kernels/packed_matrix.h"

#include <cstring>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>

#include "src/gguf_blocks.h"
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

// A vector of 64 bytes gathers four bytes of each of the 16 rows.
void interleave(const uint8_t (*rows)[kBlockColumns], int first, uint8_t* out) {
    for (int i = 0; i < kGroupRows; ++i) std::memcpy(out + 4 * i, rows[i] + first, 4);
}

// Packs q[row][column], unsigned values of one block, as packed_matrix.h states.
template <WeightType T>
void pack_quants(const uint8_t (*q)[kBlockColumns], uint8_t* out) {
    alignas(64) uint8_t quad[8][64];
    for (int j = 0; j < 8; ++j) interleave(q, 4 * j, quad[j]);
    if constexpr (quant_bits(T) == 8) {
        std::memcpy(out, quad, sizeof quad);
        return;
    }
    for (int j = 0; j < 4; ++j) {
        for (int p = 0; p < 64; ++p) {
            out[64 * j + p] = static_cast<uint8_t>((quad[j][p] & 15) | quad[j + 4][p] << 4);
        }
    }
    if constexpr (quant_bits(T) == 5) {
        for (int p = 0; p < 64; ++p) {
            unsigned bits = 0;
            for (int j = 0; j < 8; ++j) bits |= static_cast<unsigned>(quad[j][p] >> 4) << j;
            out[256 + p] = static_cast<uint8_t>(bits);
        }
    }
    if constexpr (quant_bits(T) == 6) {
        for (int half = 0; half < 2; ++half) {
            for (int p = 0; p < 64; ++p) {
                unsigned bits = 0;
                for (int j = 0; j < 4; ++j)
                    bits |= static_cast<unsigned>(quad[4 * half + j][p] >> 4) << (2 * j);
                out[256 + 64 * half + p] = static_cast<uint8_t>(bits);
            }
        }
    }
}

// Writes lane `i` of the header entry for block `b` of a panel, from the source block that holds it.
template <WeightType T>
void pack_scales(const uint8_t* source, int b, int i, uint8_t* panel) {
    if constexpr (T == WeightType::kQ6_K) {
        panel[64 + 32 * b + i] = source[192 + 2 * b];
        panel[64 + 32 * b + 16 + i] = source[192 + 2 * b + 1];
        if (b == 0) std::memcpy(panel + 2 * i, source + 208, 2);
    } else if constexpr (is_k_quant(T)) {
        k_scale_min(source + 4, b, panel + 64 + 16 * b + i, panel + 192 + 16 * b + i);
        if (b == 0) {
            std::memcpy(panel + 2 * i, source, 2);
            panel[32 + 2 * i] = source[2];
            panel[33 + 2 * i] = source[3] ^ 0x80;  // the sign, so that products add the minimum
        }
    } else {
        std::memcpy(panel + 32 * b + 2 * i, source, 2);
        if constexpr (has_minimum(T)) std::memcpy(panel + 256 + 32 * b + 2 * i, source + 2, 2);
    }
}

template <WeightType T>
void repack_quantized(PackedMatrix& w, const uint8_t* source, int64_t group) {
    const SourceBlock unit = source_block(T);
    const int64_t row_bytes = w.columns / unit.columns * unit.bytes;
    const int rows =
        static_cast<int>(w.rows - group * kGroupRows < kGroupRows ? w.rows - group * kGroupRows : kGroupRows);
    const uint8_t* first = source + group * kGroupRows * row_bytes;
    uint8_t* out = w.data + group * w.group_bytes;
    alignas(64) uint8_t q[kGroupRows][kBlockColumns];
    std::memset(q, 0, sizeof q);
    const int64_t blocks = w.columns / kBlockColumns;
    for (int64_t block = 0; block < blocks; ++block) {
        const int b = static_cast<int>(block % kPanelBlocks);
        uint8_t* panel = out + block / kPanelBlocks * panel_bytes(T);
        if (b == 0) std::memset(panel, 0, header_bytes(T));
        const int64_t offset = is_k_quant(T) ? block / kPanelBlocks * unit.bytes : block * unit.bytes;
        for (int i = 0; i < rows; ++i) {
            const uint8_t* p = first + i * row_bytes + offset;
            read_quants<T>(p, b, q[i]);
            pack_scales<T>(p, b, i, panel);
        }
        pack_quants<T>(q, panel + header_bytes(T) + b * block_bytes(T));
    }
}

template <typename Word>
void repack_float(PackedMatrix& w, const uint8_t* source, int64_t group) {
    uint8_t* out = w.data + group * w.group_bytes;
    std::memset(out, 0, static_cast<size_t>(w.group_bytes));
    for (int64_t i = 0; i < kGroupRows && group * kGroupRows + i < w.rows; ++i) {
        const uint8_t* row =
            source + (group * kGroupRows + i) * w.columns * static_cast<int64_t>(sizeof(Word));
        for (int64_t c = 0; c < w.columns; ++c) {
            std::memcpy(out + (c * kGroupRows + i) * sizeof(Word), row + c * sizeof(Word), sizeof(Word));
        }
    }
}

}  // namespace

SourceBlock source_block(WeightType t) {
    switch (t) {
        case WeightType::kF32:
            return {1, 4};
        case WeightType::kF16:
        case WeightType::kBF16:
            return {1, 2};
        case WeightType::kQ4_0:
            return {32, 18};
        case WeightType::kQ4_1:
            return {32, 20};
        case WeightType::kQ5_0:
            return {32, 22};
        case WeightType::kQ5_1:
            return {32, 24};
        case WeightType::kQ8_0:
            return {32, 34};
        case WeightType::kQ4_K:
            return {256, 144};
        case WeightType::kQ5_K:
            return {256, 176};
        case WeightType::kQ6_K:
            return {256, 210};
    }
    throw std::invalid_argument("products do not take weights of GGUF type " +
                                std::to_string(static_cast<int>(t)));
}

int64_t source_bytes(WeightType type, int64_t rows, int64_t columns) {
    const SourceBlock unit = source_block(type);
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

void repack_groups(PackedMatrix& w, const uint8_t* source, int64_t group_begin, int64_t group_end) {
    for (int64_t g = group_begin; g < group_end; ++g) {
        switch (w.type) {
            case WeightType::kF32:
                repack_float<uint32_t>(w, source, g);
                break;
            case WeightType::kF16:
            case WeightType::kBF16:
                repack_float<uint16_t>(w, source, g);
                break;
            case WeightType::kQ4_0:
                repack_quantized<WeightType::kQ4_0>(w, source, g);
                break;
            case WeightType::kQ4_1:
                repack_quantized<WeightType::kQ4_1>(w, source, g);
                break;
            case WeightType::kQ5_0:
                repack_quantized<WeightType::kQ5_0>(w, source, g);
                break;
            case WeightType::kQ5_1:
                repack_quantized<WeightType::kQ5_1>(w, source, g);
                break;
            case WeightType::kQ8_0:
                repack_quantized<WeightType::kQ8_0>(w, source, g);
                break;
            case WeightType::kQ4_K:
                repack_quantized<WeightType::kQ4_K>(w, source, g);
                break;
            case WeightType::kQ5_K:
                repack_quantized<WeightType::kQ5_K>(w, source, g);
                break;
            case WeightType::kQ6_K:
                repack_quantized<WeightType::kQ6_K>(w, source, g);
                break;
        }
    }
}

}  // namespace tandem
