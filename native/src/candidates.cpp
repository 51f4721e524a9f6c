#include "src/candidates.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace tandem {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// A top-p from which on one of kMaxDrawn scattered tokens is nearly always among those that it keeps.
constexpr double kMostlyKept = 0.8;

// Merges what changes a row's logits, one entry a token; -1 where `room` is too small.
int32_t collect(const SamplerSequence& sequence, int32_t position, std::span<Adjustment> room) {
    size_t count = 0;
    const auto entry = [&](int32_t token, size_t search_from) -> Adjustment* {
        const int32_t place = sequence.counts().place(token);
        if (place >= 0) return &room[static_cast<size_t>(place)];
        for (size_t i = search_from; i < count; ++i) {
            if (room[i].token == token) return &room[i];
        }
        if (count == room.size()) return nullptr;
        room[count] = {token, 0, 0, 0.0f, 0};
        return &room[count++];
    };
    const auto& counted = sequence.counts().entries();
    if (counted.size() > room.size()) return -1;
    for (const auto& [token, produced] : counted)
        room[count++] = {token, Adjustment::kCounted, produced, 0.0f, 0};
    for (const auto& bias : sequence.bias()) {
        // Biased tokens differ from each other: there is nothing to search.
        Adjustment* found = entry(bias.token, count);
        if (found == nullptr) return -1;
        found->bias = bias.value;
    }
    if (position < sequence.options().min_position) {
        for (const int32_t token : sequence.stop_tokens()) {
            Adjustment* found = entry(token, counted.size());
            if (found == nullptr) return -1;
            found->kind |= Adjustment::kStop;
        }
    }
    return static_cast<int32_t>(count);
}

uint64_t joined(const uint32_t (&words)[2]) { return uint64_t{words[1]} << 32 | words[0]; }

// Whether the tokens of the highest scores serve better than those of the highest logits: where no filter, or
// one that mostly keeps what noise chooses, leaves more tokens than there are candidates.
bool draws_from_all(const SamplerSequence& sequence) {
    const SamplingOptions& options = sequence.options();
    const int32_t vocab = sequence.vocab();
    const bool limited = options.top_k > 0 && options.top_k < vocab;
    return !sequence.greedy() && !limited && vocab > kMaxCandidates && options.min_p <= 0.0 &&
           (options.top_p >= 1.0 || (options.top_p >= kMostlyKept && options.logprobs < 0));
}

// How far a device's score may be from ours, apart from what is the same for all tokens of a row: its noise
// is float32 and within 1e-5, and it does not subtract the highest logit before it multiplies.
double score_error(float highest, float inverse_temperature, float shifted) {
    const double scale = std::fabs(static_cast<double>(highest)) * inverse_temperature + std::fabs(shifted);
    return 1e-4 + 0x1p-21 * (64.0 + scale);
}

// As choose(), where the answer's candidates are those of the highest scores.
Choice choose_drawn(const Answer& answer, const SamplerSequence& sequence, int32_t position) {
    if (answer.count != kDrawnCandidates) return {SampleStatus::kNeedsRow};
    const SamplingOptions& options = sequence.options();
    const float highest = answer.candidates[0].logit;
    const LogitRow row{nullptr, nullptr, sequence.vocab(), 0, highest, sequence.inverse_temperature()};
    const NoiseStream noise{options.seed, options.sample_index, static_cast<uint32_t>(position)};
    const uint64_t target = options.top_p < 1.0 ? share_of(joined(answer.total), options.top_p)
                                                : std::numeric_limits<uint64_t>::max();
    Choice best{SampleStatus::kNeedsRow};
    double best_score = 0.0, last_score = 0.0;
    float last = 0.0f;
    for (int32_t i = 1; i <= kMaxDrawn; ++i) {
        const auto& [token, logit] = answer.candidates[i];
        last = row.shifted(logit);
        last_score = static_cast<double>(last) + gumbel(noise.word(static_cast<uint32_t>(token)));
        const Answer::Candidate& before = answer.candidates[kMaxDrawn + i];
        const uint64_t mass =
            uint64_t{std::bit_cast<uint32_t>(before.logit)} << 32 | static_cast<uint32_t>(before.token);
        if (options.top_p < 1.0 && mass >= target) continue;
        if (best.index < 0 || last_score > best_score ||
            (last_score == best_score && token < answer.candidates[best.index].token)) {
            best = {SampleStatus::kOk, i};
            best_score = last_score;
        }
    }
    // Whatever did not come scores no higher than the last that did, by the device's reckoning.
    const double error =
        score_error(highest, sequence.inverse_temperature(), last == -kInfinity ? 0.0f : last);
    if (best.index < 0 || !(best_score > last_score + 2.0 * error)) return {SampleStatus::kNeedsRow};
    return best;
}

}  // namespace

