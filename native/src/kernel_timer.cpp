#include "src/kernel_timer.h"

#include <chrono>
#include <functional>

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

}  // namespace tandem
