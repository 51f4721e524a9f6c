"""`tandem run`: continues a prompt, or answers it, and streams the text to stdout."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tandem.cli.meter import Meter
from tandem.cli.options import EngineOptions, Model, SamplingOptions
from tandem.errors import DeviceError, RequestError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tandem.engine.output import CompletionChunk, CompletionOutput
    from tandem.llm import LLM
    from tandem.text.grammar import Grammar


def run(
    *,
    prompt: Annotated[
        str | None, typer.Argument(help="The text to continue; - or nothing reads stdin.", show_default=False)
    ] = None,
    model: Model = None,
    file: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Read the prompt from a file.", show_default=False)
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Answer the prompt, with the model's chat template.")] = False,
    system: Annotated[str | None, typer.Option(help="A system message, with --chat.", show_default=False)] = None,
    json_schema: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="The text is JSON that this schema describes.", show_default=False),
    ] = None,
    grammar: Annotated[
        Path | None, typer.Option(metavar="PATH", help="The text follows this grammar (Lark).", show_default=False)
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="So many samples, one after another.")] = 1,
    logprobs: Annotated[
        int | None,
        typer.Option(min=0, help="With --json: so many of the likeliest tokens, too.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Times and the seed, to stderr.")] = False,
    sampling: SamplingOptions,
    engine: EngineOptions,
) -> None:
    """Continue a prompt: text to stdout as it is generated, everything else to stderr."""
    from tandem.engine.sampling import draw_seed

    if system is not None and not chat:
        raise RequestError("--system needs --chat: only a chat template has a place for a system message")
    if logprobs is not None and not as_json:
        raise RequestError("--logprobs needs --json: plain text has no place for them")
    follow = _grammar(json_schema, grammar)
    sampling.params(n=n, logprobs=logprobs, grammar=follow)
    text = read_prompt(prompt, file)
    start = time.perf_counter()
    with engine.load(model, max_sequences=n) as llm:
        load_s = time.perf_counter() - start
        # A seed that is drawn is drawn here, so that it can be shown.
        seed = draw_seed() if sampling.seed in (None, -1) else sampling.seed
        params = sampling.params(llm.get_default_sampling_params(), n=n, logprobs=logprobs, seed=seed, grammar=follow)
        tokens = _chat_tokens(llm, text, system) if chat else llm.tokenizer.encode(text)
        meter = Meter(len(tokens))
        chunks = meter.watch(llm.stream(tokens, params))
        samples = _Samples(n, stream=not as_json)
        try:
            samples.take(chunks)
        finally:
            # Also when Ctrl-C ends it: what is there is kept.
            samples.finish()
            if as_json:
                times = {"load_s": load_s, **meter.to_json()}
                print(json.dumps(_result(llm, len(tokens), samples.outputs, times, seed), ensure_ascii=False))
            if verbose:
                print(f"load {load_s:.3f} s, {meter}, seed {seed}", file=sys.stderr)


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """The prompt from where the command line says; one newline at its end is the file's, not the prompt's."""
    if file is not None:
        if prompt is not None:
            raise RequestError("there are two prompts: give PROMPT or --file, not both")
        try:
            text = _decode(file.read_bytes(), str(file))
        except OSError as error:
            raise RequestError(f"the prompt file {file} cannot be read: {error.strerror}") from None
    elif prompt is None or prompt == "-":
        if prompt is None and sys.stdin.isatty():
            raise RequestError('there is no prompt: give one, as in tandem run "Once upon a time", or pipe it in')
        text = _decode(sys.stdin.buffer.read(), "standard input")
    else:
        text = prompt
    if not text:
        raise RequestError("the prompt is empty; give at least one character")
    return text


def _grammar(json_schema: Path | None, lark: Path | None) -> Grammar | None:
    """What the text must match, checked before anything is loaded."""
    from tandem.text.grammar import Grammar, check_grammar

    if json_schema is not None and lark is not None:
        raise RequestError("a text follows one grammar: give --json-schema or --grammar, not both")
    file = json_schema or lark
    if file is None:
        return None
    try:
        text = _decode(file.read_bytes(), str(file), "grammar")
    except OSError as error:
        raise RequestError(f"the grammar file {file} cannot be read: {error.strerror}") from None
    grammar = Grammar(kind="lark" if json_schema is None else "json_schema", text=text)
    check_grammar(grammar)
    return grammar


def _decode(data: bytes, source: str, what: str = "prompt") -> str:
    try:
        return data.decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise RequestError(f"the {what} from {source} is not UTF-8 text: byte {error.start} is no character") from None


def _chat_tokens(llm: LLM, text: str, system: str | None) -> list[int]:
    messages = [] if system is None else [{"role": "system", "content": system}]
    return llm.render([*messages, {"role": "user", "content": text}])[1]


class _Samples:
    """Collects the samples of one prompt. A single one is written to stdout as it comes, several when all are there."""

    def __init__(self, n: int, *, stream: bool) -> None:
        from tandem.engine.output import CompletionOutput

        self.outputs: list[CompletionOutput] = [CompletionOutput(index) for index in range(n)]
        self._stream = stream

    def take(self, chunks: Iterable[CompletionChunk]) -> None:
        for chunk in chunks:
            if chunk.error is not None:
                raise DeviceError(chunk.error)
            output = self.outputs[chunk.index]
            output.text += chunk.text
            output.token_ids += chunk.token_ids
            output.finish_reason, output.stop_reason = chunk.finish_reason, chunk.stop_reason
            if chunk.logprobs is not None:
                output.logprobs = [*(output.logprobs or []), *chunk.logprobs]
            if self._stream and len(self.outputs) == 1 and chunk.text:
                sys.stdout.write(chunk.text)
                sys.stdout.flush()

    def finish(self) -> None:
        """Ends the text with a newline; what an interruption left unfinished counts as cancelled."""
        for output in self.outputs:
            output.finish_reason = output.finish_reason or "cancelled"
            if self._stream:
                written = output.text if len(self.outputs) > 1 else ""
                print(written, end="" if output.text.endswith("\n") else "\n")


def _result(
    llm: LLM, prompt_tokens: int, outputs: list[CompletionOutput], times: dict[str, Any], seed: int | None
) -> dict[str, Any]:
    """What `--json` prints: the first sample at the top, all of them under `outputs` where there are several."""
    samples = [_sample(output) for output in outputs]
    completion_tokens = sum(len(output.token_ids) for output in outputs)
    return {
        **samples[0],
        **({"outputs": samples} if len(samples) > 1 else {}),
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
        "timings": times,
        "seed": seed,
        "model": llm.spec.name,
        "devices": {device.name: device.description for device in llm.devices},
    }


def _sample(output: CompletionOutput) -> dict[str, Any]:
    sample: dict[str, Any] = {
        "text": output.text,
        "token_ids": output.token_ids,
        "finish_reason": output.finish_reason,
        "stop_reason": output.stop_reason,
    }
    if output.logprobs is not None:
        # The token itself first, then the likeliest, best first.
        sample["logprobs"] = [
            [{"token_id": token, **asdict(logprob)} for token, logprob in position.items()]
            for position in output.logprobs
        ]
    return sample