Ask ask_candidates(const SamplerSequence& sequence, int32_t position, int32_t mask,
                   std::span<Adjustment> room) {
    const SamplingOptions& options = sequence.options();
    const int32_t vocab = sequence.vocab();
    const bool limited = options.top_k > 0 && options.top_k < vocab;
    const bool greedy = sequence.greedy(), reported = options.logprobs >= 0;
    Ask ask{};
    const int32_t kept = greedy ? 1 : limited ? options.top_k : std::min(kMaxCandidates, vocab);
    const bool by_score = draws_from_all(sequence);
    // What is reported are the raw logits, and where in their order the token stands.
    const bool adjusted = mask >= 0 || sequence.adjusts(position);
    if (kept > kMaxCandidates || (reported && (adjusted || by_score))) return ask;
    const int32_t count = sequence.adjusts(position) ? collect(sequence, position, room) : 0;
    if (count < 0) return ask;
    ask.k = by_score ? kDrawnCandidates : std::min(std::max(kept, options.logprobs), vocab);
    if (!greedy && !limited && options.top_p < 1.0) ask.flags |= Ask::kTotal;
    if (reported) ask.flags |= Ask::kRawTotal;
    ask.flags |= Ask::kTakesSlot;
    if (!greedy) ask.flags |= Ask::kNoise;
    if (by_score) ask.flags |= Ask::kByScore;
    ask.seed[0] = static_cast<uint32_t>(options.seed);
    ask.seed[1] = static_cast<uint32_t>(options.seed >> 32);
    ask.sample_index = options.sample_index;
    ask.position = static_cast<uint32_t>(position);
    ask.kept = kept;
    ask.top_p = static_cast<float>(options.top_p);
    ask.floor = sequence.min_p_floor();
    ask.inverse_temperature = sequence.inverse_temperature();
    ask.mask = mask;
    ask.adjustments = count;
    ask.repetition_penalty = options.repetition_penalty;
    ask.frequency_penalty = options.frequency_penalty;
    ask.presence_penalty = options.presence_penalty;
    return ask;
}

Choice choose(const Answer& answer, const SamplerSequence& sequence, int32_t position) {
    if (answer.count == 0) return {SampleStatus::kNeedsRow};
    if (answer.not_finite != 0) return {SampleStatus::kNotFinite};
    const float highest = answer.candidates[0].logit;
    if (highest == -kInfinity) return {SampleStatus::kNoToken};
    if (sequence.greedy()) return {SampleStatus::kOk, 0};
    if (draws_from_all(sequence)) return choose_drawn(answer, sequence, position);

    const SamplingOptions& options = sequence.options();
    const LogitRow row{nullptr, nullptr, sequence.vocab(), 0, highest, sequence.inverse_temperature()};
    const auto shifted = [&](int32_t i) { return row.shifted(answer.candidates[i].logit); };
    // Survivors are candidates [0, end), and where `open` tokens behind them, too.
    int32_t end = answer.count;
    bool open = end < sequence.vocab();
    if (options.top_k > 0 && options.top_k < sequence.vocab()) {
        if (options.top_k > end) return {SampleStatus::kNeedsRow};
        end = options.top_k;
        open = false;
    }
    if (options.top_p < 1.0) {
        uint64_t total = joined(answer.total);
        if (!open) {
            total = 0;
            for (int32_t i = 0; i < end; ++i) total += mass_of(shifted(i));
        }
        const uint64_t target = share_of(total, options.top_p);
        uint64_t mass = 0;
        for (int32_t i = 0; i < end && mass < target; ++i) {
            mass += mass_of(shifted(i));
            if (mass >= target) {
                end = i + 1;
                open = false;
            }
        }
    }
    const NoiseStream noise{options.seed, options.sample_index, static_cast<uint32_t>(position)};
    int32_t best = 0;
    double best_score = gumbel(noise.word(static_cast<uint32_t>(answer.candidates[0].token)));
    for (int32_t i = 1; i < end; ++i) {
        const float d = shifted(i);
        if (d < sequence.min_p_floor()) {
            open = false;
            break;
        }
        const int32_t token = answer.candidates[i].token;
        const double score = static_cast<double>(d) + gumbel(noise.word(static_cast<uint32_t>(token)));
        if (score > best_score || (score == best_score && token < answer.candidates[best].token)) {
            best_score = score;
            best = i;
        }
    }
    // A token behind the last candidate is no likelier than that, and no noise exceeds the largest.
    if (open && static_cast<double>(shifted(answer.count - 1)) + double{kLargestGumbel} >= best_score) {
        return {SampleStatus::kNeedsRow};
    }
    return {SampleStatus::kOk, best};
}

void Sampler::sample_candidates(std::span<const Answer> answers,
                                std::span<const SamplerSequence* const> sequences, const int32_t* positions) {
    for (size_t row = 0; row < sequences.size(); ++row) {
        const Answer& answer = answers[row];
        const Choice choice = choose(answer, *sequences[row], positions[row]);
        results_.status[row] = static_cast<int32_t>(choice.status);
        results_.tokens[row] =
            choice.status == SampleStatus::kOk ? answer.candidates[choice.index].token : -1;
        const int32_t top = sequences[row]->options().logprobs;
        if (choice.status != SampleStatus::kOk || top < 0) continue;
        const double log_total = natural_log(static_cast<double>(joined(answer.raw_total)) * kMassUnit);
        const auto highest = static_cast<double>(answer.candidates[0].logit);
        const size_t first = row * (1 + kMaxLogprobs);
        const auto report = [&](size_t at, int32_t index) {
            const Answer::Candidate& candidate = answer.candidates[index];
            results_.logprob_tokens[at] = candidate.token;
            results_.logprobs[at] =
                static_cast<float>((static_cast<double>(candidate.logit) - highest) - log_total);
        };
        results_.ranks[row] = 1 + choice.index;
        report(first, choice.index);
        for (int32_t i = 0; i < std::min(top, answer.count); ++i) {
            report(first + 1 + static_cast<size_t>(i), i);
        }
    }
}

}  // namespace tandem
