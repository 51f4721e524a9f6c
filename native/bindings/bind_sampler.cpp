// The sampler and what it knows of a sequence.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "bindings/bindings.h"
#include "kernels/kernels.h"
#include "src/candidates.h"
#include "src/sampler.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tandem {

namespace {

using Logits = nb::ndarray<const float, nb::ndim<2>, nb::device::cpu>;
using Tokens = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Mask = nb::ndarray<const uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Words = nb::ndarray<int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Noise = nb::ndarray<double, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// A sampler with the pointers of a call, planned like all its memory.
struct PySampler : Sampler {
    PySampler(int32_t vocab, int32_t max_rows, int32_t threads, const std::string& isa)
        : Sampler(vocab, max_rows, threads, choose_kernels(isa.c_str()).sampler) {
        sequences.reserve(static_cast<size_t>(max_rows));
        masks.reserve(static_cast<size_t>(max_rows));
    }

    int32_t check(const Logits& logits, size_t rows) const {
        if (static_cast<int64_t>(logits.shape(1)) != vocab() || logits.stride(1) != 1) {
            throw std::invalid_argument("logits must be rows of " + std::to_string(vocab()) +
                                        " adjacent float32, one per token of the vocabulary");
        }
        if (rows > logits.shape(0) || rows > static_cast<size_t>(max_rows())) {
            throw std::invalid_argument(std::to_string(rows) + " rows asked of " +
                                        std::to_string(logits.shape(0)) +
                                        " rows of logits and a sampler for " + std::to_string(max_rows()));
        }
        return static_cast<int32_t>(rows);
    }

    void collect_sequences(const nb::list& list) {
        sequences.clear();
        for (const nb::handle item : list) {
            if (item.is_none()) {
                sequences.push_back(nullptr);
                continue;
            }
            if (!nb::isinstance<SamplerSequence>(item))
                throw nb::type_error("sequences must be SamplerSequence objects");
            const auto* sequence = nb::inst_ptr<SamplerSequence>(item);
            if (sequence->vocab() != vocab())
                throw std::invalid_argument("a sequence has another vocabulary size");
            sequences.push_back(sequence);
        }
    }

    void collect_masks(const nb::list& list) {
        masks.clear();
        for (const nb::handle item : list) {
            if (item.is_none()) {
                masks.push_back(nullptr);
                continue;
            }
            Mask mask;  // not converted: a converted copy would be gone before it is read
            if (!nb::try_cast(item, mask, false))
                throw nb::type_error("a mask must be adjacent uint32 words");
            if (32 * static_cast<int64_t>(mask.shape(0)) < vocab()) {
                throw std::invalid_argument("a mask has fewer bits than the vocabulary has tokens");
            }
            masks.push_back(mask.data());
        }
        if (!masks.empty() && masks.size() != sequences.size())
            throw std::invalid_argument("one mask or None per row");
    }

    void sample_list(const Logits& logits, const nb::list& rows, const Tokens& positions,
                     const nb::list& row_masks) {
        check(logits, rows.size());
        if (positions.shape(0) != rows.size()) throw std::invalid_argument("one position per row");
        collect_sequences(rows);
        collect_masks(row_masks);
        const SampleTask task{logits.data(), logits.stride(0), sequences, positions.data(), masks};
        nb::gil_scoped_release release;
        sample(task);
    }

    // The rows' asks into `asks`; returns how many adjustments they have in all.
    int64_t ask(const nb::list& rows, const Tokens& positions, const Tokens& row_masks, const Words& asks,
                const Words& adjustments) {
        const int32_t count = check_rows<Ask>(asks, rows.size());
        check_rows<Adjustment>(adjustments, 0);
        if (positions.shape(0) != rows.size() || row_masks.shape(0) != rows.size())
            throw std::invalid_argument("one position and one mask's row per row");
        collect_all(rows);
        auto* ask = reinterpret_cast<Ask*>(asks.data());
        std::span room(reinterpret_cast<Adjustment*>(adjustments.data()), adjustments.shape(0));
        int32_t first = 0;
        for (int32_t row = 0; row < count; ++row) {
            const auto at = static_cast<size_t>(row);
            ask[at] = ask_candidates(*sequences[at], positions(at), row_masks(at), room.subspan(first));
            ask[at].first = first;
            first += ask[at].adjustments;
        }
        return first;
    }

