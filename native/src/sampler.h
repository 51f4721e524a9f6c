// From logits to tokens, for many rows of many sequences.
//
// The order of operations for one row, fixed: logits, logit bias, repetition penalty, frequency and presence
// penalty, stop ids masked before `min_position`, mask of allowed tokens; then the token of the highest logit
// (lowest id among equals) where the temperature is 0, and otherwise: division by the temperature, top-k,
// top-p over what top-k left, min-p, and Gumbel-max over the survivors with the noise of philox.h. Ties in
// top-k and top-p go to lower ids.
//
// Arithmetic: penalties in float32, one rounding per operation. d = (x - max x) * (float32)(1 / temperature).
// Masses are the integers of mass_of(d) (kernels/logit_row.h), so top-p's sums are exact: it keeps the
// shortest prefix, ordered by logit, whose mass is at least ceil(top_p * total). Min-p keeps d >=
// (float32)log(min_p). The token with the highest float64 sum d + gumbel wins, the lowest id among equals.
// Log-probabilities are those of the raw logits, before all of the above.
//
// All survivors of the filters are the tokens up to some place in the order (logit descending, id ascending),
// so a filter is one number, the place of its last survivor; no list is kept and nothing is sorted.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/logit_row.h"
#include "src/thread_pool.h"
#include "src/token_counts.h"

namespace tandem {

inline constexpr int kMaxLogprobs = 20;

struct SamplingOptions {
    uint64_t seed = 0;
    uint32_t sample_index = 0;
    double temperature = 1.0;  // 0 means greedy
    int32_t top_k = 0;         // 0 or less means all
    double top_p = 1.0;
    double min_p = 0.0;
    float repetition_penalty = 1.0f;  // on tokens of the prompt and of the output
    float presence_penalty = 0.0f;    // these two on tokens of the output
    float frequency_penalty = 0.0f;
    int32_t min_position = 0;  // stop tokens are masked at positions before it
    int32_t logprobs = -1;  // how many of the likeliest tokens to report besides the sampled one; -1: nothing
};

// What the sampler knows of one sequence. Not to be changed while a call that reads it is under way.
class SamplerSequence {
 public:
    struct Bias {
        int32_t token;
        float value;
    };

    // `capacity`: different tokens to plan memory for when penalties count them. Throws std::invalid_argument
    // for a token outside the vocabulary.
    SamplerSequence(int32_t vocab, const SamplingOptions& options, std::vector<Bias> bias,
                    std::vector<int32_t> stop_tokens, std::span<const int32_t> prompt, int64_t capacity);

    // Counts a token that the sequence produced.
    void append(int32_t token);

    const SamplingOptions& options() const { return options_; }
    int32_t vocab() const { return vocab_; }
    bool greedy() const { return options_.temperature == 0.0; }
    float inverse_temperature() const { return inverse_temperature_; }
    float min_p_floor() const { return min_p_floor_; }

    // Whether anything changes the logits of the token at `position`, and the change itself.
    bool adjusts(int32_t position) const;
    void adjust(int32_t position, float* logits) const;
    const std::vector<Bias>& bias() const { return bias_; }
    const std::vector<int32_t>& stop_tokens() const { return stop_tokens_; }
    const TokenCounts& counts() const { return counts_; }  // empty where nothing is penalized

 private:
    int32_t vocab_;
    SamplingOptions options_;
    std::vector<Bias> bias_;
    std::vector<int32_t> stop_tokens_;
    TokenCounts counts_;
    bool penalized_;
    float inverse_temperature_ = 0.0f;
    float min_p_floor_;
};

enum class SampleStatus : int32_t {
    kOk = 0,
    kNotFinite = 1,  // the logits hold NaN or +infinity
    kNoToken = 2,    // every token is masked
    kNeedsRow = 3,   // candidates do not suffice
};

// The mass of which top-p keeps at least this share: 1 to `mass`.
uint64_t share_of(uint64_t mass, double share);

struct Answer;  // src/candidates.h

struct SampleTask {
    const float* logits;  // row r at logits + r * stride
    int64_t stride;
    std::span<const SamplerSequence* const> sequences;  // null: the row is left alone
    const int32_t* positions;                           // of the token being sampled: the tokens before it
    std::span<const uint32_t* const>
        masks;  // empty, or per row null or vocab bits: bit t % 32 of word t / 32 allows t
};

// Results of up to `max_rows` rows; all memory is planned here. Slot 0 of a row's logprobs is the sampled
// token.
class Sampler {
 public:
    // Throws std::invalid_argument for sizes that it cannot have.
    Sampler(int32_t vocab, int32_t max_rows, int32_t threads, const SamplerKernels& kernels);

    // What one of these sizes holds, before there is one; and what this one holds.
    static int64_t planned_bytes(int32_t vocab, int32_t max_rows, int32_t threads);
    int64_t bytes() const;

    // Samples a row for each of the task's sequences; the rows are spread over the sampler's threads.
    void sample(const SampleTask& task);

    // Samples rows of which a device found the likeliest tokens; those that need more get the status
    // kNeedsRow.
    void sample_candidates(std::span<const Answer> answers, std::span<const SamplerSequence* const> sequences,
                           const int32_t* positions);

    // Log-probabilities of tokens[r] under row r, with the `top` likeliest, into the same results.
    void score(const float* logits, int64_t stride, std::span<const int32_t> tokens, int32_t top);

    struct Results {
        std::vector<int32_t> tokens;  // -1 where the status is not kOk
        std::vector<int32_t> status;
        std::vector<int32_t>
            ranks;  // of the sampled token, 1 for the likeliest; where logprobs were asked for
        std::vector<int32_t> logprob_tokens;  // [max_rows][1 + kMaxLogprobs]
        std::vector<float> logprobs;
    };
    Results& results() { return results_; }
    int32_t vocab() const { return vocab_; }
    int32_t max_rows() const { return max_rows_; }

 private:
    struct Workspace {
        std::vector<float> adjusted;
        std::vector<int32_t> block_keys;
        std::vector<int32_t> key_order;
        std::vector<uint64_t> candidates;
        std::vector<uint64_t> bucket_mass;
    };

    // Calls body(row, workspace) for each row, one row at a time on each thread.
    template <typename Body>
    void for_rows(int32_t rows, const Body& body);
    SampleStatus sample_row(const SampleTask& task, int32_t row, Workspace& work);
    SampleStatus scan(const float* logits, float inverse_temperature, Workspace& work, LogitRow& row) const;
    void write_logprobs(const LogitRow& row, int32_t index, int32_t token, int32_t top, Workspace& work);
    int64_t select_top(const LogitRow& row, int64_t k, Workspace& work) const;
    uint64_t nucleus(const LogitRow& row, double top_p, Workspace& work) const;
    int32_t draw(const LogitRow& row, const NoiseStream& noise, uint64_t last, float floor,
                 int32_t best_token) const;

    int32_t vocab_, max_rows_;
    const SamplerKernels& kernels_;
    ThreadPool pool_;
    std::vector<Workspace> workspaces_;
    Results results_;
};

}  // namespace tandem
