#include "src/ceilings.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>

#include "src/mapped_memory.h"
#include "src/thread_pool.h"

namespace tandem {

namespace {

using Clock = std::chrono::steady_clock;

// Where probes leave their results, so that they must be computed.
std::atomic<int64_t> sink;

// Seconds from when all threads are there until all have done their part.
template <typename Body>
double timed(ThreadPool& pool, Body&& body) {
    Clock::time_point start;
    pool.run([&](Worker& worker) {
        worker.barrier();
        if (worker.index() == 0) start = Clock::now();
        sink.fetch_xor(body(worker), std::memory_order_relaxed);
    });
    return std::chrono::duration<double>(Clock::now() - start).count();
}

double multiply_rate(ThreadPool& pool, int64_t (*probe)(int64_t), int64_t macs, double seconds) {
    // Short runs first: they find out how many iterations take that long, and wake the cores.
    for (int64_t iterations = 1024;;) {
        const double took = timed(pool, [&](Worker&) { return probe(iterations); });
        if (took >= seconds / 2) return static_cast<double>(macs * iterations * pool.count()) / took;
        iterations = std::max(2 * iterations, static_cast<int64_t>(iterations * 0.8 * seconds / took));
    }
}

}  // namespace

std::vector<std::pair<std::string, double>> multiply_rates(const Kernels& kernels, int threads,
                                                           double seconds) {
    ThreadPool pool(threads);
    const Probes& probes = kernels.probes;
    std::vector<std::pair<std::string, double>> rates;
    rates.emplace_back("int8", multiply_rate(pool, probes.int8, probes.int8_macs, seconds));
    if (probes.bf16_macs > 0 && __builtin_cpu_supports("avx512bf16"))
        rates.emplace_back("bf16", multiply_rate(pool, probes.bf16, probes.bf16_macs, seconds));
    rates.emplace_back("f32", multiply_rate(pool, probes.f32, probes.f32_macs, seconds));
    return rates;
}

double read_rate(const Kernels& kernels, int threads, int64_t bytes, double seconds) {
    constexpr int64_t unit = 512;
    const int64_t units = std::max<int64_t>(threads, (bytes + unit - 1) / unit);
    // Small buffers are read several times a pass, so that meeting the other threads does not count.
    const int64_t repeats = std::max<int64_t>(1, (int64_t{64} << 20) / (units * unit));
    const MappedMemory memory(static_cast<size_t>(units * unit));
    ThreadPool pool(threads);
    const auto part = [&](const Worker& worker) {
        const auto [begin, end] = worker.share(units);
        return std::pair(memory.data() + begin * unit, (end - begin) * unit);
    };
    // Written, so that each page has memory of its own and is not the kernel's one page of zeros.
    timed(pool, [&](Worker& worker) {
        const auto [data, size] = part(worker);
        std::memset(data, 1, static_cast<size_t>(size));
        return 0;
    });
    double best = 0;
    for (double spent = 0; spent < seconds;) {
        const double took = timed(pool, [&](Worker& worker) {
            const auto [data, size] = part(worker);
            int64_t seen = 0;
            for (int64_t i = 0; i < repeats; ++i) seen ^= kernels.probes.read(data, size);
            return seen;
        });
        best = std::max(best, static_cast<double>(units * unit * repeats) / took);
        spent += took;
    }
    return best;
}

}  // namespace tandem