    void sample_from(const Words& answers, const nb::list& rows, const Tokens& positions) {
        const int32_t count = check_rows<Answer>(answers, rows.size());
        if (positions.shape(0) != rows.size()) throw std::invalid_argument("one position per row");
        collect_all(rows);
        const std::span all(reinterpret_cast<const Answer*>(answers.data()), static_cast<size_t>(count));
        for (const Answer& answer : all) {
            if (answer.count < 0 || answer.count > kMaxCandidates)
                throw std::invalid_argument("an answer holds 0 to 64 candidates");
        }
        nb::gil_scoped_release release;
        sample_candidates(all, sequences, positions.data());
    }

    template <typename Row>
    int32_t check_rows(const Words& words, size_t rows) const {
        if (words.shape(1) * sizeof(int32_t) != sizeof(Row) || words.shape(0) < rows ||
            rows > static_cast<size_t>(max_rows()))
            throw std::invalid_argument("rows of " + std::to_string(sizeof(Row) / sizeof(int32_t)) +
                                        " int32, as many as there are sequences");
        return static_cast<int32_t>(rows);
    }

    void collect_all(const nb::list& list) {
        collect_sequences(list);
        if (std::find(sequences.begin(), sequences.end(), nullptr) != sequences.end())
            throw nb::type_error("sequences must be SamplerSequence objects");
    }

    void score_targets(const Logits& logits, const Tokens& targets, int32_t top) {
        const int32_t count = check(logits, targets.shape(0));
        if (top < 0 || top > kMaxLogprobs) throw std::invalid_argument("top must be 0 to 20");
        for (int32_t row = 0; row < count; ++row) {
            if (targets(row) < 0 || targets(row) >= vocab()) {
                throw std::invalid_argument("token " + std::to_string(targets(row)) +
                                            " is outside the vocabulary");
            }
        }
        nb::gil_scoped_release release;
        score(logits.data(), logits.stride(0), {targets.data(), targets.shape(0)}, top);
    }

    std::vector<const SamplerSequence*> sequences;
    std::vector<const uint32_t*> masks;
};

// A numpy view of a result vector with `width` values per row; the view keeps the sampler alive.
template <typename T>
void def_view(nb::class_<PySampler>& cls, const char* name, std::vector<T> Sampler::Results::* field) {
    cls.def_prop_ro(name, [field](nb::pointer_and_handle<PySampler> self) {
        std::vector<T>& values = self.p->results().*field;
        const auto rows = static_cast<size_t>(self.p->max_rows());
        return nb::ndarray<nb::numpy, T, nb::ndim<2>>(values.data(), {rows, values.size() / rows}, self.h);
    });
}

}  // namespace

