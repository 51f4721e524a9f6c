"""`tandem chat`: a conversation in the terminal, or line by line from a pipe."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tandem.cli.conversation import Conversation
from tandem.cli.meter import Meter
from tandem.cli.options import EngineOptions, Model, SamplingOptions
from tandem.errors import DeviceError, RequestError, TandemError

if TYPE_CHECKING:
    from tandem.engine.sampling_params import SamplingParams
    from tandem.llm import LLM

SETTINGS = [field.name for field in dataclasses.fields(SamplingOptions)]
HELP = """\
/help             this list
/reset            forget the conversation, keep the system message
/system TEXT      set the system message; without TEXT, remove it
/set NAME VALUE   set a sampling parameter, such as temperature; without NAME, show them all
/save FILE        write the conversation to a file
/load FILE        continue a conversation from a file
/stats            times of the last answer, and how full the context is
/exit             leave, as Ctrl-D does; Ctrl-C stops an answer"""


def chat(
    *,
    model: Model = None,
    system: Annotated[str | None, typer.Option(help="A system message.", show_default=False)] = None,
    sampling: SamplingOptions,
    engine: EngineOptions,
) -> None:
    """Talk with a model: one line, one answer; /help lists the commands. Reads questions from a pipe, too."""
    sampling.params()
    with engine.load(model, max_sequences=1) as llm:
        llm.render([{"role": "user", "content": "?"}])  # a model without a chat template ends it here
        params = sampling.params(llm.get_default_sampling_params())
        Session(llm, params, Conversation(system)).run()


class Session:
    """Reads lines, answers questions and runs commands until the input ends.

    With a terminal on stdin an error or Ctrl-C ends only what it met; from a pipe it ends the program.
    """

    def __init__(self, llm: LLM, params: SamplingParams, conversation: Conversation) -> None:
        self._llm = llm
        self._params = params
        self._conversation = conversation
        self._context = llm.memory_plan.limits.context
        self._meter: Meter | None = None
        self._cached_before = 0
        self._interactive = sys.stdin.isatty() and sys.stdout.isatty()
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: notice(HELP),
            "/reset": self._reset,
            "/system": self._system,
            "/set": self._set,
            "/save": lambda argument: self._conversation.save(_path(argument)),
            "/load": self._load,
            "/stats": self._stats,
        }

    def run(self) -> None:
        if self._interactive:
            import readline  # noqa: F401  input() edits lines and remembers them once this is imported

            notice(f"{self._llm.spec.name}, context {self._context:,}; /help lists the commands, Ctrl-D leaves")
        while True:
            try:
                line = input(">>> " if self._interactive else "").strip()
                if line == "/exit":
                    return
                if line.startswith("/"):
                    self._command(line)
                elif line:
                    self._answer(line)
            except EOFError:
                if self._interactive:
                    notice("")
                return
            except KeyboardInterrupt:
                if not self._interactive:
                    raise
                notice("")
            except TandemError as error:
                if not self._interactive:
                    raise
                notice(f"error: {error}")

    def _command(self, line: str) -> None:
        name, _, argument = line.partition(" ")
        command = self._commands.get(name)
        if command is None:
            raise RequestError(f"{name} is no command; /help lists them")
        command(argument.strip())

    def _answer(self, question: str) -> None:
        """Streams the answer; what came until Ctrl-C stays in the conversation."""
        self._conversation.ask(question)
        text = ""
        try:
            tokens = self._prompt()
            self._cached_before = self._llm.counters.cached_tokens
            self._meter = Meter(len(tokens))
            for chunk in self._meter.watch(self._llm.stream(tokens, self._params)):
                if chunk.error is not None:
                    raise DeviceError(chunk.error)
                text += chunk.text
                sys.stdout.write(chunk.text)
                sys.stdout.flush()
        finally:
            if text:
                print(end="" if text.endswith("\n") else "\n", flush=True)
                self._conversation.answer(text)
            else:
                self._conversation.take_back()

    def _prompt(self) -> list[int]:
        """The conversation's tokens, with room left for an answer."""
        room = min(self._params.max_tokens or self._context, self._context // 4)
        tokens, dropped = self._conversation.prompt(
            lambda messages: self._llm.render(messages)[1], self._context - room
        )
        if dropped:
            notice(f"(the context of {self._context:,} is full: forgot {_turns(dropped)}, oldest first)")
        return tokens

    def _reset(self, _: str) -> None:
        self._conversation.messages.clear()

    def _system(self, text: str) -> None:
        self._conversation.system = text or None

    def _set(self, argument: str) -> None:
        import msgspec

        from tandem.engine.sampling_params import SamplingParams

        name, _, value = argument.partition(" ")
        if not name:
            notice("\n".join(f"{name:20} {getattr(self._params, name)}" for name in SETTINGS))
            return
        if name not in SETTINGS or not value:
            raise RequestError(f"/set takes a name and a value; names are {', '.join(SETTINGS)}")
        try:
            self._params = msgspec.convert(
                {**msgspec.structs.asdict(self._params), name: value.strip()}, SamplingParams, strict=False
            )
        except msgspec.ValidationError as error:
            raise RequestError(f"{name} cannot be {value!r}: {str(error).partition(' - ')[0].lower()}") from None

    def _load(self, argument: str) -> None:
        self._conversation = Conversation.load(_path(argument))
        notice(f"(continuing after {_turns(len(self._conversation.messages) // 2)})")

    def _stats(self, _: str) -> None:
        meter = self._meter
        if meter is None:
            notice("no answer yet")
            return
        meter.cached_tokens = self._llm.counters.cached_tokens - self._cached_before
        notice(str(meter))
        notice(f"context: {meter.prompt_tokens + meter.tokens:,} of {self._context:,} tokens")


def notice(text: str) -> None:
    """What is no answer goes to stderr, so that stdout holds answers only."""
    print(text, file=sys.stderr, flush=True)


def _path(argument: str) -> Path:
    if not argument:
        raise RequestError("name a file, as in /save story.json")
    return Path(argument).expanduser()


def _turns(n: int) -> str:
    return f"{n} turn{'' if n == 1 else 's'}"
