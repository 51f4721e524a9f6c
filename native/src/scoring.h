// What rows of logits say of given tokens, in double precision: for perplexity and for comparing models.
#pragma once

#include <cstdint>

#include "src/thread_pool.h"

namespace tandem {

// nll[r] = -log softmax(logits[r])[targets[r]]; top[r] = the likeliest id, of equals the lowest.
void score_rows(ThreadPool& pool, const float* logits, int64_t rows, int64_t vocab, const int32_t* targets,
                double* nll, int32_t* top);

// divergence[r] = KL(softmax(p[r]) || softmax(q[r])), in nats.
void diverge_rows(ThreadPool& pool, const float* p, const float* q, int64_t rows, int64_t vocab,
                  double* divergence);

}  // namespace tandem
