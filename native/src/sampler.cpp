#include "src/sampler.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

namespace tandem {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int32_t kMaxVocab = 1 << 23;  // so that all masses add up to less than 2^64

// A token's place in the order (logit descending, id ascending): smaller comes first.
uint64_t place_of(float logit, int32_t token) {
    const uint32_t descending = ~(static_cast<uint32_t>(key_of(logit)) ^ 0x80000000u);
    return uint64_t{descending} << 32 | static_cast<uint32_t>(token);
}
int32_t key_at(uint64_t place) {
    return static_cast<int32_t>(~static_cast<uint32_t>(place >> 32) ^ 0x80000000u);
}
int32_t token_at(uint64_t place) { return static_cast<int32_t>(static_cast<uint32_t>(place)); }

constexpr uint64_t kEveryPlace = ~uint64_t{0};

bool finite(KeyRange range) {
    return range.lowest >= key_of(-kInfinity) && range.highest < key_of(kInfinity);
}

// The place of the last token of the shortest prefix of places[0, n), in order, whose mass is at least
// `target`. Halves the range that holds it, so the cost is linear. Reorders `places`.
uint64_t prefix_end(const LogitRow& row, uint64_t* places, int64_t n, uint64_t target) {
    while (n > 1) {
        const int64_t half = n / 2;
        std::nth_element(places, places + half, places + n);
        uint64_t mass = 0;
        for (int64_t i = 0; i < half; ++i) mass += mass_of(row.shifted(value_of(key_at(places[i]))));
        if (mass >= target) {
            n = half;
        } else {
            target -= mass;
            places += half;
            n -= half;
        }
    }
    return *places;
}

}  // namespace

uint64_t share_of(uint64_t mass, double share) {
    const auto part = static_cast<uint64_t>(std::ceil(share * static_cast<double>(mass)));
    return std::clamp(part, uint64_t{1}, mass);
}

SamplerSequence::SamplerSequence(int32_t vocab, const SamplingOptions& options, std::vector<Bias> bias,
                                 std::vector<int32_t> stop_tokens, std::span<const int32_t> prompt,
                                 int64_t capacity)
    : vocab_(vocab),
      options_(options),
      bias_(std::move(bias)),
      stop_tokens_(std::move(stop_tokens)),
      penalized_(options.repetition_penalty != 1.0f || options.presence_penalty != 0.0f ||
                 options.frequency_penalty != 0.0f),
      min_p_floor_(options.min_p < DBL_MIN ? -kInfinity : static_cast<float>(natural_log(options.min_p))) {
    const auto check = [&](int32_t token) {
        if (token < 0 || token >= vocab_) {
            throw std::invalid_argument("token " + std::to_string(token) + " is outside the vocabulary of " +
                                        std::to_string(vocab_));
        }
    };
    for (const Bias& entry : bias_) check(entry.token);
    for (const int32_t token : stop_tokens_) check(token);
    if (!greedy()) {
        const double inverse = std::clamp(1.0 / options_.temperature, double{FLT_MIN}, double{FLT_MAX});
        inverse_temperature_ = static_cast<float>(inverse);
    }
    if (!penalized_) return;
    counts_.reserve(std::min<int64_t>(capacity, vocab_));
    for (const int32_t token : prompt) {
        check(token);
        counts_.entry(token);
    }
}

void SamplerSequence::append(int32_t token) {
    if (token < 0 || token >= vocab_)
        throw std::invalid_argument("token " + std::to_string(token) + " is outside the vocabulary");
    if (penalized_) ++counts_.entry(token).produced;
}

bool SamplerSequence::adjusts(int32_t position) const {
    return penalized_ || !bias_.empty() || (position < options_.min_position && !stop_tokens_.empty());
}

void SamplerSequence::adjust(int32_t position, float* logits) const {
    for (const Bias& entry : bias_) logits[entry.token] += entry.value;
    if (penalized_) {
        const float repetition = options_.repetition_penalty;
        for (const auto& [token, produced] : counts_.entries()) {
            float x = logits[token];
            x = x > 0.0f ? x / repetition : x * repetition;
            if (produced > 0) {
                x -= options_.frequency_penalty * static_cast<float>(produced);
                x -= options_.presence_penalty;
            }
            logits[token] = x;
        }
    }
    if (position < options_.min_position) {
        for (const int32_t token : stop_tokens_) logits[token] = -kInfinity;
    }
}

