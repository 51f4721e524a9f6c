"""`tandem chat`, from a pipe and in a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from pathlib import Path

from commands import COMMAND, error_of, tandem

from paths import SHARED
from tandem.engine.sampling_params import SamplingParams
from tandem.llm import LLM

GREEDY = ("--temperature", 0, "--max-tokens", 10)


def say(*lines: str) -> str:
    return "".join(line + "\n" for line in lines)


def answer(llm: LLM, *turns: str) -> str:
    """What the model says greedily; the last of `turns` is the question."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    return llm.chat(messages, SamplingParams(temperature=0, max_tokens=10))[0].outputs[0].text


def test_each_line_is_a_turn(llm: LLM) -> None:
    first = answer(llm, "Tell me a story.")
    second = answer(llm, "Tell me a story.", first, "And then?")
    assert first != second
    result = tandem("chat", *GREEDY, stdin=say("Tell me a story.", "", "And then?"))
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == say(first, second)


def test_system_reset_and_set(llm: LLM) -> None:
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Who are you?"}]
    expected = llm.chat(messages, SamplingParams(temperature=0, max_tokens=5))[0].outputs[0].text
    lines = say("A question.", "/reset", "/system Be kind.", "/set max_tokens 5", "Who are you?", "/exit", "Not read.")
    result = tandem("chat", *GREEDY, stdin=lines)
    assert result.stdout == say(answer(llm, "A question."), expected)


def test_set_lists_and_stats_and_help_go_to_stderr() -> None:
    result = tandem("chat", *GREEDY, stdin=say("/stats", "Hello.", "/stats", "/set", "/help"))
    assert len(result.stdout.splitlines()) == 1
    for pattern in (
        r"no answer yet\nfirst token after .* s, prefill .*, decode .*\ncontext: \d+ of 2,048 tokens",
        r"max_tokens +10\ntemperature +0.0\ntop_k +40\n",
        r"/help +this list",
    ):
        assert re.search(pattern, result.stderr), result.stderr


def test_the_prefix_cache_serves_earlier_turns() -> None:
    question = "Tell me a long story about a fox and a bear who lived in the forest."
    result = tandem("chat", *GREEDY, stdin=say(question, "And then?", "/stats"))
    found = re.search(r"\((\d+) tokens, (\d+) of them cached\)", result.stderr)
    assert found, result.stderr
    assert int(found[2]) >= 16


def test_saved_conversation_goes_on_in_another_session(llm: LLM, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    first = tandem("chat", *GREEDY, stdin=say("Tell me a story.", f"/save {path}")).stdout.removesuffix("\n")
    assert [message["content"] for message in json.loads(path.read_text())["messages"]] == ["Tell me a story.", first]
    result = tandem("chat", *GREEDY, stdin=say(f"/load {path}", "And then?"))
    assert result.stdout == say(answer(llm, "Tell me a story.", first, "And then?"))
    assert "continuing after 1 turn" in result.stderr


def test_old_turns_leave_when_the_context_is_full() -> None:
    lines = [f"Tell me about the animal number {i}." for i in range(8)]
    result = tandem("chat", *GREEDY, "--context", 64, stdin=say(*lines))
    assert result.exit_code == 0
    assert "(the context of 64 is full: forgot 1 turn, oldest first)" in result.stderr


def test_errors_from_a_pipe_end_the_program(tmp_path: Path) -> None:
    for line, fragment in (
        ("/frob", "/frob is no command; /help lists them"),
        ("/set heat 3", "names are max_tokens, temperature"),
        ("/set top_k many", "top_k cannot be 'many'"),
        ("/set top_p 7", "top_p must be"),
        ("/save", "name a file"),
        (f"/load {tmp_path}/absent", "cannot be read"),
        ("word " * 100, "context of 64"),
    ):
        assert fragment in error_of(tandem("chat", "--context", 64, stdin=say(line)))


def test_models_without_a_template_are_refused() -> None:
    line = error_of(tandem("chat", "-m", SHARED / "data/models/TinyStories-656K", stdin="Hello.\n"))
    assert "no chat template" in line


class Terminal:
    """`tandem chat` in a pseudo-terminal."""

    def __init__(self, *arguments: str) -> None:
        self._screen, inside = pty.openpty()
        environment = {**os.environ, "TERM": "dumb"}
        self.process = subprocess.Popen(
            [*COMMAND, "chat", *arguments],
            stdin=inside, stdout=inside, stderr=inside, env=environment, start_new_session=True,
        )  # fmt: skip
        os.close(inside)
        self.seen = ""
        self._found = 0

    def type(self, text: str) -> None:
        os.write(self._screen, text.encode())

    def wait_for(self, text: str, seconds: float = 30) -> None:
        """Reads until `text` appears after what an earlier call found."""
        end = time.monotonic() + seconds
        while (at := self.seen.find(text, self._found)) < 0:
            ready, _, _ = select.select([self._screen], [], [], max(0, end - time.monotonic()))
            assert ready, f"{text!r} did not come after: {self.seen}"
            self.seen += os.read(self._screen, 4096).decode(errors="replace")
        self._found = at + len(text)

    def close(self) -> int:
        try:
            while data := os.read(self._screen, 4096):
                self.seen += data.decode(errors="replace")
        except OSError:  # the other side is closed
            pass
        os.close(self._screen)
        return self.process.wait(timeout=30)


def test_ctrl_c_stops_an_answer_and_ctrl_d_leaves() -> None:
    terminal = Terminal("--ignore-eos", "--max-tokens", "1500", "--seed", "1")
    terminal.wait_for(">>> ")
    assert "/help lists the commands" in terminal.seen
    terminal.type("Tell me a story.\n")
    terminal.wait_for("story.\r\n")
    terminal.wait_for(" ")  # the answer has begun
    os.killpg(terminal.process.pid, signal.SIGINT)
    terminal.wait_for(">>> ")
    terminal.type("/frob\n")
    terminal.wait_for("error: /frob is no command")
    terminal.wait_for(">>> ")
    terminal.type("\x04")
    assert terminal.close() == 0
    assert "Traceback" not in terminal.seen
