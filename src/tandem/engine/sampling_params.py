"""How a request wants its tokens chosen and when it stops. Names, meanings and defaults are vLLM's."""

from __future__ import annotations

import math
from collections.abc import Collection

import msgspec

from tandem._native import MAX_LOGPROBS
from tandem.errors import RequestError
from tandem.text.grammar import Grammar

MAX_SAMPLES = 16384
_INT32_MAX = 2**31 - 1


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Checked when made: RequestError, one sentence, for a value outside its range. What each parameter does
    to the logits, and in which order, is said in `tandem.engine.sampling`.

    n: samples of one prompt. temperature: 0 is greedy. top_k: 0 or -1 keeps all tokens.
    repetition_penalty: over the tokens of prompt and output. presence_penalty, frequency_penalty: over the
    output's. logit_bias: added to the logits of these token ids. seed: None or -1 draws one.
    stop: texts that end the output. stop_token_ids: tokens that end it, as the model's end-of-sequence tokens
    do unless ignore_eos. include_stop_str_in_output: keep the text that ended it.
    min_tokens: no stop token is chosen before so many. max_tokens: None is as many as the context holds.
    logprobs, prompt_logprobs: how many of the likeliest tokens to report at each position, besides the one
    that is there; None reports nothing.
    grammar: what the output must match; it ends when that does, with an end-of-sequence token.
    """

    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    min_tokens: int = 0
    max_tokens: int | None = 16
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        _check_int("n", self.n, 1, MAX_SAMPLES)
        _check_number("temperature", self.temperature, 0.0, math.inf, "a finite number of 0 or more")
        _check_int("top_k", self.top_k, -1, _INT32_MAX)
        _check_number("top_p", self.top_p, 0.0, 1.0, "a number above 0 and at most 1", open_low=True)
        _check_number("min_p", self.min_p, 0.0, 1.0, "a number from 0 to 1")
        _check_number("repetition_penalty", self.repetition_penalty, 0.01, 100.0, "a number from 0.01 to 100")
        _check_number("presence_penalty", self.presence_penalty, -2.0, 2.0, "a number from -2 to 2")
        _check_number("frequency_penalty", self.frequency_penalty, -2.0, 2.0, "a number from -2 to 2")
        if self.seed is not None:
            _check_int("seed", self.seed, -(2**63), 2**63 - 1)
        _check_int("min_tokens", self.min_tokens, 0, _INT32_MAX)
        if self.max_tokens is not None:
            _check_int("max_tokens", self.max_tokens, 1, _INT32_MAX)
            if self.min_tokens > self.max_tokens:
                raise RequestError(f"min_tokens ({self.min_tokens}) must not exceed max_tokens ({self.max_tokens}).")
        for name, value in (("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)):
            if value is not None:
                _check_int(name, value, 0, MAX_LOGPROBS)
        for flag in ("ignore_eos", "skip_special_tokens", "include_stop_str_in_output"):
            if not isinstance(getattr(self, flag), bool):
                raise RequestError(f"{flag} must be true or false, not {getattr(self, flag)!r}.")
        self._check_stops()
        self._check_bias()
        self._check_grammar()

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple, empty when there is none."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def stop_ids(self, eos_token_ids: Collection[int]) -> frozenset[int]:
        """The tokens that end this request's output, given the model's end-of-sequence tokens."""
        return frozenset(self.stop_token_ids or ()).union(() if self.ignore_eos else eos_token_ids)

    def validate(self, vocab_size: int) -> None:
        """Raises RequestError for a token id that a vocabulary of `vocab_size` tokens does not have."""
        for name, ids in (("logit_bias", self.logit_bias), ("stop_token_ids", self.stop_token_ids)):
            for token in ids or ():
                if token >= vocab_size:
                    raise RequestError(
                        f"{name} names token {token}, but this model's tokens go from 0 to {vocab_size - 1}."
                    )

    def _check_stops(self) -> None:
        if self.stop is not None and not isinstance(self.stop, str | list | tuple):
            raise RequestError(f"stop must be a text or a list of texts, not {self.stop!r}.")
        for text in self.stop_strings:
            if not isinstance(text, str) or not text:
                raise RequestError(f"stop must hold texts that are not empty, not {text!r}.")
        if self.stop_token_ids is None:
            return
        if not isinstance(self.stop_token_ids, list | tuple):
            raise RequestError(f"stop_token_ids must be a list of token ids, not {self.stop_token_ids!r}.")
        for token in self.stop_token_ids:
            _check_int("stop_token_ids", token, 0, _INT32_MAX, "hold token ids of 0 or more")

    def _check_grammar(self) -> None:
        if self.grammar is None:
            return
        if not isinstance(self.grammar, Grammar):
            raise RequestError(f"grammar must be a Grammar, not {self.grammar!r:.80}.")
        if self.ignore_eos or self.min_tokens:
            name = "ignore_eos" if self.ignore_eos else "min_tokens"
            raise RequestError(f"{name} and grammar contradict each other: a grammar says where its text ends.")

    def _check_bias(self) -> None:
        if self.logit_bias is None:
            return
        if not isinstance(self.logit_bias, dict):
            raise RequestError(f"logit_bias must map token ids to numbers, not {self.logit_bias!r}.")
        for token, bias in self.logit_bias.items():
            _check_int("logit_bias", token, 0, _INT32_MAX, "map token ids of 0 or more")
            _check_number(f"logit_bias of token {token}", bias, -100.0, 100.0, "a number from -100 to 100")


def _check_int(name: str, value: object, low: int, high: int, rule: str = "") -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        rule = rule or (
            f"be an integer of {low} or more" if high == _INT32_MAX else f"be an integer from {low} to {high}"
        )
        if high == _INT32_MAX and isinstance(value, int) and value > high:
            rule += f" and at most {high}"
        raise RequestError(f"{name} must {rule}, not {value!r}.")


def _check_number(name: str, value: object, low: float, high: float, rule: str, *, open_low: bool = False) -> None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
    if not good or (open_low and value == low) or value == math.inf:
        raise RequestError(f"{name} must be {rule}, not {value!r}.")
