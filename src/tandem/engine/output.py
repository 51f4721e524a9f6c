"""The text stage in front of the engine: deltas of token ids become text, stop strings end it, results add up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tandem.engine.request import Delta, Request, TokenLogprobs
from tandem.engine.sampling_params import SamplingParams
from tandem.text.detokenizer import IncrementalDetokenizer
from tandem.text.stop import StopMatcher
from tandem.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Logprob:
    """logprob: natural logarithm. rank: 1 is the likeliest; only the token itself has one outside the listed top."""

    logprob: float
    rank: int
    decoded_token: str


# At one position: token id to its logprob; the token itself first, then the likeliest.
Logprobs = dict[int, Logprob]


@dataclass(slots=True)
class CompletionChunk:
    """What one step added to one sample. finish_reason: stop, length, cancelled or error, with the last chunk."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[Logprobs] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    error: str | None = None


@dataclass(slots=True)
class CompletionOutput:
    """One sample of a request. stop_reason: the stop string or stop token id that ended it; None otherwise."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[Logprobs] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass(slots=True)
class RequestOutput:
    """A request's result. error: why it has none, or why it broke off; None when all went well.

    prompt_logprobs: one entry per prompt token, None for the first. num_cached_tokens: prompt tokens that were not
    computed, because the prefix cache had them.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput] = field(default_factory=list)
    prompt_logprobs: list[Logprobs | None] | None = None
    finished: bool = False
    error: str | None = None
    num_cached_tokens: int = 0


@dataclass(slots=True)
class EmbeddingOutput:
    """A prompt's embedding, float32 [hidden]; None where `error` says why there is none."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    embedding: npt.NDArray[np.float32] | None = None
    error: str | None = None
    num_cached_tokens: int = 0

    def take(self, delta: Delta, *, normalize: bool) -> None:
        """normalize: to length 1."""
        self.error, self.num_cached_tokens = delta.error, delta.cached_tokens
        if delta.embedding is not None:
            embedding = np.frombuffer(delta.embedding, dtype="<f4").astype(np.float32)
            length = float(np.linalg.norm(embedding.astype(np.float64)))
            self.embedding = embedding / np.float32(length) if normalize and length else embedding
        elif self.error is None:
            self.error = "the request was cancelled"


def readable_logprobs(entry: TokenLogprobs, tokenizer: Tokenizer) -> Logprobs:
    """Ids with their texts; the token itself first."""
    result = {entry.token: Logprob(entry.logprob, entry.rank, tokenizer.token_text(entry.token))}
    for rank, (token, logprob) in enumerate(zip(entry.top_ids, entry.top_logprobs, strict=True), start=1):
        result.setdefault(token, Logprob(logprob, rank, tokenizer.token_text(token)))
    return result


class SampleText:
    """Turns one sample's deltas into chunks of text."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], params: SamplingParams) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = IncrementalDetokenizer(tokenizer, prompt, skip_special=params.skip_special_tokens)
        self._stops = StopMatcher(params.stop_strings)
        self._keep_stop = params.include_stop_str_in_output
        self.ended = False

    def push(self, delta: Delta) -> CompletionChunk | None:
        """The chunk that a delta brings; None once the sample has ended, as the engine may be a step behind."""
        if self.ended:
            return None
        # The token that ends a generation is no part of the text.
        shown = delta.tokens
        if delta.finish_reason == "stop" and not self._keep_stop:
            shown = shown[:-1]
        taken = len(delta.tokens)
        text, matched = "", None
        for i, token in enumerate(shown):
            piece, matched = self._stops.push(self._detokenizer.push(token))
            text += piece
            if matched is not None:
                taken = i + 1
                break
        if delta.finish_reason is not None and matched is None:
            piece, matched = self._stops.push(self._detokenizer.finish())
            text += piece if matched is not None else piece + self._stops.finish()
        if matched is not None and self._keep_stop:
            text += matched
        chunk = CompletionChunk(delta.index, text, delta.tokens[:taken])
        if delta.logprobs is not None:
            chunk.logprobs = [readable_logprobs(entry, self._tokenizer) for entry in delta.logprobs[:taken]]
        if matched is not None:
            chunk.finish_reason, chunk.stop_reason = "stop", matched
        else:
            chunk.finish_reason, chunk.stop_reason, chunk.error = delta.finish_reason, delta.stop_reason, delta.error
        self.ended = chunk.finish_reason is not None
        return chunk


class RequestText:
    """Collects one request's deltas into `output`."""

    def __init__(self, request: Request, tokenizer: Tokenizer, prompt: str | None) -> None:
        """prompt: the text that the token ids came from, if any."""
        self._tokenizer = tokenizer
        params = request.params
        self._samples = [SampleText(tokenizer, request.prompt, params) for _ in range(params.n)]
        self.output = RequestOutput(request.id, prompt, request.prompt)
        self.output.outputs = [CompletionOutput(index) for index in range(params.n)]
        if params.logprobs is not None:
            for sample in self.output.outputs:
                sample.logprobs, sample.cumulative_logprob = [], 0.0
        if params.prompt_logprobs is not None:
            self.output.prompt_logprobs = [None]

    def push(self, delta: Delta) -> CompletionChunk | None:
        """Adds a delta. Where a stop string ends the sample, the chunk has a finish_reason and the delta has none: then
        the caller cancels that sample in the engine.
        """
        output = self.output
        if delta.prompt_logprobs is not None and output.prompt_logprobs is not None:
            output.prompt_logprobs += [readable_logprobs(e, self._tokenizer) for e in delta.prompt_logprobs]
        chunk = self._samples[delta.index].push(delta)
        if chunk is None:
            return None
        output.num_cached_tokens = max(output.num_cached_tokens, delta.cached_tokens)
        sample = output.outputs[delta.index]
        sample.text += chunk.text
        sample.token_ids += chunk.token_ids
        if chunk.logprobs is not None and sample.logprobs is not None and sample.cumulative_logprob is not None:
            sample.logprobs += chunk.logprobs
            for token, logprobs in zip(chunk.token_ids, chunk.logprobs, strict=True):
                sample.cumulative_logprob += logprobs[token].logprob
        sample.finish_reason, sample.stop_reason = chunk.finish_reason, chunk.stop_reason
        output.error = output.error or chunk.error
        output.finished = delta.ended or all(text.ended for text in self._samples)
        return chunk