Sampler::Sampler(int32_t vocab, int32_t max_rows, int32_t threads, const SamplerKernels& kernels)
    : vocab_(vocab), max_rows_(max_rows), kernels_(kernels), pool_(std::max(1, std::min(threads, max_rows))) {
    if (vocab < 1 || vocab > kMaxVocab || max_rows < 1 || threads < 1) {
        throw std::invalid_argument("a sampler needs 1 to 8388608 tokens, at least one row and one thread");
    }
    const auto tokens = static_cast<size_t>(vocab);
    const auto blocks = (tokens + kTokenBlock - 1) / kTokenBlock;
    const auto rows = static_cast<size_t>(max_rows);
    workspaces_.resize(static_cast<size_t>(pool_.count()));
    for (Workspace& work : workspaces_) {
        work.adjusted.resize(tokens);
        work.block_keys.resize(blocks);
        work.key_order.resize(blocks);
        work.candidates.resize(tokens);
        work.bucket_mass.resize(kBuckets + 1);
    }
    results_.tokens.resize(rows);
    results_.status.resize(rows);
    results_.ranks.resize(rows);
    results_.logprob_tokens.resize(rows * (1 + kMaxLogprobs));
    results_.logprobs.resize(rows * (1 + kMaxLogprobs));
}

int64_t Sampler::planned_bytes(int32_t vocab, int32_t max_rows, int32_t threads) {
    const int64_t tokens = vocab, blocks = (tokens + kTokenBlock - 1) / kTokenBlock;
    // Of a thread: logits as adjusted, keys and their order by block, places, masses by bucket.
    const int64_t each = 4 * tokens + 2 * 4 * blocks + 8 * tokens + 8 * (kBuckets + 1);
    // Of a row: token, status and rank; tokens and log-probabilities.
    const int64_t row = 3 * 4 + (1 + kMaxLogprobs) * (4 + 4);
    return std::max(1, std::min(threads, max_rows)) * each + max_rows * row;
}

int64_t Sampler::bytes() const {
    const auto held = [](const auto&... vectors) {
        return static_cast<int64_t>((... + (vectors.capacity() * sizeof(vectors[0]))));
    };
    int64_t total =
        held(results_.tokens, results_.status, results_.ranks, results_.logprob_tokens, results_.logprobs);
    for (const Workspace& work : workspaces_)
        total += held(work.adjusted, work.block_keys, work.key_order, work.candidates, work.bucket_mass);
    return total;
}

template <typename Body>
void Sampler::for_rows(int32_t rows, const Body& body) {
    if (rows == 1) return body(0, workspaces_[0]);  // nobody needs to wake up
    pool_.run([&](Worker& worker) {
        Workspace& work = workspaces_[static_cast<size_t>(worker.index())];
        worker.dynamic_for(rows, 1, [&](int64_t row, int64_t) { body(static_cast<int32_t>(row), work); });
    });
}

void Sampler::sample(const SampleTask& task) {
    for_rows(static_cast<int32_t>(task.sequences.size()), [&](int32_t row, Workspace& work) {
        const auto at = static_cast<size_t>(row);
        if (task.sequences[at] == nullptr) return;
        results_.tokens[at] = -1;
        results_.status[at] = static_cast<int32_t>(sample_row(task, row, work));
    });
}

