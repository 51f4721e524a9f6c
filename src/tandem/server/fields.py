"""What the bodies of OpenAI's requests have in common: fields, their ranges, and how they become SamplingParams.

msgspec validates a body, and the same declarations make the OpenAPI document.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from tandem._native import MAX_LOGPROBS
from tandem.engine.sampling_params import SamplingParams
from tandem.errors import RequestError
from tandem.server.call import Call
from tandem.server.errors import ApiError, bad_request
from tandem.server.model import ServedModel
from tandem.text.grammar import Grammar

_INT32 = 2**31 - 1

Count = Annotated[int, Meta(ge=1, le=_INT32)]
Samples = Annotated[int, Meta(ge=1, le=128)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Text = Annotated[str, Meta(min_length=1)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
TokenId = Annotated[int, Meta(ge=0, le=_INT32)]
TopLogprobs = Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)]
Object = dict[str, Any]
# What a message holds beyond this is its model's template's business.
Message = Annotated[
    Object,
    Meta(
        extra_json_schema={
            "required": ["role"],
            "properties": {
                "role": {"type": "string", "enum": ["system", "user", "assistant", "tool"]},
                "content": {
                    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}, {"type": "null"}]
                },
            },
        }
    ),
]


class StreamOptions(msgspec.Struct, kw_only=True):
    """include_usage: a last chunk tells how many tokens there were. include_obfuscation: changes nothing."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class JsonSchema(msgspec.Struct, kw_only=True):
    """schema: a JSON Schema. It is always followed to the letter, strict or not."""

    name: str | None = None
    description: str | None = None
    schema: Object = {}
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What the answer must match: json_schema, regex (Rust's syntax, the whole answer) or lark (a grammar in
    llguidance's variant) by the field of the same name; json_object is any JSON object; text is anything.
    """

    type: Literal["text", "json_object", "json_schema", "regex", "lark"]
    json_schema: JsonSchema | None = None
    regex: str | None = None
    lark: str | None = None

    def grammar(self) -> Grammar | None:
        """None for text. Raises RequestError."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return Grammar(kind="json_object")
        if self.type == "json_schema":
            if self.json_schema is None:
                raise RequestError("a response_format of type json_schema needs json_schema with the schema")
            return Grammar.json_schema(self.json_schema.schema)
        return Grammar(kind=self.type, text=(self.regex if self.type == "regex" else self.lark) or "")


class SamplingFields(msgspec.Struct, kw_only=True):
    """How tokens are chosen. Names beyond OpenAI's are those of `SamplingParams`, with its meanings; what is left out
    is as the model's files ask.
    """

    model: str | None = None
    n: Samples | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=1e6)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=_INT32)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=100)] | None = None
    logit_bias: dict[str, Bias] | None = None
    stop: Text | Annotated[list[Text], Meta(max_length=64)] | None = None
    stop_token_ids: list[TokenId] | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=_INT32)] | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    response_format: ResponseFormat | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    cache_salt: str | None = None
    # Accepted for the clients that send them; they change nothing here.
    user: str | None = None
    store: bool | None = None
    metadata: Object | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @property
    def usage_wanted(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)


_PLAIN = (
    "n", "seed", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "stop", "stop_token_ids", "ignore_eos", "min_tokens", "skip_special_tokens",
    "include_stop_str_in_output",
)  # fmt: skip


def sampling_params(
    model: ServedModel, body: SamplingFields, *, most: int | None, max_tokens: int | None, **more: object
) -> SamplingParams:
    """A body's fields over the model's own defaults. most: tokens that this server lets an answer have.

    Raises ApiError.
    """
    given = {name: value for name in _PLAIN if (value := getattr(body, name)) is not None}
    given["logit_bias"] = _logit_bias(body.logit_bias)
    given["max_tokens"] = max_tokens if most is None else min(max_tokens or most, most)
    try:
        return model.sampling({**given, **more})
    except RequestError as error:
        raise bad_request(error) from None


def _logit_bias(bias: dict[str, float] | None) -> dict[int, float] | None:
    """JSON has token ids as texts."""
    if not bias:
        return None
    try:
        return {int(token): value for token, value in bias.items()}
    except ValueError:
        raise ApiError(400, "logit_bias must map token ids to numbers from -100 to 100", param="logit_bias") from None


class PromptDetails(msgspec.Struct, kw_only=True):
    cached_tokens: int = 0


class CompletionDetails(msgspec.Struct, kw_only=True):
    reasoning_tokens: int = 0


class Usage(msgspec.Struct, kw_only=True):
    """Tokens. cached_tokens: of the prompt, those that were not computed again."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails = msgspec.field(default_factory=PromptDetails)
    completion_tokens_details: CompletionDetails = msgspec.field(default_factory=CompletionDetails)


def usage_of(call: Call) -> Usage:
    return Usage(
        prompt_tokens=call.prompt_tokens,
        completion_tokens=call.completion_tokens,
        total_tokens=call.prompt_tokens + call.completion_tokens,
        prompt_tokens_details=PromptDetails(cached_tokens=call.cached_tokens),
    )
