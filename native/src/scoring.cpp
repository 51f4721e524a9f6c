#include "src/scoring.h"

#include <algorithm>
#include <cmath>
#include <functional>

namespace tandem {
namespace {

// log(sum(exp(x))), and where the largest is.
struct Normalizer {
    double log_mass;
    int64_t top;

    Normalizer(const float* x, int64_t n) : log_mass(0.0), top(std::max_element(x, x + n) - x) {
        const double most = x[top];
        double mass = 0.0;
        for (int64_t i = 0; i < n; ++i) mass += std::exp(x[i] - most);
        log_mass = most + std::log(mass);
    }
};

template <typename Body>
void each_row(ThreadPool& pool, int64_t rows, Body body) {
    const std::function<void(Worker&)> section = [&](Worker& worker) {
        worker.dynamic_for(rows, 1, [&](int64_t row, int64_t) { body(row); });
    };
    pool.run(section);
}

}  // namespace

void score_rows(ThreadPool& pool, const float* logits, int64_t rows, int64_t vocab, const int32_t* targets,
                double* nll, int32_t* top) {
    each_row(pool, rows, [&](int64_t r) {
        const float* x = logits + r * vocab;
        const Normalizer normalizer(x, vocab);
        nll[r] = normalizer.log_mass - static_cast<double>(x[targets[r]]);
        top[r] = static_cast<int32_t>(normalizer.top);
    });
}

void diverge_rows(ThreadPool& pool, const float* p, const float* q, int64_t rows, int64_t vocab,
                  double* divergence) {
    each_row(pool, rows, [&](int64_t r) {
        const float *a = p + r * vocab, *b = q + r * vocab;
        const double mass_a = Normalizer(a, vocab).log_mass, mass_b = Normalizer(b, vocab).log_mass;
        double sum = 0.0;
        for (int64_t i = 0; i < vocab; ++i) {
            const double log_a = a[i] - mass_a;
            sum += std::exp(log_a) * (log_a - (b[i] - mass_b));
        }
        divergence[r] = std::max(sum, 0.0);
    });
}

}  // namespace tandem
