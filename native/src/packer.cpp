#include "src/packer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <vector>

namespace tandem {
namespace {

// Source bytes that a thread takes at a time: they stay in its L2 cache from reading to packing.
constexpr int64_t kPieceBytes = int64_t{256} << 10;
// How far ahead the disk is asked for what memory does not hold.
constexpr size_t kPiecesAhead = 16;

struct Piece {
    const PackTask* task;
    int64_t group_begin, group_end;
    int64_t offset, bytes;  // of the source
};

std::vector<Piece> cut(std::span<const PackTask> tasks) {
    std::vector<Piece> pieces;
    for (const PackTask& task : tasks) {
        const PackedMatrix& w = *task.matrix;
        const int64_t row_bytes = source_bytes(w.type, 1, w.columns);
        const int64_t step = std::max<int64_t>(1, kPieceBytes / (kGroupRows * row_bytes));
        for (int64_t g = 0; g < w.groups; g += step) {
            const int64_t end = std::min(g + step, w.groups), first_row = g * kGroupRows;
            const int64_t rows = std::min(end * kGroupRows, w.rows) - first_row;
            pieces.push_back({&task, g, end, first_row * row_bytes, rows * row_bytes});
        }
    }
    return pieces;
}

void read_ahead(const Piece& piece) {
    const FileRange* file = piece.task->file;
    // Only advice: where it is not taken, the disk is waited for.
    if (file) posix_fadvise(file->descriptor, file->offset + piece.offset, piece.bytes, POSIX_FADV_WILLNEED);
}

// Throws std::runtime_error where the bytes cannot be had.
void read(const FileRange& file, int64_t offset, int64_t bytes, uint8_t* out) {
    for (int64_t done = 0; done < bytes;) {
        const int64_t at = file.offset + offset + done;
        const ssize_t n = pread(file.descriptor, out + done, static_cast<size_t>(bytes - done), at);
        if (n == 0) {
            throw std::runtime_error(file.path + " ends at byte " + std::to_string(at) +
                                     ": something shortened it while it was read");
        }
        if (n < 0 && errno != EINTR) {
            throw std::runtime_error(file.path + " cannot be read at byte " + std::to_string(at) + ": " +
                                     std::strerror(errno));
        }
        if (n > 0) done += n;
    }
}

}  // namespace

void pack(Lane& lane, const Kernels& kernels, std::span<const PackTask> tasks) {
    const std::vector<Piece> pieces = cut(tasks);
    int64_t largest = 0;
    for (const Piece& piece : pieces) largest = std::max(largest, piece.task->file ? piece.bytes : 0);
    const auto buffers =
        std::make_unique_for_overwrite<uint8_t[]>(static_cast<size_t>(largest * lane.threads()));
    std::mutex mutex;
    std::exception_ptr failure;  // the first that a thread met
    std::atomic<bool> failed = false;
    for (size_t i = 0; i < std::min(kPiecesAhead, pieces.size()); ++i) read_ahead(pieces[i]);
    const std::function<void(Worker&)> section = [&](Worker& worker) {
        uint8_t* buffer = buffers.get() + worker.index() * largest;
        worker.dynamic_for(static_cast<int64_t>(pieces.size()), 1, [&](int64_t begin, int64_t) {
            if (failed.load(std::memory_order_relaxed)) return;
            const auto i = static_cast<size_t>(begin);
            const Piece& piece = pieces[i];
            if (i + kPiecesAhead < pieces.size()) read_ahead(pieces[i + kPiecesAhead]);
            const uint8_t* source = piece.task->source + piece.offset;
            if (const FileRange* file = piece.task->file) {
                try {
                    read(*file, piece.offset, piece.bytes, buffer);
                } catch (const std::runtime_error&) {
                    const std::lock_guard lock(mutex);
                    if (!failed.exchange(true)) failure = std::current_exception();
                    return;
                }
                source = buffer;
            }
            kernels.repack(*piece.task->matrix, source, piece.group_begin, piece.group_end);
        });
    };
    lane.run([&](ThreadPool& pool) {
        pool.run(section);
        if (failure) std::rethrow_exception(failure);
    });
}

}  // namespace tandem