SampleStatus Sampler::sample_row(const SampleTask& task, int32_t index, Workspace& work) {
    const auto at = static_cast<size_t>(index);
    const SamplerSequence& sequence = *task.sequences[at];
    const SamplingOptions& options = sequence.options();
    const int32_t position = task.positions[index];
    const uint32_t* mask = task.masks.empty() ? nullptr : task.masks[at];
    const float* raw = task.logits + index * task.stride;
    const float* logits = raw;
    if (mask != nullptr || sequence.adjusts(position)) {
        if (!finite(kernels_.copy(raw, mask, vocab_, work.adjusted.data()))) return SampleStatus::kNotFinite;
        sequence.adjust(position, work.adjusted.data());
        logits = work.adjusted.data();
    }
    LogitRow row;
    const SampleStatus status = scan(logits, sequence.inverse_temperature(), work, row);
    if (status != SampleStatus::kOk) return status;

    const int32_t highest = key_of(row.highest);
    const auto block =
        std::find(work.block_keys.begin(), work.block_keys.end(), highest) - work.block_keys.begin();
    auto token = static_cast<int32_t>(block) * kTokenBlock;
    while (logits[token] != row.highest) ++token;
    if (!sequence.greedy()) {
        uint64_t last = kEveryPlace;
        if (options.top_k > 0 && options.top_k < vocab_) {
            const int64_t kept = select_top(row, options.top_k, work);
            uint64_t* places = work.candidates.data();
            last = places[kept - 1];
            if (options.top_p < 1.0) {
                uint64_t mass = 0;
                for (int64_t i = 0; i < kept; ++i) mass += mass_of(row.shifted(value_of(key_at(places[i]))));
                last = prefix_end(row, places, kept, share_of(mass, options.top_p));
            }
        } else if (options.top_p < 1.0) {
            last = nucleus(row, options.top_p, work);
        }
        const NoiseStream noise{options.seed, options.sample_index, static_cast<uint32_t>(position)};
        token = draw(row, noise, last, sequence.min_p_floor(), token);
    }
    results_.tokens[at] = token;
    if (options.logprobs >= 0) {
        if (logits != raw) scan(raw, 1.0f, work, row);
        write_logprobs(row, index, token, options.logprobs, work);
    }
    return SampleStatus::kOk;
}

void Sampler::score(const float* logits, int64_t stride, std::span<const int32_t> tokens, int32_t top) {
    for_rows(static_cast<int32_t>(tokens.size()), [&](int32_t index, Workspace& work) {
        LogitRow row;
        const SampleStatus status = scan(logits + index * stride, 1.0f, work, row);
        const auto at = static_cast<size_t>(index);
        results_.status[at] = static_cast<int32_t>(status);
        results_.tokens[at] = status == SampleStatus::kOk ? tokens[at] : -1;
        if (status == SampleStatus::kOk) write_logprobs(row, index, tokens[at], top, work);
    });
}

SampleStatus Sampler::scan(const float* logits, float inverse_temperature, Workspace& work,
                           LogitRow& row) const {
    const KeyRange range = kernels_.scan(logits, vocab_, work.block_keys.data());
    if (!finite(range)) return SampleStatus::kNotFinite;
    if (range.highest == key_of(-kInfinity)) return SampleStatus::kNoToken;
    row = {logits,
           work.block_keys.data(),
           vocab_,
           static_cast<int32_t>(work.block_keys.size()),
           value_of(range.highest),
           inverse_temperature};
    return SampleStatus::kOk;
}

void Sampler::write_logprobs(const LogitRow& row, int32_t index, int32_t token, int32_t top,
                             Workspace& work) {
    LogitRow raw = row;
    raw.inverse_temperature = 1.0f;
    const double log_total = natural_log(static_cast<double>(kernels_.total_mass(raw)) * kMassUnit);
    const auto logprob = [&](int32_t id) {
        return static_cast<float>((static_cast<double>(raw.x[id]) - static_cast<double>(raw.highest)) -
                                  log_total);
    };
    const auto first = static_cast<size_t>(index) * (1 + kMaxLogprobs);
    results_.ranks[static_cast<size_t>(index)] = 1 + kernels_.count_before(raw, token);
    results_.logprob_tokens[first] = token;
    results_.logprobs[first] = logprob(token);
    if (top == 0) return;
    const int64_t found = select_top(raw, top, work);
    std::sort(work.candidates.begin(), work.candidates.begin() + found);
    for (int64_t i = 0; i < found; ++i) {
        const int32_t id = token_at(work.candidates[static_cast<size_t>(i)]);
        results_.logprob_tokens[first + 1 + static_cast<size_t>(i)] = id;
        results_.logprobs[first + 1 + static_cast<size_t>(i)] = logprob(id);
    }
}

