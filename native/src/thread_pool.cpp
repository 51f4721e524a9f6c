#include "src/thread_pool.h"

#include <immintrin.h>

namespace tandem {

namespace {

// Long enough to bridge the gaps between operations and between steps of a busy engine, short enough that an
// idle engine sleeps: some tens of microseconds, as long as `pause` makes it.
constexpr int kSpins = 2000;

template <typename T>
void wait_while_equal(const std::atomic<T>& value, T old) {
    for (int spin = 0; spin < kSpins; ++spin) {
        if (value.load(std::memory_order_acquire) != old) return;
        _mm_pause();
    }
    value.wait(old, std::memory_order_acquire);
}

}  // namespace

int Worker::count() const { return pool_.count(); }
void Worker::barrier() { pool_.barrier(); }

ThreadPool::ThreadPool(int threads) : count_(threads) {
    for (int index = 1; index < count_; ++index) threads_.emplace_back([this, index] { work(index); });
}

ThreadPool::~ThreadPool() {
    stopping_ = true;
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
    for (auto& thread : threads_) thread.join();
}

void ThreadPool::run(const std::function<void(Worker&)>& section) {
    section_ = &section;
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
    Worker worker(*this, 0);
    section(worker);
    barrier();  // nobody still reads `section` after this
}

void ThreadPool::work(int index) {
    uint32_t seen = 0;
    Worker worker(*this, index);
    for (;;) {
        wait_while_equal(generation_, seen);
        ++seen;
        if (stopping_) return;
        (*section_)(worker);
        barrier();
    }
}

void ThreadPool::barrier() {
    if (count_ == 1) {
        cursor_.store(0, std::memory_order_relaxed);
        return;
    }
    const uint32_t phase = phase_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == count_ - 1) {
        arrived_.store(0, std::memory_order_relaxed);
        cursor_.store(0, std::memory_order_relaxed);
        phase_.fetch_add(1, std::memory_order_release);
        phase_.notify_all();
    } else {
        wait_while_equal(phase_, phase);
    }
}

}  // namespace tandem
