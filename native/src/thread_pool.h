// The CPU lane's threads. A program runs on all of them at once: each thread walks the same list of
// operations, takes its share of each, and meets the others at barriers, so that a step costs one wake-up and
// not one per operation.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace tandem {

class ThreadPool;

// One thread's view of a running section.
class Worker {
 public:
    Worker(ThreadPool& pool, int index) : pool_(pool), index_(index) {}
    int index() const { return index_; }
    int count() const;
    void barrier();

    // This thread's static share [begin, end) of n items; the same for equal n, so that consecutive
    // operations over rows need no barrier between them.
    std::pair<int64_t, int64_t> share(int64_t n) const {
        return {n * index_ / count(), n * (index_ + 1) / count()};
    }

    // Calls body(begin, end) on chunks of at most `grain` items until all n are taken; ends with a barrier.
    template <typename Body>
    void dynamic_for(int64_t n, int64_t grain, Body&& body);

    // The same with chunks of `least` to `most` items that shrink towards the end (guided self-scheduling,
    // Polychronopoulos and Kuck 1987): for bodies that pay for each chunk.
    template <typename Body>
    void guided_for(int64_t n, int64_t least, int64_t most, Body&& body);

 private:
    ThreadPool& pool_;
    int index_;
};

class ThreadPool {
 public:
    explicit ThreadPool(int threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int count() const { return count_; }
    // Runs section(worker) on every thread, the calling one included; returns when all are done.
    void run(const std::function<void(Worker&)>& section);

 private:
    friend class Worker;
    void work(int index);
    void barrier();

    const int count_;
    std::vector<std::thread> threads_;
    const std::function<void(Worker&)>* section_ = nullptr;
    std::atomic<bool> stopping_ = false;
    alignas(64) std::atomic<uint32_t> generation_ = 0;
    alignas(64) std::atomic<int> arrived_ = 0;
    alignas(64) std::atomic<uint32_t> phase_ = 0;
    alignas(64) std::atomic<int64_t> cursor_ = 0;
};

template <typename Body>
void Worker::dynamic_for(int64_t n, int64_t grain, Body&& body) {
    for (;;) {
        const int64_t begin = pool_.cursor_.fetch_add(grain, std::memory_order_relaxed);
        if (begin >= n) break;
        body(begin, begin + grain < n ? begin + grain : n);
    }
    barrier();
}

template <typename Body>
void Worker::guided_for(int64_t n, int64_t least, int64_t most, Body&& body) {
    auto& cursor = pool_.cursor_;
    for (;;) {
        int64_t begin = cursor.load(std::memory_order_relaxed), end;
        do {
            const int64_t fair = (n - begin) / (2 * count()) / least * least;
            end = std::min(begin + std::max(least, std::min(fair, most)), n);
        } while (begin < n && !cursor.compare_exchange_weak(begin, end, std::memory_order_relaxed));
        if (begin >= n) break;
        body(begin, end);
    }
    barrier();
}

}  // namespace tandem
