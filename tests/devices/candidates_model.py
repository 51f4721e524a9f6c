"""What a device must answer, in numpy: tandem.devices.candidates operation by operation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from engine.sampling_model import gumbel, in_order, masses
from tandem._native import MAX_DRAWN
from tandem.devices.candidates import (
    ANSWER_HEAD,
    BY_SCORE,
    COUNTED,
    NOISE,
    RAW_TOTAL,
    STOP,
    TAKEN,
    TAKES_SLOT,
    TOTAL,
    CandidateBuffers,
    candidate_shapes,
)

F32 = np.float32
Floats = npt.NDArray[np.float32]
Words = npt.NDArray[np.int32]


def buffers_for(samples: int, sequences: int, vocab: int) -> CandidateBuffers:
    shapes = candidate_shapes(samples, sequences, vocab)
    return CandidateBuffers(**{name: np.zeros(shape, np.int32) for name, shape in shapes.items()})


def bits(word: np.int32) -> np.float32:
    return np.int32(word).view(F32)


def adjusted(logits: Floats, ask: Words, buffers: CandidateBuffers) -> Floats:
    x = logits.copy()
    if ask[3] >= 0:
        tokens = np.arange(len(x))
        x[buffers.masks[ask[3]].view(np.uint32)[tokens // 32] >> (tokens % 32).astype(np.uint32) & 1 == 0] = -np.inf
    repetition, frequency, presence = (bits(word) for word in ask[6:9])
    with np.errstate(over="ignore", invalid="ignore"):
        for token, kind, produced, bias, _ in buffers.adjustments[ask[4] : ask[4] + ask[5]]:
            value = x[token] + bits(bias)
            if kind & COUNTED:
                value = value / repetition if value > 0 else value * repetition
            if produced:
                value = value - frequency * F32(produced)
                value = value - presence
            x[token] = -np.inf if kind & STOP else value
    return x


def words_of(total: int) -> tuple[int, int]:
    low, high = np.array([total], np.uint64).view(np.int32)
    return int(low), int(high)


def noise(ask: Words, vocab: int) -> npt.NDArray[np.float64]:
    low, high, sample, position = (int(word) for word in ask[9:13].view(np.uint32))
    return gumbel(low | high << 32, sample, position, vocab)


def total_of(words: Words) -> int:
    return int(words.view(np.uint64)[0])


def drawn(x: Floats, ask: Words, out: Words) -> int:
    """The answer of a row that is drawn from as a whole; returns the token for its slot."""
    order = in_order(x)
    with np.errstate(over="ignore", invalid="ignore"):
        scores = x.astype(np.float64) * bits(ask[2]) + noise(ask, len(x))
        mass = masses((x - x.max()) * bits(ask[2]))
    best = np.lexsort((np.arange(len(x)), -scores))[:MAX_DRAWN]
    pairs = out[ANSWER_HEAD : ANSWER_HEAD + 2 * ask[0]].reshape(-1, 2)
    pairs[0] = order[0], (x[order[0]] + F32(0)).view(np.int32)
    share = bits(ask[14])
    taken = -1
    for at, token in enumerate(best, 1):
        pairs[at] = token, (x[token] + F32(0)).view(np.int32)
        before = 0
        if ask[1] & TOTAL:
            before = int(mass[order[: int(np.flatnonzero(order == token)[0])]].sum())
            pairs[MAX_DRAWN + at] = words_of(before)
        if taken < 0 and (share >= 1 or before < share * F32(mass.sum())):
            taken = int(token)
    return taken


def chosen(pairs: Words, ask: Words, total: int, vocab: int) -> int:
    """The token that noise chooses among candidates by logit."""
    logits = pairs[:, 1].copy().view(F32)
    with np.errstate(over="ignore", invalid="ignore"):
        d = (logits - logits[0]) * bits(ask[2])
    mass = masses(d)
    kept = np.arange(len(d)) < ask[13]
    total = total if ask[1] & TOTAL else int(mass[kept].sum())
    kept &= (np.cumsum(mass) - mass < bits(ask[14]) * F32(total)) | (bits(ask[14]) >= 1)
    kept &= d >= bits(ask[15])
    kept[0] = True
    tokens = pairs[kept, 0]
    return int(tokens[np.argmax(d[kept] + noise(ask, vocab)[tokens])])


def answer(logits: Floats, buffers: CandidateBuffers, slots: Words | None = None, named: Words | None = None) -> None:
    """Fills the answers for rows of logits, and the slots that their samples name."""
    for index, (row, ask, out) in enumerate(zip(logits, buffers.asks, buffers.answers, strict=False)):
        out[:] = 0
        if not ask[0]:
            continue
        x = adjusted(row, ask, buffers)
        out[0] = ask[0]
        out[TAKEN] = -1
        if any(np.isnan(each).any() or np.isposinf(each).any() for each in (row, x)):
            out[1] = 1
            continue
        order = in_order(x)[: ask[0]]
        pairs = out[ANSWER_HEAD : ANSWER_HEAD + 2 * ask[0]].reshape(-1, 2)
        pairs[:, 0] = order
        pairs[:, 1] = (x[order] + F32(0)).view(np.int32)
        if x.max() == -np.inf:
            if ask[1] & BY_SCORE:
                out[0] = 1
            continue
        with np.errstate(over="ignore"):
            d = x - x.max()
            if ask[1] & TOTAL:
                out[2:4] = words_of(int(masses(d * bits(ask[2])).sum()))
            if ask[1] & RAW_TOTAL:
                out[4:6] = words_of(int(masses(d).sum()))
        taken = int(order[0])
        if ask[1] & BY_SCORE:
            pairs[:] = 0
            taken = drawn(x, ask, out)
        elif ask[1] & NOISE:
            taken = chosen(pairs, ask, total_of(out[2:4].copy()), len(x))
        if ask[1] & TAKES_SLOT:
            out[TAKEN] = taken
            if taken >= 0 and slots is not None and named is not None:
                slots[named[index]] = taken
