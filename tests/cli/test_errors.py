"""What a person reads when something is wrong: one line on stderr, the right exit code, never a traceback."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from commands import COMMAND, error_of, tandem

from paths import SHARED
from tandem.llm import BUNDLED_MODEL, LLM

TINY = SHARED / "data/models/TinyStories-656K"
VOCABULARY_ONLY = SHARED / "data/vocab/ggml-vocab-qwen2.gguf"


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["", "--max-tokens", 4], ["prompt is empty"]),
        (["x", "--file", "y"], ["two prompts", "--file"]),
        (["--file", "/nowhere/prompt.txt"], ["/nowhere/prompt.txt", "No such file"]),
        (["word " * 40, "--context", 16], ["43 tokens", "context of 16", "15 tokens"]),
        (["x", "--context", 4096], ["4,096", "trained for 2,048"]),
        (["x", "--memory", "1MiB"], ["needs", "1.0 MiB may be used"]),
        (["x", "--memory", "lots"], ["'lots' is not a memory size", "8GiB"]),
        (["x", "--top-p", 2], ["top_p", "at most 1", "2.0"]),
        (["x", "--temperature", -1], ["temperature", "0 or more"]),
        (["x", "--stop", ""], ["stop", "not empty"]),
        (["x", "--max-tokens", 0], ["max_tokens", "1 or more"]),
        (["x", "--max-tokens", 3, "--min-tokens", 4], ["min_tokens (4)", "max_tokens (3)"]),
        (["x", "--logprobs", 2], ["--logprobs needs --json"]),
        (["x", "--system", "y"], ["--system needs --chat"]),
        (["x", "--chat", "-m", TINY], ["no chat template"]),
        (["x", "--placement", "tpu"], ["'tpu'", "cpu"]),
        (["x", "--placement", "attn=cpu"], ["attn=DEVICE", "ffn=DEVICE"]),
        (["x", "-m", "/nowhere/model.gguf"], ["no model at", "/nowhere/model.gguf"]),
        (["x", "-m", Path(__file__).parent], ["not a model's folder", "commands.py"]),
        (["x", "-m", __file__], ["test_errors.py is not a model file"]),
        (["x", "-m", VOCABULARY_ONLY], ["holds only a vocabulary, no weights"]),
    ],
)
def test_run_refuses(arguments: list[object], fragments: list[str]) -> None:
    line = error_of(tandem("run", *arguments))
    for fragment in fragments:
        assert fragment in line


def test_truncated_model(tmp_path: Path) -> None:
    path = tmp_path / "half.gguf"
    path.write_bytes(BUNDLED_MODEL.read_bytes()[:12_000_000])
    for command in (["run", "x", "-m"], ["inspect"]):
        line = error_of(tandem(*command, path))
        assert str(path) in line
        assert "truncated" in line


def test_prompt_that_is_not_text() -> None:
    assert "standard input is not UTF-8 text: byte 3" in error_of(tandem("run", stdin=b"abc\xff"))


def test_empty_stdin() -> None:
    assert "prompt is empty" in error_of(tandem("run", stdin="\n"))


@pytest.mark.parametrize("arguments", [["run", "--frob"], ["run", "x", "--top-k", "many"], ["walk"], ["run", "x", "y"]])
def test_usage_errors_exit_with_2(arguments: list[str]) -> None:
    result = tandem(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Usage:" in result.stderr


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("first line\nsecond line")

    monkeypatch.setattr(LLM, "__init__", fail)


def test_a_fault_of_ours_is_one_line_that_says_how_to_see_more(broken: None) -> None:
    result = tandem("run", "x")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "error: unexpected ZeroDivisionError: first line second line (set TANDEM_DEBUG=1 for the traceback)"
    ]


def test_debug_shows_the_traceback(broken: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_DEBUG", "1")
    assert isinstance(tandem("run", "x").exception, ZeroDivisionError)


def process(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A shell line; `$TANDEM` in it is the command."""
    return subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, "TANDEM": shlex.join(COMMAND), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize(
    ("redirections", "stdout", "stderr", "code"),
    [
        ("2>&-", "text", "", 0),
        (">&-", "", "", 0),
        (">/dev/full", "", "error: the output cannot be written: No space left on device\n", 1),
    ],
)
def test_streams_that_are_closed_or_full(redirections: str, stdout: str, stderr: str, code: int) -> None:
    result = process(f'eval "$TANDEM" run Hello --max-tokens 2 --threads 1 {redirections}')
    assert (result.returncode, result.stderr) == (code, stderr)
    assert bool(result.stdout) == bool(stdout)


def test_closed_stdin_is_an_empty_one() -> None:
    result = process('eval "$TANDEM" run <&-')
    assert (result.returncode, result.stderr) == (2, "error: the prompt is empty; give at least one character\n")


def test_memory_that_the_system_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(LLM, "__init__", refuse)
    assert "not enough memory" in error_of(tandem("run", "x"))


def test_interrupted_while_the_commands_are_imported() -> None:
    code = (
        "import sys, importlib.abc, tandem.cli\n"
        "class Interrupting(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'tandem.cli.app': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "tandem.cli.main()\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (130, "")
