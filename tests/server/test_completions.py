"""`/v1/completions` and `/v1/chat/completions` against the offline API, token by token."""

from __future__ import annotations

import pytest
from served import Server

from tandem.llm import LLM, SamplingParams

PROMPT = "Once upon a time"
MESSAGES = [{"role": "user", "content": "Tell me a tale"}]


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(context=512, max_sequences=16, rows=64)


# top_k is what the bundled model's file asks for.
def test_completion_is_that_of_the_offline_api(server: Server, llm: LLM) -> None:
    (alone,) = llm.generate(PROMPT, SamplingParams(top_k=40, max_tokens=24, temperature=0.8, seed=7, n=2, logprobs=2))
    status, answer = server.post(
        "/v1/completions", {"prompt": PROMPT, "max_tokens": 24, "temperature": 0.8, "seed": 7, "n": 2, "logprobs": 2}
    )
    assert status == 200
    assert [choice["text"] for choice in answer["choices"]] == [sample.text for sample in alone.outputs]
    for choice, sample in zip(answer["choices"], alone.outputs, strict=True):
        expected = [logprobs[token].logprob for token, logprobs in zip(sample.token_ids, sample.logprobs, strict=True)]
        assert choice["logprobs"]["token_logprobs"] == expected
        assert "".join(choice["logprobs"]["tokens"]) == sample.text
    usage = answer["usage"]
    assert usage["prompt_tokens"] == len(alone.prompt_token_ids)
    assert usage["completion_tokens"] == sum(len(sample.token_ids) for sample in alone.outputs)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_stream_adds_up_to_the_whole(server: Server) -> None:
    body = {"prompt": [PROMPT, "The sea"], "max_tokens": 12, "seed": 3, "n": 2}
    _, whole = server.post("/v1/completions", body)
    *chunks, usage, done = server.stream("/v1/completions", {**body, "stream_options": {"include_usage": True}})
    assert done == "[DONE]"
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    texts, reasons = [""] * 4, [[] for _ in range(4)]
    for chunk in chunks:
        assert chunk["usage"] is None
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
            reasons[choice["index"]].append(choice["finish_reason"])
    assert texts == [choice["text"] for choice in whole["choices"]]
    assert all(reason[-1] == "length" and not any(reason[:-1]) for reason in reasons)


def test_chat_stream_adds_up_to_the_whole(server: Server, llm: LLM) -> None:
    body = {"messages": MESSAGES, "max_completion_tokens": 16, "temperature": 0.5, "seed": 1}
    _, whole = server.post("/v1/chat/completions", body)
    (alone,) = llm.chat(MESSAGES, SamplingParams(top_k=40, max_tokens=16, temperature=0.5, seed=1))
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": alone.outputs[0].text}
    events = list(server.stream("/v1/chat/completions", body))
    assert events.pop() == "[DONE]"
    deltas = [event["choices"][0]["delta"] for event in events]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == alone.outputs[0].text
    assert events[-1]["choices"][0]["finish_reason"] == "length" and deltas[-1] == {}


def test_chat_logprobs(server: Server) -> None:
    body = {"messages": MESSAGES, "max_tokens": 5, "seed": 1, "logprobs": True, "top_logprobs": 3}
    _, whole = server.post("/v1/chat/completions", body)
    content = whole["choices"][0]["logprobs"]["content"]
    assert len(content) == 5
    for entry in content:
        assert bytes(entry["bytes"]).decode() == entry["token"]
        top = [other["logprob"] for other in entry["top_logprobs"]]
        assert len(top) == 3 and top == sorted(top, reverse=True) and entry["logprob"] <= top[0]
    streamed = [
        position
        for event in list(server.stream("/v1/chat/completions", body))[:-1]
        if event["choices"][0]["logprobs"]
        for position in event["choices"][0]["logprobs"]["content"]
    ]
    assert streamed == content


def test_stop_strings_and_bias(server: Server, llm: LLM) -> None:
    _, free = server.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 20, "temperature": 0})
    stop = free["choices"][0]["text"][10:14]
    _, cut = server.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 20, "temperature": 0, "stop": [stop]})
    text = free["choices"][0]["text"]
    assert cut["choices"][0]["text"] == text[: text.index(stop)]
    assert cut["choices"][0]["finish_reason"] == "stop"
    token = llm.tokenizer.encode(" dog", add_special=False)[-1]
    _, forced = server.post(
        "/v1/completions", {"prompt": PROMPT, "max_tokens": 2, "temperature": 0, "logit_bias": {str(token): 100}}
    )
    assert forced["choices"][0]["text"] == llm.tokenizer.decode([token, token])


def test_echo_scores_the_prompt(server: Server, llm: LLM) -> None:
    _, answer = server.post(
        "/v1/completions", {"prompt": PROMPT, "max_tokens": 2, "temperature": 0, "echo": True, "logprobs": 0}
    )
    (alone,) = llm.generate(PROMPT, SamplingParams(top_k=40, max_tokens=2, temperature=0, prompt_logprobs=0))
    (choice,) = answer["choices"]
    assert choice["text"] == PROMPT + alone.outputs[0].text
    scored = choice["logprobs"]["token_logprobs"]
    assert scored[0] is None and len(scored) == len(alone.prompt_token_ids) + 2
    ids = alone.prompt_token_ids
    assert scored[1 : len(ids)] == [alone.prompt_logprobs[i][ids[i]].logprob for i in range(1, len(ids))]


def test_tokens_there_and_back(server: Server, llm: LLM) -> None:
    _, answer = server.post("/tokenize", {"prompt": PROMPT, "return_token_strs": True})
    assert answer["tokens"] == llm.tokenizer.encode(PROMPT) and answer["count"] == len(answer["tokens"])
    assert answer["max_model_len"] == 512
    _, text = server.post("/detokenize", {"tokens": answer["tokens"]})
    assert text["prompt"] == llm.tokenizer.decode(answer["tokens"])
    _, chat = server.post("/tokenize", {"messages": MESSAGES})
    assert chat["tokens"] == llm.render(MESSAGES)[1]
