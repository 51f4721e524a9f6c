"""The offline Python API, with vLLM's names.

with LLM() as llm:
    for output in llm.generate(["Once upon a time", "The sea"], SamplingParams(max_tokens=64)):
        print(output.outputs[0].text)
"""

from __future__ import annotations

import operator
import os
import queue
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from msgspec.structs import replace

from tandem.devices.base import DeviceInfo
from tandem.devices.spec import KVDtype
from tandem.engine.build import EngineConfig, plan_engine
from tandem.engine.loop import EngineLoop
from tandem.engine.output import CompletionChunk, EmbeddingOutput, RequestOutput, RequestText
from tandem.engine.pooling import PoolingKind
from tandem.engine.prompt import Message, Prompt, PromptEncoder
from tandem.engine.request import Delta, Request
from tandem.engine.sampling_params import SamplingParams
from tandem.engine.step import Counters
from tandem.errors import ModelFileError, RequestError
from tandem.memory.plan import MemoryPlan
from tandem.memory.system import counted
from tandem.models.generation import sampling_defaults
from tandem.models.tokenizer import open_tokenizer
from tandem.text.chat import check_messages
from tandem.weights.open import open_checkpoint

_Params = TypeVar("_Params", SamplingParams, SamplingParams | Sequence[SamplingParams])

BUNDLED_MODEL = Path(__file__).parent / "data" / "tandem-stories-22m.gguf"


