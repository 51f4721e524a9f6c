"""Perplexity as llama.cpp's `llama-perplexity` measures it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tandem._native import Scorer
from tandem.bench.teacher import Teacher, score
from tandem.engine.build import EngineConfig
from tandem.errors import BenchError
from tandem.models.tokenizer import open_tokenizer
from tandem.weights.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class Perplexity:
    """perplexity: exp(nll), of `tokens` scored tokens in `windows` windows. error: one standard error of it.

    nll: mean nats a token.
    """

    perplexity: float
    error: float
    nll: float
    tokens: int
    windows: int
    length: int


def cut_windows(checkpoint: Checkpoint, text: str, length: int, limit: int | None = None) -> list[list[int]]:
    """The text's tokens in windows of `length`, one after another; what is left over at the end is dropped.

    As in llama.cpp (tools/perplexity/perplexity.cpp) the text is encoded with the special tokens that the model puts
    around one, and each window's first token is replaced by BOS where the model's texts begin with it.
    Raises BenchError for a text of less than two windows, which is the least that llama.cpp takes, too.
    """
    tokenizer = open_tokenizer(checkpoint)
    ids = tokenizer.encode(text)
    if length < 4:
        raise BenchError(f"a window of {length} tokens is too short; take 4 or more")
    if len(ids) < 2 * length:
        raise BenchError(f"the text has {len(ids):,} tokens, and two windows of {length:,} take {2 * length:,}")
    windows = [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)][:limit]
    begins = tokenizer.bos_id is not None and tokenizer.encode("")[:1] == [tokenizer.bos_id]
    return [[tokenizer.bos_id, *window[1:]] for window in windows] if begins else windows  # type: ignore[list-item]


def measure_perplexity(
    checkpoint: Checkpoint,
    text: str,
    config: EngineConfig,
    *,
    length: int = 512,
    windows: int | None = None,
    together: int = 4,
    progress: Callable[[int, float], None] | None = None,
) -> Perplexity:
    """Reads each window by itself and scores its second half: what follows position length // 2.

    windows: at most so many; None takes all. progress: called with (tokens scored, perplexity so far).
    """
    cut = cut_windows(checkpoint, text, length, windows)
    total = squares = 0.0
    tokens = 0
    with Teacher(checkpoint, config, length=length, together=min(together, len(cut))) as teacher:
        scorer = Scorer(teacher.threads)
        for forced in teacher.read(cut, length // 2):
            nll, _ = score(scorer, forced)
            total += float(nll.sum())
            squares += float((nll * nll).sum())
            tokens += len(nll)
            if progress is not None:
                progress(tokens, math.exp(total / tokens))
    mean = total / tokens
    error = math.sqrt(max(0.0, squares / tokens - mean * mean) / (tokens - 1)) * math.exp(mean)
    return Perplexity(math.exp(mean), error, mean, tokens, len(cut), length)
