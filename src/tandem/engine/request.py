"""What crosses the engine's boundary: requests of token ids in, deltas of token ids out. All of it serializes."""

from __future__ import annotations

from typing import Literal

import msgspec

from tandem.engine.pooling import PoolingKind
from tandem.engine.sampling_params import SamplingParams

# stop: an end-of-sequence or stop token. length: max_tokens or the context is used up.
FinishReason = Literal["stop", "length", "cancelled", "error"]


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt and how to continue it.

    priority: lower goes first, as vLLM has it; each level is a head start, so that nothing waits for ever.
    cache_salt: requests share cached prefixes only with those of the same salt.
    pooling: the prompt is embedded and not continued: of its hidden states the mean, or the last token's.
    """

    id: str
    prompt: list[int]
    params: SamplingParams
    priority: int = 0
    cache_salt: str = ""
    pooling: PoolingKind | None = None


class TokenLogprobs(msgspec.Struct, gc=False):
    """Natural logarithms of probabilities at one position: of the token there, its rank (1 is the likeliest), and of
    the likeliest ids, best first.
    """

    token: int
    logprob: float
    rank: int
    top_ids: list[int]
    top_logprobs: list[float]


class Delta(msgspec.Struct, kw_only=True):
    """What one step brought for one sample of a request. Each sample ends with exactly one `finish_reason`.

    logprobs: one per token, when asked for. prompt_logprobs: those of the next prompt tokens, from the second on.
    stop_reason: the stop token, unless it is the model's own end of sequence. error: why, if the reason is "error".
    ended: this is the request's last delta. cached_tokens: prompt tokens that the prefix cache provided; on the delta
    of a sample's first token. embedding: of a request that pools, with its one delta: float32, little-endian.
    """

    request_id: str
    index: int = 0
    tokens: list[int] = []
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None
    error: str | None = None
    ended: bool = False
    cached_tokens: int = 0
    embedding: bytes | None = None
