// Sampling from a row's likeliest tokens alone, where a device has picked them from logits that the host
// never sees. tandem.devices.candidates documents the layouts; devices fill and read them as they stand.
//
// A choice from candidates is the one that the whole row would give, bit for bit, or it is not made: masses
// are exact integers wherever they are added up, and what the candidates cannot prove needs the row.
#pragma once

#include <cstdint>
#include <span>

#include "src/sampler.h"

namespace tandem {

inline constexpr int kMaxCandidates = 64;

// Of a row that is drawn from as a whole: the tokens of the highest scores that come back. The answer's first
// candidate is then the token of the highest logit, these follow by falling score, and behind them the masses
// of the tokens that come before each.
inline constexpr int kMaxDrawn = 4;
inline constexpr int kDrawnCandidates = 1 + 2 * kMaxDrawn;

// What is asked of a sampled row. k 0: its whole logits, and nothing below counts.
struct Ask {
    enum Flags : int32_t { kTotal = 1, kRawTotal = 2, kTakesSlot = 4, kNoise = 8, kByScore = 16 };

    int32_t k;
    int32_t flags;
    float inverse_temperature;
    int32_t mask;   // row of the masks, or -1
    int32_t first;  // of its adjustments
    int32_t adjustments;
    float repetition_penalty, frequency_penalty, presence_penalty;
    // For the token that the device itself puts into the slot, where noise chooses it.
    uint32_t seed[2];
    uint32_t sample_index;
    uint32_t position;
    int32_t kept;  // candidates that top-k leaves
    float top_p;
    float floor;  // min-p's, of shifted logits
};

// One token whose logit changes before the candidates are chosen; a row names each token once.
struct Adjustment {
    enum Kind : int32_t { kCounted = 1, kStop = 2 };

    int32_t token;
    int32_t kind;
    int32_t produced;
    float bias;
    int32_t device;  // for the device's own use
};

struct Answer {
    struct Candidate {
        int32_t token;
        float logit;
    };

    int32_t count;  // 0: the row is there whole
    int32_t not_finite;
    uint32_t total[2];                     // low and high word of the masses at the asked temperature
    uint32_t raw_total[2];                 // and at temperature 1
    int32_t taken;                         // the token that went to the slot, or -1
    Candidate candidates[kMaxCandidates];  // by falling logit, then rising token
};

// Asks for what sampling `sequence` at `position` needs, with its adjustments at the front of `room`; a row
// whose adjustments do not fit, or whose choice is hopeless without the others, is asked for whole.
Ask ask_candidates(const SamplerSequence& sequence, int32_t position, int32_t mask,
                   std::span<Adjustment> room);

// The token that the whole row would give, with what its report needs; kNeedsRow where that is not certain.
// What the device put into the slot counts for nothing here.
struct Choice {
    SampleStatus status;
    int32_t index = -1;  // among the candidates
};
Choice choose(const Answer& answer, const SamplerSequence& sequence, int32_t position);

}  // namespace tandem
