"""The official client, in all the ways that people use it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import numpy as np
import pytest
from pydantic import BaseModel, Field
from served import Server

from tandem.llm import LLM

openai = pytest.importorskip("openai")
pytestmark = pytest.mark.server

MODEL = "tandem-stories-22m"
MESSAGES = [{"role": "user", "content": "What is the weather in Paris?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 12},
                "days": {"type": "integer", "maximum": 9, "minimum": 0},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}  # fmt: skip


class Hero(BaseModel):
    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=99)
    kind: bool


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0) as made:
        yield made


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_completion_tokens=12, seed=1, n=2)
    assert [choice.finish_reason for choice in answer.choices] == ["length", "length"]
    assert answer.usage.completion_tokens == 24
    stream = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_completion_tokens=12, seed=1, n=2, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    texts, usage = ["", ""], None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in answer.choices]
    assert usage.total_tokens == answer.usage.total_tokens


def test_async_streams(server: Server) -> None:
    async def one(client: openai.AsyncOpenAI, seed: int) -> str:
        stream = await client.chat.completions.create(
            model=MODEL, messages=MESSAGES, max_tokens=16, seed=seed, stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def many() -> None:
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0) as client:
            together = await asyncio.gather(*(one(client, seed) for seed in range(16)))
            assert [await one(client, seed) for seed in range(4)] == together[:4]

    asyncio.run(many())


def test_completions_and_models(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=["Once", "The sea"], max_tokens=4, echo=True)
    assert [choice.text[:4] for choice in answer.choices] == ["Once", "The "]
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "tandem"


def test_errors_are_the_client_s_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model"):
        client.chat.completions.create(model="gpt-4", messages=MESSAGES)
    with pytest.raises(openai.UnprocessableEntityError, match="temperature"):
        client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=-1)
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=MODEL, prompt=[5] * 600)
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_tools(client: openai.OpenAI, choice: object) -> None:
    asked = {
        "model": MODEL, "messages": MESSAGES, "tools": [WEATHER], "tool_choice": choice, "max_tokens": 64, "seed": 3,
        "parallel_tool_calls": False,
    }  # fmt: skip
    answer = client.chat.completions.create(**asked).choices[0]
    assert answer.finish_reason == "tool_calls" and answer.message.content is None
    (call,) = answer.message.tool_calls
    assert call.function.name == "weather" and call.id.startswith("call_")
    arguments = json.loads(call.function.arguments)
    assert set(arguments) == {"city", "days"} and 0 <= arguments["days"] <= 9
    name, streamed = "", ""
    for chunk in client.chat.completions.create(**asked, stream=True):
        for piece in chunk.choices[0].delta.tool_calls or []:
            name += piece.function.name or ""
            streamed += piece.function.arguments or ""
    assert name == "weather" and json.loads(streamed) == arguments
    # The call and its result go on as a conversation.
    followed = client.chat.completions.create(
        model=MODEL, max_tokens=4, tools=[WEATHER], tool_choice="none",
        messages=[*MESSAGES, answer.message, {"role": "tool", "tool_call_id": call.id, "content": "rain"}],
    )  # fmt: skip
    assert followed.choices[0].message.tool_calls is None


def test_parse(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model=MODEL, messages=[{"role": "user", "content": "A hero"}], response_format=Hero, max_tokens=64, seed=2
    )
    hero = answer.choices[0].message.parsed
    assert isinstance(hero, Hero) and len(hero.name) <= 12


def test_other_formats(client: openai.OpenAI) -> None:
    asked = {"model": MODEL, "messages": MESSAGES, "max_tokens": 24, "seed": 4}
    answer = client.chat.completions.create(
        **asked, extra_body={"response_format": {"type": "regex", "regex": "(yes|no), [a-z]{2,4}"}}
    )
    assert answer.choices[0].message.content.startswith(("yes, ", "no, "))
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**asked, extra_body={"response_format": {"type": "regex", "regex": "("}})
    assert caught.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**asked, tools=[WEATHER, WEATHER])
    assert caught.value.param == "tools"


def test_responses(client: openai.OpenAI) -> None:
    asked = {"model": MODEL, "instructions": "Be brief", "input": "A tale", "max_output_tokens": 12}
    answer = client.responses.create(**asked, temperature=0)
    assert answer.status == "incomplete" and answer.output_text
    assert answer.usage.output_tokens == 12
    with client.responses.stream(**asked, temperature=0) as stream:
        events = list(stream)
    assert events[0].type == "response.created" and events[-1].type == "response.incomplete"
    assert events[-1].response.output_text == answer.output_text
    with pytest.raises(openai.BadRequestError, match="nothing is stored"):
        client.responses.create(**asked, store=True)


def test_responses_with_tools(client: openai.OpenAI) -> None:
    tool = {"type": "function", **WEATHER["function"]}
    # A small model may put blanks wherever JSON lets it: so seeded, and with room for them.
    written = {"model": MODEL, "max_output_tokens": 160, "extra_body": {"seed": 3}}
    asked = {**written, "input": "Rain?", "tools": [tool], "tool_choice": "required", "parallel_tool_calls": False}
    (call,) = client.responses.create(**asked).output
    assert call.type == "function_call" and set(json.loads(call.arguments)) == {"city", "days"}
    followed = client.responses.create(
        model=MODEL, max_output_tokens=4,
        input=[
            {"role": "user", "content": "Rain?"}, call.to_dict(),
            {"type": "function_call_output", "call_id": call.call_id, "output": "yes"},
        ],
    )  # fmt: skip
    assert followed.output[0].type == "message"
    parsed = client.responses.parse(**written, input="A hero", text_format=Hero)
    assert isinstance(parsed.output_parsed, Hero)


def test_embeddings(client: openai.OpenAI) -> None:
    texts = ["Once upon a time", "The sea"]
    with LLM(context=512) as llm:
        alone = llm.embed(texts, pooling="last")
    answer = client.embeddings.create(model=MODEL, input=texts, extra_body={"pooling": "last"})
    for entry, expected in zip(answer.data, alone, strict=True):
        assert np.abs(np.array(entry.embedding) - expected.embedding).max() < 1e-6
    assert answer.usage.prompt_tokens == sum(len(output.prompt_token_ids) for output in alone)
    short = client.embeddings.create(model=MODEL, input="Once", dimensions=8, encoding_format="float").data[0].embedding
    assert len(short) == 8 and abs(np.linalg.norm(short) - 1) < 1e-6
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        client.embeddings.create(model=MODEL, input="Once", dimensions=10**6)
