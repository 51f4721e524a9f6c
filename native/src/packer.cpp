#include "src/packer.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

namespace tandem {
namespace {

// Source bytes that a thread takes at a time: few system calls, small enough that the threads end together.
constexpr int64_t kPieceBytes = int64_t{512} << 10;
// How far ahead the disk is asked for what memory does not hold.
constexpr size_t kPiecesAhead = 8;

struct Piece {
    const PackTask* task;
    int64_t group_begin, group_end;

    // The pages of the source that the piece reads; its neighbours may share the outer ones.
    void advise(int advice) const {
        if (!task->mapped) return;
        const PackedMatrix& w = *task->matrix;
        const int64_t row_bytes = source_bytes(w.type, 1, w.columns);
        const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
        const auto source = reinterpret_cast<uintptr_t>(task->source);
        const uintptr_t begin = source + static_cast<uintptr_t>(group_begin * kGroupRows * row_bytes);
        const uintptr_t end =
            source + static_cast<uintptr_t>(std::min(group_end * kGroupRows, w.rows) * row_bytes);
        const uintptr_t first = begin / page * page;
        // Only advice: where the kernel does not know it, pages come and go as they otherwise would.
        madvise(reinterpret_cast<void*>(first), end - first, advice);
    }
};

std::vector<Piece> cut(std::span<const PackTask> tasks) {
    std::vector<Piece> pieces;
    for (const PackTask& task : tasks) {
        const PackedMatrix& w = *task.matrix;
        const int64_t group_source = kGroupRows * source_bytes(w.type, 1, w.columns);
        const int64_t step = std::max<int64_t>(1, kPieceBytes / group_source);
        for (int64_t g = 0; g < w.groups; g += step) {
            pieces.push_back({&task, g, std::min(g + step, w.groups)});
        }
    }
    return pieces;
}

}  // namespace

void pack(Lane& lane, const Kernels& kernels, std::span<const PackTask> tasks) {
    const std::vector<Piece> pieces = cut(tasks);
    for (size_t i = 0; i < std::min(kPiecesAhead, pieces.size()); ++i) pieces[i].advise(MADV_WILLNEED);
    const std::function<void(Worker&)> section = [&](Worker& worker) {
        worker.dynamic_for(static_cast<int64_t>(pieces.size()), 1, [&](int64_t begin, int64_t) {
            const auto i = static_cast<size_t>(begin);
            const Piece& piece = pieces[i];
            if (i + kPiecesAhead < pieces.size()) pieces[i + kPiecesAhead].advise(MADV_WILLNEED);
#ifdef MADV_POPULATE_READ
            piece.advise(MADV_POPULATE_READ);
#endif
            kernels.repack(*piece.task->matrix, piece.task->source, piece.group_begin, piece.group_end);
            piece.advise(MADV_DONTNEED);
        });
    };
    lane.run([&](ThreadPool& pool) { pool.run(section); });
    // The kernel maps some pages around those that it is asked for, which a neighbour may have let go before.
    for (const PackTask& task : tasks) Piece{&task, 0, task.matrix->groups}.advise(MADV_DONTNEED);
}

}  // namespace tandem
