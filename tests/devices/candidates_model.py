"""What a device must answer, in numpy: tandem.devices.candidates operation by operation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from engine.sampling_model import in_order, masses
from tandem.devices.candidates import (
    ANSWER_HEAD,
    COUNTED,
    RAW_TOTAL,
    STOP,
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


def answer(logits: Floats, buffers: CandidateBuffers, slots: Words | None = None, named: Words | None = None) -> None:
    """Fills the answers for rows of logits, and the slots that their samples name."""
    for index, (row, ask, out) in enumerate(zip(logits, buffers.asks, buffers.answers, strict=False)):
        out[:] = 0
        if not ask[0]:
            continue
        x = adjusted(row, ask, buffers)
        out[0] = ask[0]
        if any(np.isnan(each).any() or np.isposinf(each).any() for each in (row, x)):
            out[1] = 1
            continue
        order = in_order(x)[: ask[0]]
        pairs = out[ANSWER_HEAD : ANSWER_HEAD + 2 * ask[0]].reshape(-1, 2)
        pairs[:, 0] = order
        pairs[:, 1] = (x[order] + F32(0)).view(np.int32)
        if ask[1] & TAKES_SLOT and slots is not None and named is not None:
            slots[named[index]] = order[0]
        if x.max() == -np.inf:
            continue
        with np.errstate(over="ignore"):
            d = x - x.max()
            if ask[1] & TOTAL:
                out[2:4] = words_of(int(masses(d * bits(ask[2])).sum()))
            if ask[1] & RAW_TOTAL:
                out[4:6] = words_of(int(masses(d).sum()))