void bind_sampler(nb::module_& m) {
    m.attr("MAX_LOGPROBS") = kMaxLogprobs;
    m.attr("MAX_CANDIDATES") = kMaxCandidates;
    m.attr("MAX_DRAWN") = kMaxDrawn;
    m.attr("DRAWN_CANDIDATES") = kDrawnCandidates;

    nb::class_<SamplerSequence>(m, "SamplerSequence", "What the sampler knows of one sequence.")
        .def(
            "__init__",
            [](SamplerSequence* self, int32_t vocab, uint64_t seed, uint32_t sample_index, double temperature,
               int32_t top_k, double top_p, double min_p, float repetition_penalty, float presence_penalty,
               float frequency_penalty, int32_t min_position, int32_t logprobs,
               const std::vector<std::pair<int32_t, float>>& logit_bias, std::vector<int32_t> stop_tokens,
               const Tokens& prompt, int64_t capacity) {
                if (logprobs > kMaxLogprobs) throw std::invalid_argument("logprobs must be at most 20");
                SamplingOptions options{seed,
                                        sample_index,
                                        temperature,
                                        top_k,
                                        top_p,
                                        min_p,
                                        repetition_penalty,
                                        presence_penalty,
                                        frequency_penalty,
                                        min_position,
                                        logprobs};
                std::vector<SamplerSequence::Bias> bias;
                for (const auto& [token, value] : logit_bias) bias.push_back({token, value});
                new (self) SamplerSequence(vocab, options, std::move(bias), std::move(stop_tokens),
                                           {prompt.data(), prompt.shape(0)}, capacity);
            },
            nb::kw_only(), "vocab"_a, "seed"_a, "sample_index"_a, "temperature"_a, "top_k"_a, "top_p"_a,
            "min_p"_a, "repetition_penalty"_a, "presence_penalty"_a, "frequency_penalty"_a, "min_position"_a,
            "logprobs"_a, "logit_bias"_a, "stop_tokens"_a, "prompt"_a.noconvert(), "capacity"_a)
        .def("append", &SamplerSequence::append, "token"_a, "Counts a token that the sequence produced.");

    nb::class_<PySampler> sampler(m, "Sampler", "Samples many rows in one call, without the GIL.");
    sampler
        .def(nb::init<int32_t, int32_t, int32_t, const std::string&>(), "vocab"_a, "max_rows"_a,
             "threads"_a = 1, "isa"_a = "")
        .def_prop_ro("bytes", &PySampler::bytes)
        .def("sample", &PySampler::sample_list, "logits"_a.noconvert(), "sequences"_a,
             "positions"_a.noconvert(), "masks"_a,
             "Samples row r of `logits` for sequences[r]; one of None is left alone. `masks` is empty or has "
             "uint32 words or None per row.")
        .def("ask", &PySampler::ask, "sequences"_a, "positions"_a.noconvert(), "masks"_a.noconvert(),
             "asks"_a.noconvert(), "adjustments"_a.noconvert(),
             "Fills `asks` and `adjustments` as tandem.devices.candidates lays them out; returns how many "
             "adjustments there are. masks: each row's mask, or -1.")
        .def("sample_candidates", &PySampler::sample_from, "answers"_a.noconvert(), "sequences"_a,
             "positions"_a.noconvert(),
             "Samples from a device's answers; a row that they do not suffice for gets the status 3.")
        .def("score", &PySampler::score_targets, "logits"_a.noconvert(), "targets"_a.noconvert(), "top"_a,
             "Log-probabilities of targets[r] and of the `top` likeliest tokens under row r of `logits`.");
    def_view(sampler, "tokens", &Sampler::Results::tokens);
    def_view(sampler, "status", &Sampler::Results::status);
    def_view(sampler, "ranks", &Sampler::Results::ranks);
    def_view(sampler, "logprob_tokens", &Sampler::Results::logprob_tokens);
    def_view(sampler, "logprobs", &Sampler::Results::logprobs);

    m.def("sampler_bytes", &Sampler::planned_bytes, "vocab"_a, "max_rows"_a, "threads"_a,
          "What a sampler of these sizes will hold.");
    m.def(
        "philox4x32",
        [](const std::vector<uint32_t>& counter, const std::vector<uint32_t>& key) {
            if (counter.size() != 4 || key.size() != 2)
                throw std::invalid_argument("four counter words, two key words");
            uint32_t c[4][1] = {{counter[0]}, {counter[1]}, {counter[2]}, {counter[3]}};
            philox4x32(key[0], key[1], c);
            return std::vector<uint32_t>{c[0][0], c[1][0], c[2][0], c[3][0]};
        },
        "counter"_a, "key"_a, "One Philox4x32-10 block.");
    m.def(
        "gumbel_noise",
        [](uint64_t seed, uint32_t sample_index, uint32_t position, const Noise& out) {
            const NoiseStream noise{seed, sample_index, position};
            for (size_t t = 0; t < out.shape(0); ++t) out(t) = gumbel(noise.word(static_cast<uint32_t>(t)));
        },
        "seed"_a, "sample_index"_a, "position"_a, "out"_a.noconvert(),
        "Fills `out` with the noise of tokens 0, 1, 2, …");
}

}  // namespace tandem