// Puts the places of the first min(k, vocab) tokens at the front of work.candidates, the last of them at its
// end, the others in any order; returns how many.
int64_t Sampler::select_top(const LogitRow& row, int64_t k, Workspace& work) const {
    // At least k tokens are as high as the k-th highest block maximum.
    int32_t bound = INT32_MIN;
    if (k <= row.blocks) {
        auto& order = work.key_order;
        std::copy(work.block_keys.begin(), work.block_keys.end(), order.begin());
        std::nth_element(order.begin(), order.begin() + (k - 1), order.end(), std::greater<>());
        bound = order[static_cast<size_t>(k - 1)];
    }
    uint64_t* places = work.candidates.data();
    int64_t count = 0;
    for (int32_t block = 0; block < row.blocks; ++block) {
        if (row.block_keys[block] < bound) continue;
        const int32_t end = std::min(vocab_, (block + 1) * kTokenBlock);
        for (int32_t token = block * kTokenBlock; token < end; ++token) {
            if (key_of(row.x[token]) >= bound) places[count++] = place_of(row.x[token], token);
        }
    }
    const int64_t kept = std::min(k, count);
    std::nth_element(places, places + (kept - 1), places + count);
    return kept;
}

// The place of top-p's last survivor.
uint64_t Sampler::nucleus(const LogitRow& row, double top_p, Workspace& work) const {
    auto& bucket_mass = work.bucket_mass;
    std::fill(bucket_mass.begin(), bucket_mass.end(), 0);
    int32_t buckets[kTokenBlock];
    uint64_t masses[kTokenBlock];
    for (int32_t block = 0; block < row.blocks; ++block) {
        if (row.shifted(value_of(row.block_keys[block])) < kMasslessBelow) continue;
        kernels_.bucket_masses(row, block, buckets, masses);
        for (int i = 0; i < kTokenBlock; ++i) bucket_mass[static_cast<size_t>(buckets[i])] += masses[i];
    }
    uint64_t total = 0;
    for (const uint64_t mass : bucket_mass) total += mass;
    uint64_t rest = share_of(total, top_p);
    int32_t bucket = 0;
    for (; bucket_mass[static_cast<size_t>(bucket)] < rest; ++bucket)
        rest -= bucket_mass[static_cast<size_t>(bucket)];

    uint64_t* places = work.candidates.data();
    int64_t count = 0;
    for (int32_t block = 0; block < row.blocks; ++block) {
        if (bucket_of(row.shifted(value_of(row.block_keys[block]))) > bucket) continue;
        if (!kernels_.find_bucket(row, block, bucket, buckets)) continue;
        const int32_t first = block * kTokenBlock, tokens = std::min(kTokenBlock, vocab_ - first);
        for (int32_t i = 0; i < tokens; ++i) {
            if (buckets[i] == bucket) places[count++] = place_of(row.x[first + i], first + i);
        }
    }
    return prefix_end(row, places, count, rest);
}

// Gumbel-max over the tokens up to `last` with d >= floor, starting from the token of the highest logit. A
// token is evaluated only where an upper bound of its score reaches the best score so far.
int32_t Sampler::draw(const LogitRow& row, const NoiseStream& noise, uint64_t last, float floor,
                      int32_t best_token) const {
    double best = gumbel(noise.word(static_cast<uint32_t>(best_token)));
    const int32_t last_key = key_at(last);
    uint32_t words[kTokenBlock];
    float bounds[kTokenBlock];
    for (int32_t block = 0; block < row.blocks; ++block) {
        const float highest = row.shifted(value_of(row.block_keys[block]));
        if (row.block_keys[block] < last_key || highest < floor) continue;
        const float threshold = static_cast<float>(best) - 0.001f;  // the bounds are rounded
        if (highest + kLargestGumbel < threshold) continue;
        if (!kernels_.noise_bounds(row, block, noise, threshold, words, bounds)) continue;
        for (int i = 0; i < kTokenBlock; ++i) {
            if (bounds[i] < threshold) continue;
            const int32_t token = block * kTokenBlock + i;
            const float d = row.shifted(row.x[token]);
            if (place_of(row.x[token], token) > last || d < floor) continue;
            const double score = static_cast<double>(d) + gumbel(words[i]);
            if (score > best || (score == best && token < best_token)) {
                best = score;
                best_token = token;
            }
        }
    }
    return best_token;
}

}  // namespace tandem
