"""`tandem run` on the bundled model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from commands import COMMAND, tandem

from tandem.engine.sampling_params import SamplingParams
from tandem.llm import LLM

PROMPT = "Once upon a time"
GREEDY = ("--temperature", 0, "--max-tokens", 12)


@pytest.fixture(scope="module")
def greedy_text(llm: LLM) -> str:
    return llm.generate(PROMPT, SamplingParams(temperature=0, max_tokens=12))[0].outputs[0].text


def test_text_is_the_models_and_ends_with_a_newline(greedy_text: str) -> None:
    result = tandem("run", PROMPT, *GREEDY)
    assert (result.exit_code, result.stdout, result.stderr) == (0, greedy_text + "\n", "")


@pytest.mark.parametrize("arguments", [(), ("-",)])
def test_prompt_from_stdin_without_its_last_newline(arguments: tuple[str, ...], greedy_text: str) -> None:
    assert tandem("run", *arguments, *GREEDY, stdin=PROMPT + "\n").stdout == greedy_text + "\n"


def test_prompt_from_a_file(tmp_path: Path, greedy_text: str) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text(PROMPT + "\n")
    assert tandem("run", "--file", path, *GREEDY).stdout == greedy_text + "\n"


def test_json_has_everything_and_its_seed_repeats_the_text(llm: LLM) -> None:
    # So hot that two seeds do not tell the same story by chance.
    hot = ("run", PROMPT, "--json", "--max-tokens", 20, "--temperature", 2)
    first = json.loads(tandem(*hot).stdout)
    assert first["text"] == llm.tokenizer.decode(first["token_ids"])
    assert first["finish_reason"] == "length"
    assert first["usage"] == {"prompt_tokens": 5, "completion_tokens": 20, "total_tokens": 25}
    assert first["model"] == llm.spec.name
    assert set(first["devices"]) == {"cpu"}
    assert all(value > 0 for value in first["timings"].values())
    assert set(first["timings"]) == {
        "load_s", "time_to_first_token_s", "prefill_tokens_per_s", "decode_tokens_per_s",
    }  # fmt: skip
    again = json.loads(tandem(*hot, "--seed", first["seed"]).stdout)
    other = json.loads(tandem(*hot, "--seed", first["seed"] + 1).stdout)
    assert again["token_ids"] == first["token_ids"] != other["token_ids"]


def test_several_samples() -> None:
    arguments = ("run", PROMPT, "--n", 3, "--seed", 1, "--max-tokens", 8, "--temperature", 1)
    result = json.loads(tandem(*arguments, "--json").stdout)
    texts = [output["text"] for output in result["outputs"]]
    assert len(set(texts)) == 3
    assert texts[0] == result["text"]
    assert result["usage"]["completion_tokens"] == 24
    assert tandem(*arguments).stdout == "".join(text + "\n" for text in texts)


def test_logprobs_name_the_token_first_then_the_likeliest() -> None:
    result = json.loads(tandem("run", PROMPT, "--json", "--logprobs", 2, *GREEDY).stdout)
    assert len(result["logprobs"]) == len(result["token_ids"])
    for token, entries in zip(result["token_ids"], result["logprobs"], strict=True):
        assert [entry["rank"] for entry in entries] == [1, 2]
        assert entries[0]["token_id"] == token
        assert entries[1]["logprob"] <= entries[0]["logprob"] <= 0


def test_chat_answers_in_the_models_template(llm: LLM) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tell me a story."}]
    expected = llm.chat(messages, SamplingParams(temperature=0, max_tokens=12))[0]
    arguments = ("run", "--chat", "--system", "Be brief.", "Tell me a story.", *GREEDY, "--json")
    result = json.loads(tandem(*arguments).stdout)
    assert result["token_ids"] == expected.outputs[0].token_ids
    assert result["usage"]["prompt_tokens"] == len(expected.prompt_token_ids)


def test_stop_ends_the_text(greedy_text: str) -> None:
    word = greedy_text.split()[3]
    result = json.loads(tandem("run", PROMPT, "--stop", "§", "--stop", word, *GREEDY, "--json").stdout)
    assert result["text"] == greedy_text[: greedy_text.index(word)]
    assert (result["finish_reason"], result["stop_reason"]) == ("stop", word)


def test_sampling_defaults_are_the_models_own(llm: LLM) -> None:
    """The bundled model asks for temperature 0.6 and top-k 40; a flag overrides one of them and leaves the other."""
    for flags, temperature in ((), 0.6), (("--temperature", 1.4), 1.4):
        params = SamplingParams(seed=3, max_tokens=30, temperature=temperature, top_k=40)
        expected = llm.generate(PROMPT, params)[0].outputs[0].token_ids
        result = json.loads(tandem("run", PROMPT, "--seed", 3, "--max-tokens", 30, *flags, "--json").stdout)
        assert result["token_ids"] == expected


def test_min_tokens_may_exceed_the_usual_length() -> None:
    result = json.loads(tandem("run", PROMPT, "--min-tokens", 260, "--json").stdout)
    assert len(result["token_ids"]) == 260


def test_the_context_ends_the_text() -> None:
    result = json.loads(tandem("run", PROMPT, "--context", 16, "--ignore-eos", "--json").stdout)
    assert result["usage"]["total_tokens"] == 16
    assert result["finish_reason"] == "length"


def test_verbose_speaks_on_stderr_only(greedy_text: str) -> None:
    result = tandem("run", PROMPT, *GREEDY, "--seed", 5, "--verbose")
    assert result.stdout == greedy_text + "\n"
    for part in ("load ", "first token after ", "prefill ", "decode ", "seed 5"):
        assert part in result.stderr


def test_other_placements_give_text() -> None:
    placed = json.loads(tandem("run", PROMPT, "--max-tokens", 2, "--placement", "attn=cpu,ffn=ref", "--json").stdout)
    assert set(placed["devices"]) == {"cpu", "ref"}
    assert placed["finish_reason"] == "length"


LONG = [*COMMAND, "run", PROMPT, "--ignore-eos", "--max-tokens", "2000"]


def test_ctrl_c_keeps_the_text_and_exits_with_130() -> None:
    # A shell starts what runs in the background with SIGINT ignored, and children inherit that: undo it here.
    with subprocess.Popen(
        LONG,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        start = os.read(process.stdout.fileno(), 1)  # text comes before the end of it all
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == b""
    assert len(start + rest) > 1
    assert rest.endswith(b"\n")


def test_a_reader_that_leaves_ends_it_quietly() -> None:
    with subprocess.Popen(LONG, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        os.read(process.stdout.fileno(), 1)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=30) == 0


def test_text_that_a_grammar_describes(tmp_path: Path) -> None:
    schema, lark = tmp_path / "schema.json", tmp_path / "grammar.lark"
    schema.write_text('{"type": "object", "properties": {"age": {"enum": [7, 8]}}, "required": ["age"]}')
    lark.write_text('start: "red" | "green"\n')
    result = tandem("run", PROMPT, "--json-schema", schema, "--seed", 1)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["age"] in (7, 8)
    assert tandem("run", PROMPT, "--grammar", lark).stdout.strip() in ("red", "green")


def test_a_grammar_that_cannot_be_is_refused(tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text('{"type": "objct"}')
    for arguments, says in (
        (("--json-schema", bad), "Invalid type: objct"),
        (("--grammar", tmp_path / "none"), "cannot be read: No such file"),
        (("--grammar", bad, "--json-schema", bad), "not both"),
    ):
        result = tandem("run", PROMPT, *arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert says in result.stderr
