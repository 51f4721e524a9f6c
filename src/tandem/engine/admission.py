"""What an engine accepts: a request is checked before it becomes sequences."""

from __future__ import annotations

from typing import get_args

from tandem.engine.pooling import PoolingKind
from tandem.engine.request import Request
from tandem.engine.sampling_params import SamplingParams
from tandem.errors import RequestError
from tandem.memory.plan import Limits
from tandem.memory.system import counted


def check_request(request: Request, limits: Limits, vocab: int, *, embeds: bool) -> None:
    """Raises RequestError, in one sentence. embeds: whether the model has a final norm to embed with."""
    prompt, context = request.prompt, limits.context
    if not isinstance(request.params, SamplingParams):
        raise RequestError(f"sampling parameters must be SamplingParams, not {type(request.params).__name__}")
    if not isinstance(request.priority, int):
        raise RequestError(f"priority must be a whole number, not {request.priority!r:.80}")
    if not prompt:
        raise RequestError("the prompt is empty; give at least one token")
    if len(prompt) >= context:
        raise RequestError(
            f"the prompt has {len(prompt):,} tokens, and the context of {context:,} must also hold the answer; "
            f"shorten the prompt to at most {counted(context - 1, 'token')} or load the model with a larger context"
        )
    if min(prompt) < 0 or max(prompt) >= vocab:
        raise RequestError(f"the prompt holds a token outside the vocabulary of {vocab:,}")
    if request.params.n > limits.sequences:
        raise RequestError(
            f"n={request.params.n} samples, but this engine runs at most "
            f"{counted(limits.sequences, 'sequence')} at once"
        )
    request.params.validate(vocab)
    if request.pooling is not None:
        _check_pooling(request, embeds)


def _check_pooling(request: Request, embeds: bool) -> None:
    if not embeds:
        raise RequestError("this engine has no final norm, without which it cannot embed")
    if request.pooling not in get_args(PoolingKind):
        raise RequestError(f"pooling must be one of {', '.join(get_args(PoolingKind))}, not {request.pooling!r:.80}")
    params = request.params
    if params.n > 1 or params.prompt_logprobs is not None or params.grammar is not None:
        raise RequestError("a prompt that is embedded has one sample, no prompt_logprobs and no grammar")
