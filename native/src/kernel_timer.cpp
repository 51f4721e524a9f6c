#include "src/kernel_timer.h"

#include <algorithm>
#include <chrono>
#include <functional>

#include "src/mapped_memory.h"
#include "src/operations.h"
#include "src/quantized_rows.h"
#include "src/thread_pool.h"

namespace tandem {

namespace {

using Clock = std::chrono::steady_clock;

// Mean seconds of section calls, the first of which is not counted.
double mean_seconds(ThreadPool& pool, double seconds, const std::function<void(Worker&, int64_t)>& section) {
    int64_t call = 0;
    const std::function<void(Worker&)> next = [&](Worker& worker) { section(worker, call); };
    pool.run(next);
    const auto start = Clock::now();
    for (;;) {
        ++call;
        pool.run(next);
        const double spent = std::chrono::duration<double>(Clock::now() - start).count();
        if (spent >= seconds) return spent / static_cast<double>(call);
    }
}

}  // namespace

double time_products(const Kernels& kernels, int threads, const std::vector<const PackedMatrix*>& matrices,
                     const float* x, int rows, double seconds) {
    const PackedMatrix& first = *matrices.front();
    const int64_t columns = first.columns;
    QuantizedRows quantized(is_quantized(first.type) ? rows : 0, columns);
    if (is_quantized(first.type)) {
        for (int64_t row = 0; row < rows; ++row) quantized.fill(kernels, row, x + row * columns, columns);
    }
    const Activations operand{
        x, columns, quantized.q.data(), quantized.scale.data(), quantized.sum.data(), columns};
    std::vector<float> out(static_cast<size_t>(rows * first.rows));
    ThreadPool pool(threads);
    return mean_seconds(pool, seconds, [&](Worker& worker, int64_t call) {
        const PackedMatrix& matrix = *matrices[static_cast<size_t>(call) % matrices.size()];
        share_product(worker, kernels, matrix, operand, rows, out.data(), first.rows);
    });
}

double time_normalize(const Kernels& kernels, int threads, int64_t rows, int64_t columns, double seconds) {
    std::vector<float> x(static_cast<size_t>(rows * columns), 0.5f),
        weight(static_cast<size_t>(columns), 1.0f), normed(x.size());
    QuantizedRows quantized(rows, columns);
    ThreadPool pool(threads);
    return mean_seconds(pool, seconds, [&](Worker& worker, int64_t) {
        const auto [begin, end] = worker.share(rows);
        for (int64_t row = begin; row < end; ++row) {
            float* y = normed.data() + row * columns;
            kernels.rms_norm(x.data() + row * columns, weight.data(), 1e-6f, columns, y);
            quantized.fill(kernels, row, y, columns);
        }
    });
}

double time_repack(const Kernels& kernels, int threads, WeightType type, int64_t rows, int64_t columns,
                   const uint8_t* source, int64_t copies, double seconds) {
    const int64_t bytes = source_bytes(type, rows, columns), group = kGroupRows * (bytes / rows);
    std::vector<PackedMatrix> matrices;
    for (int64_t i = 0; i < copies; ++i) matrices.push_back(make_packed(type, rows, columns));
    const int64_t groups = matrices.front().groups,
                  grain = std::max<int64_t>(1, (int64_t{256} << 10) / group);
    ThreadPool pool(threads);
    return mean_seconds(pool, seconds, [&](Worker& worker, int64_t) {
        const int64_t pieces = (groups + grain - 1) / grain;
        worker.dynamic_for(copies * pieces, 1, [&](int64_t piece, int64_t) {
            const int64_t copy = piece / pieces, begin = piece % pieces * grain;
            kernels.repack(matrices[static_cast<size_t>(copy)], source + copy * bytes + begin * group, begin,
                           std::min(begin + grain, groups));
        });
    });
}

double first_touch_rate(int threads, int64_t bytes) {
    constexpr int64_t kUnit = int64_t{2} << 20;
    const int64_t units = (bytes + kUnit - 1) / kUnit;
    const MappedMemory memory(static_cast<size_t>(units * kUnit));
    ThreadPool pool(threads);
    const auto start = Clock::now();
    pool.run([&](Worker& worker) {
        worker.dynamic_for(units, 1, [&](int64_t unit, int64_t) {
            for (int64_t i = 0; i < kUnit; i += 4096) memory.data()[unit * kUnit + i] = 1;
        });
    });
    return static_cast<double>(units * kUnit) / std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace tandem