class LLM:
    """A model, loaded and ready. Safe to use from several threads; close it, use it in a `with` statement, or drop it.

    model: a GGUF file, a folder with safetensors, or `hf:owner/name[/file]`; None is the bundled story model. The other
    arguments are those of `EngineConfig`. Raises ModelFileError, UnsupportedModelError, MemoryPlanError or DeviceError,
    each with one clear sentence.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        placement: str = "auto",
        threads: int | None = None,
        max_sequences: int = 32,
        rows: int = 256,
        context: int | None = None,
        memory: int | str | None = None,
        kv_dtype: KVDtype = "f16",
        prefix_cache: bool = True,
        deterministic: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        config = EngineConfig(
            placement=placement,
            threads=threads,
            max_sequences=max_sequences,
            rows=rows,
            context=context,
            memory=memory,
            kv_dtype=kv_dtype,
            prefix_cache=prefix_cache,
            deterministic=deterministic,
        )
        if model is not None and not isinstance(model, str | os.PathLike):
            raise ModelFileError(f"model must be a path or a name, such as hf:owner/name, not {model!r:.80}")
        checkpoint = open_checkpoint(BUNDLED_MODEL if model is None else model)
        self.tokenizer = open_tokenizer(checkpoint)
        self._sampling_defaults = sampling_defaults(checkpoint)
        planned = plan_engine(checkpoint, replace(config, rows=max(rows, max_sequences)))
        self.spec = planned.spec
        self.memory_plan: MemoryPlan = planned.plan
        self.devices: tuple[DeviceInfo, ...] = tuple(device.info for device in planned.devices.values())
        try:
            self._engine = planned.load(self.tokenizer.eos_ids, tokenizer=self.tokenizer, progress=progress)
        except BaseException:
            planned.close()
            raise
        self._loop = EngineLoop(self._engine)
        self._prompts = PromptEncoder(self.tokenizer, planned.plan.limits.context)
        self._ids = count(1)
        # Also when this object is dropped, and when the interpreter ends: then a step must not run any more.
        self._close = weakref.finalize(self, self._loop.close)

    @property
    def counters(self) -> Counters:
        """The engine's totals so far."""
        return self._engine.counters

    def get_default_sampling_params(self) -> SamplingParams:
        """What the model's files ask for (`generation_config.json`, GGUF's `general.sampling.*`), else the defaults."""
        return SamplingParams(**self._sampling_defaults)  # type: ignore[arg-type]

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        priority: Sequence[int] | None = None,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """Continues each prompt; results stand in the order of the prompts.

        prompts: one text or list of token ids, or a list of them. sampling_params: one for all, or one per prompt; None
        takes the model's own, `get_default_sampling_params`. priority: one per prompt, lower goes first. progress:
        shows a bar on stderr.
        A request that is not acceptable does not stop the others: its output has `error` set and no text.
        """
        items: list[Prompt] = [prompts] if _is_one(prompts) else list(prompts)  # type: ignore[arg-type,list-item]
        return self._run(items, sampling_params, priority, progress, self._prompts.encode)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        progress: bool = False,
        **template_kwargs: Any,
    ) -> list[RequestOutput]:
        """Answers one conversation or a list of them, rendered with the model's chat template; otherwise `generate`."""
        check_messages(messages)
        first = messages[0] if messages else None
        one = first is None or isinstance(first, Mapping)
        conversations: list[Any] = [messages] if one else list(messages)

        def encode(conversation: Any) -> tuple[str, list[int]]:
            return self.render(
                conversation, tools=tools, add_generation_prompt=add_generation_prompt, **template_kwargs
            )

        return self._run(conversations, sampling_params, None, progress, encode)

    def embed(
        self, prompts: Prompt | Sequence[Prompt], *, pooling: PoolingKind = "mean", normalize: bool = True
    ) -> list[EmbeddingOutput]:
        """Embeds each prompt: its hidden states behind the final norm, pooled. Results stand in the prompts' order.

        pooling: the mean over the prompt's tokens, or the last token's. normalize: to length 1.
        A prompt that is not acceptable does not stop the others: its output has `error` set.
        """
        items: list[Prompt] = [prompts] if _is_one(prompts) else list(prompts)  # type: ignore[arg-type,list-item]
        deltas: queue.SimpleQueue[Delta] = queue.SimpleQueue()
        outputs: list[EmbeddingOutput] = []
        running: dict[str, EmbeddingOutput] = {}
        try:
            for item in items:
                output = EmbeddingOutput(str(next(self._ids)), item if isinstance(item, str) else None, [])
                outputs.append(output)
                try:
                    output.prompt_token_ids = self._prompts.encode(item)[1]
                    params = SamplingParams()
                    request = Request(
                        id=output.request_id, prompt=output.prompt_token_ids, params=params, pooling=pooling
                    )
                    self._loop.submit(request, deltas.put)
                except RequestError as error:
                    output.error = str(error)
                else:
                    running[output.request_id] = output
            while running:
                delta = deltas.get()
                if (waiting := running.pop(delta.request_id, None)) is not None:
                    waiting.take(delta, normalize=normalize)
        finally:
            for request_id in running:
                self._loop.cancel(request_id)
        return outputs

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **template_kwargs: Any,
    ) -> tuple[str, list[int]]:
        """A conversation as text and token ids. Raises RequestError where the model has no chat template."""
        return self._prompts.render(
            messages, tools=tools, add_generation_prompt=add_generation_prompt, **template_kwargs
        )

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> Iterator[CompletionChunk]:
        """Continues one prompt, chunk by chunk as it is generated. Generation begins at once; leaving the loop early,
        closing the iterator or dropping it cancels the request. sampling_params: None takes the model's own.

        Raises RequestError at once for a request that is not acceptable.
        """
        request, text = self._request(*self._prompts.encode(prompt), self._params(sampling_params))
        chunks = self._chunks(request, text)
        next(chunks)  # submits: only a generator that has begun runs its `finally` when it is closed or dropped
        return chunks

    def _chunks(self, request: Request, text: RequestText) -> Iterator[CompletionChunk]:
        """First an empty chunk, once the request is submitted."""
        deltas: queue.SimpleQueue[Delta] = queue.SimpleQueue()
        self._loop.submit(request, deltas.put)
        try:
            yield CompletionChunk(0, "", [])
            while not text.output.finished:
                self._loop.check_process()
                chunk = self._push(text, deltas.get())
                if chunk is not None:
                    yield chunk
        finally:
            if not text.output.finished:
                self._loop.cancel(request.id)

    async def agenerate(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None
    ) -> AsyncIterator[CompletionChunk]:
        """`stream` for asyncio, which begins when it is first awaited; any number of them run at once. Cancelling the
        task cancels the request, and so does `aclose`, which a loop that may be left early should call.
        """
        import asyncio  # a third of the import time of all this, and most callers need none of it

        request, text = self._request(*self._prompts.encode(prompt), self._params(sampling_params))
        loop = asyncio.get_running_loop()
        deltas: asyncio.Queue[Delta] = asyncio.Queue()

        def deliver(delta: Delta) -> None:
            with suppress(RuntimeError):  # the event loop has been closed since: nobody reads any more
                loop.call_soon_threadsafe(deltas.put_nowait, delta)

        self._loop.submit(request, deliver)
        try:
            while not text.output.finished:
                chunk = self._push(text, await deltas.get())
                if chunk is not None:
                    yield chunk
        finally:
            if not text.output.finished:
                self._loop.cancel(request.id)

    def close(self) -> None:
        """Cancels what is running and releases threads and memory. The object cannot be used afterwards."""
        self._close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _params(self, given: _Params | None) -> _Params | SamplingParams:
        return self.get_default_sampling_params() if given is None else given

    def _request(
        self, prompt: str | None, tokens: list[int], params: SamplingParams, priority: int = 0
    ) -> tuple[Request, RequestText]:
        request = Request(id=str(next(self._ids)), prompt=tokens, params=params, priority=priority)
        self._engine.check(request)
        return request, RequestText(request, self.tokenizer, prompt)

    def _push(self, text: RequestText, delta: Delta) -> CompletionChunk | None:
        chunk = text.push(delta)
        if chunk is not None and chunk.finish_reason is not None and delta.finish_reason is None:
            self._loop.cancel(delta.request_id, delta.index)
        return chunk

    def _run(
        self,
        items: Sequence[Any],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        priority: Sequence[int] | None,
        progress: bool,
        encode: Callable[[Any], tuple[str | None, list[int]]],
    ) -> list[RequestOutput]:
        params = _one_each("sampling_params", self._params(sampling_params), len(items))
        for each in params:
            if not isinstance(each, SamplingParams):
                raise RequestError(f"sampling_params must be SamplingParams, or a list of them, not {each!r:.80}")
        priorities = [0] * len(items) if priority is None else _one_each("priority", priority, len(items))
        deltas: queue.SimpleQueue[Delta] = queue.SimpleQueue()
        outputs: list[RequestOutput] = []
        running: dict[str, RequestText] = {}
        try:
            with _progress_bar(len(items)) if progress else nullcontext(_no_progress) as report:
                for item, each, rank in zip(items, params, priorities, strict=True):
                    prompt: str | None = item if isinstance(item, str) else None
                    tokens: list[int] = []
                    try:
                        prompt, tokens = encode(item)
                        request, text = self._request(prompt, tokens, each, rank)
                        self._loop.submit(request, deltas.put)
                    except RequestError as error:
                        request_id = str(next(self._ids))
                        outputs.append(RequestOutput(request_id, prompt, tokens, finished=True, error=str(error)))
                    else:
                        running[request.id] = text
                        outputs.append(text.output)
                generated = 0
                while running:
                    report(len(items) - len(running), generated)
                    delta = deltas.get()
                    generated += len(delta.tokens)
                    if (waiting := running.get(delta.request_id)) is not None:
                        self._push(waiting, delta)
                        if waiting.output.finished:
                            del running[delta.request_id]
                report(len(items), generated)
        finally:
            for request_id in running:
                self._loop.cancel(request_id)
        return outputs


def _is_one(prompts: Prompt | Sequence[Prompt]) -> bool:
    """Whether this is one prompt: a text, or a list of token ids."""
    if isinstance(prompts, bytes | bytearray | Mapping) or not hasattr(prompts, "__getitem__"):
        raise RequestError(
            f"prompts must be a text, a list of token ids, or a list of such prompts, not {type(prompts).__name__}"
        )
    if isinstance(prompts, str) or len(prompts) == 0:
        return isinstance(prompts, str)
    try:
        operator.index(prompts[0])  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def _one_each(name: str, value: Any, n: int) -> list[Any]:
    if not isinstance(value, Sequence):
        return [value] * n
    if len(value) != n:
        raise RequestError(f"{name} has {len(value)} entries for {counted(n, 'prompt')}; give one for all, or one each")
    return list(value)


def _no_progress(finished: int, tokens: int) -> None:
    pass


@contextmanager
def _progress_bar(total: int) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr; yields report(finished prompts, generated tokens)."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} prompts"),
        BarColumn(),
        TextColumn("{task.fields[tokens]:,} tokens"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total, tokens=0)
        yield lambda finished, tokens: bar.update(task, completed=finished, tokens=tokens)
