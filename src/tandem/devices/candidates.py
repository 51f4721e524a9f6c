"""Sampling's part of a step, for devices that pick a row's likeliest tokens themselves: what is asked, what comes back.

Such a device (`DeviceInfo.candidates`) never shows the host the logits of a row whose choice the candidates decide.
Everything is int32 (floats by their bits) in host memory planned once, read and written in place:

    asks         [max_samples, 16]    k, flags, 1 / temperature (float), row of `masks` or -1, first adjustment,
                                      adjustments, repetition, frequency and presence penalty (floats), seed (two
                                      words, low first), sample index, position, candidates that top-k leaves, top-p,
                                      lowest shifted logit that min-p leaves (floats)
    adjustments  [any, 5]             token, kind, times produced, bias (float), a word for the device; a row names a
                                      token once, and no two rows share an entry
    masks        [any, vocab / 32]    bit t % 32 of word t // 32 allows token t
    answers      [max_samples, 135]   candidates, 1 where the logits are not finite, the mass at the asked temperature
                                      and at temperature 1 (two words each, low first), the token that went to the
                                      slot or -1, then (token, logit as float) by falling logit and rising token, as
                                      many as there are

Entry i belongs to the batch's sample i. k is 0 for a row that is wanted whole: its logits come in `logits`, and its
answer has no candidates. Otherwise it is the number of candidates, 64 at most. Flags: 1 asks for the mass at the row's
temperature, 2 for that at temperature 1, 4 for a token in the sequence's slot: the first candidate, or with 8 one that
noise chooses. With 16 the row is drawn from as a whole, and k is 9: the candidates are the token of the highest logit;
then four by falling score and rising token; then for each of these the mass of all tokens before it in the order of
logits, two words, where 1 asks for masses.

Before it chooses, the device applies the mask, then to the logit x of each adjusted token, rounding after each step:
x + bias; where kind has bit 1, x / repetition if x > 0 and otherwise x * repetition; if it was produced c > 0 times,
x - frequency * c, then x - presence; where kind has bit 2, -infinity. Masses are those of native/kernels/logit_row.h:
counts of 2^-40, exact integers, so they do not depend on who adds them up.

A score is logit / temperature plus the noise of native/kernels/philox.h. The device reckons it in float32, noise within
1e-5; what it chooses is a guess, which is nearly always right: the host chooses exactly, from candidates, and where the
slot holds another token the rows that were computed from it are dropped. A choice among candidates by logit takes those
that top-k, top-p and min-p leave, and of a whole row the first by score that top-p leaves, or -1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tandem._native import MAX_CANDIDATES

ASK_WORDS = 16
ADJUSTMENT_WORDS = 5
ANSWER_HEAD = 7
ANSWER_WORDS = ANSWER_HEAD + 2 * MAX_CANDIDATES
# Of an answer: the token in the slot.
TAKEN = 6

# Flags of an ask.
TOTAL, RAW_TOTAL, TAKES_SLOT, NOISE, BY_SCORE = 1, 2, 4, 8, 16
# Kinds of an adjustment.
COUNTED, STOP = 1, 2

Int32Array = npt.NDArray[np.int32]


@dataclass(slots=True)
class CandidateBuffers:
    """As the module's text lays them out."""

    asks: Int32Array
    adjustments: Int32Array
    masks: Int32Array
    answers: Int32Array

    def fills_slots(self, samples: int) -> bool:
        """Whether for each of a batch's `samples` a token goes to its slot."""
        asks = self.asks[:samples]
        return bool(((asks[:, 0] > 0) & (asks[:, 1] & TAKES_SLOT > 0)).all())


def candidate_shapes(samples: int, sequences: int, vocab: int) -> dict[str, tuple[int, int]]:
    """Shapes of the buffers for steps of `samples` rows of `sequences` sequences.

    All penalized rows of a step share room for 2,048 different tokens a sequence; a row that finds none left is asked
    for whole.
    """
    return {
        "asks": (samples, ASK_WORDS),
        "adjustments": (sequences * min(vocab, 2048), ADJUSTMENT_WORDS),
        "masks": (sequences, -(-vocab // 32)),
        "answers": (samples, ANSWER_WORDS),
    }
