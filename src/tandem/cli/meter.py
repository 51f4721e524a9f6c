"""Times of one generation, as its user sees them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tandem.engine.output import CompletionChunk


class Meter:
    """Watches a stream of chunks. All times are in seconds of the wall clock, from the making of the meter.

    prompt_tokens: of the whole prompt. cached_tokens: those that the prefix cache provided; set when it is known.
    """

    def __init__(self, prompt_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        self.cached_tokens = 0
        self.tokens = 0
        self.first_token_s: float | None = None
        self._start = time.perf_counter()
        self._last_s = 0.0
        self._first_tokens = 0

    def watch(self, chunks: Iterable[CompletionChunk]) -> Iterator[CompletionChunk]:
        for chunk in chunks:
            now = time.perf_counter() - self._start
            self.tokens += len(chunk.token_ids)
            if self.first_token_s is None:
                self.first_token_s = now
                self._first_tokens = self.tokens
            self._last_s = now
            yield chunk

    @property
    def prefill_rate(self) -> float | None:
        """Computed prompt tokens per second until the first token was there."""
        computed = self.prompt_tokens - self.cached_tokens
        return computed / self.first_token_s if self.first_token_s else None

    @property
    def decode_rate(self) -> float | None:
        """Tokens per second after the first."""
        if self.first_token_s is None or self._last_s == self.first_token_s:
            return None
        return (self.tokens - self._first_tokens) / (self._last_s - self.first_token_s)

    def to_json(self) -> dict[str, float | None]:
        return {
            "time_to_first_token_s": self.first_token_s,
            "prefill_tokens_per_s": self.prefill_rate,
            "decode_tokens_per_s": self.decode_rate,
        }

    def __str__(self) -> str:
        if self.first_token_s is None:
            return "no token"
        parts = [f"first token after {self.first_token_s:.3f} s"]
        if self.prefill_rate is not None:
            cached = f", {self.cached_tokens:,} of them cached" if self.cached_tokens else ""
            parts.append(f"prefill {self.prefill_rate:,.1f} tokens/s ({self.prompt_tokens:,} tokens{cached})")
        if self.decode_rate is not None:
            parts.append(f"decode {self.decode_rate:,.1f} tokens/s ({self.tokens:,} tokens)")
        return ", ".join(parts)
