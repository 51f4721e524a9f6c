"""A call: what one HTTP request asks of a model, one or several engine requests, and the text that they bring."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from tandem.engine.output import CompletionChunk, RequestOutput, RequestText
from tandem.engine.pooling import PoolingKind
from tandem.engine.request import Delta, Request
from tandem.engine.sampling_params import SamplingParams
from tandem.server.errors import ApiError

if TYPE_CHECKING:
    from tandem.server.metrics import Metrics
    from tandem.server.model import ServedModel

# A prompt's text, if it has one, and its token ids.
Encoded = tuple[str | None, list[int]]


class Generation:
    """One engine request of a call, with its text."""

    __slots__ = ("accepted", "call", "embedding", "number", "request", "text")

    def __init__(self, call: Call, number: int, request: Request, text: RequestText) -> None:
        self.call = call
        self.number = number
        self.request = request
        self.text = text
        self.accepted = False
        # Of a prompt that is embedded: float32, little-endian.
        self.embedding = b""

    @property
    def samples(self) -> int:
        return self.request.params.n


class Call:
    """Submits its requests at `start`, then yields their chunks, all that one step brought at once. Whatever happens,
    the caller closes it: what still runs then is cancelled.
    """

    def __init__(
        self,
        model: ServedModel,
        prompts: Sequence[Encoded],
        params: SamplingParams,
        metrics: Metrics,
        *,
        cache_salt: str = "",
        pooling: PoolingKind | None = None,
    ) -> None:
        """pooling: the prompts are embedded, not continued."""
        self.id = secrets.token_hex(12)
        self.model = model
        self.params = params
        self.began = time.perf_counter()
        self.deadline = math.inf
        self._metrics = metrics
        self._last_token: float | None = None
        self._closed = False
        self.generations = []
        for number, (prompt, tokens) in enumerate(prompts):
            request = Request(
                id=f"{self.id}-{number}", prompt=tokens, params=params, cache_salt=cache_salt, pooling=pooling
            )
            self.generations.append(Generation(self, number, request, RequestText(request, model.tokenizer, prompt)))
        self._unfinished = len(self.generations)
        self._chunks: list[tuple[int, CompletionChunk]] = []
        self._failure: ApiError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def outputs(self) -> list[RequestOutput]:
        """What has come so far, one for each prompt."""
        return [generation.text.output for generation in self.generations]

    @property
    def prompt_tokens(self) -> int:
        return sum(len(generation.request.prompt) for generation in self.generations)

    @property
    def completion_tokens(self) -> int:
        return sum(len(sample.token_ids) for output in self.outputs for sample in output.outputs)

    @property
    def cached_tokens(self) -> int:
        return sum(output.num_cached_tokens for output in self.outputs)

    async def start(self, timeout: float) -> None:
        """Submits. Returns once the engine has accepted everything; raises ApiError where it does not."""
        limit = f"the request took longer than {timeout:g} s, which is this server's limit"
        loop = asyncio.get_running_loop()
        self.deadline = loop.time() + timeout
        self._timer = loop.call_at(self.deadline, self.fail, ApiError(504, limit, code="timeout"))
        try:
            self.model.submit(self)
        except ApiError as error:
            self._failure = error
            raise
        while not all(generation.accepted for generation in self.generations):
            await self._wait()

    async def chunks(self) -> AsyncIterator[list[tuple[int, CompletionChunk]]]:
        """(number of the prompt, chunk), until every sample has ended. Raises ApiError when the call fails."""
        while True:
            if self._chunks:
                chunks, self._chunks = self._chunks, []
                yield chunks
            elif self._unfinished:
                await self._wait()
            else:
                return

    async def finish(self) -> list[RequestOutput]:
        """Waits for the end; the results in the order of the prompts."""
        async for _ in self.chunks():
            pass
        return self.outputs

    def deliver(self, generation: Generation, delta: Delta) -> CompletionChunk | None:
        """Called by the model with each delta of a request that has not finished."""
        if delta.embedding is not None:
            generation.embedding = delta.embedding
        chunk = generation.text.push(delta)
        if chunk is None:
            return None
        if chunk.error is not None:
            self.fail(ApiError(500, chunk.error, code="engine_error"))
            return chunk
        if generation.text.output.finished:
            self._unfinished -= 1
        if not self._chunks:
            self._time_token()
        self._chunks.append((generation.number, chunk))
        self.wake()
        return chunk

    def _time_token(self) -> None:
        now, name = time.perf_counter(), self.model.name
        if self._last_token is None:
            self._metrics.first_token.labels(name).observe(now - self.began)
        else:
            self._metrics.between_tokens.labels(name).observe(now - self._last_token)
        self._last_token = now

    def fail(self, error: ApiError) -> None:
        """Ends the call with an error: what runs is cancelled, and whoever waits is told."""
        if self._failure is None and self._unfinished:
            self._failure = error
            self.model.withdraw(self)
            self.wake()

    def close(self) -> None:
        """Cancels what has not finished, and counts the call."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self.model.withdraw(self)
        metrics, name = self._metrics, self.model.name
        metrics.calls.labels(name, self._outcome()).inc()
        metrics.prompt_tokens.labels(name).inc(self.prompt_tokens)
        metrics.tokens.labels(name).inc(self.completion_tokens)
        metrics.latency.labels(name).observe(time.perf_counter() - self.began)

    def _outcome(self) -> str:
        if self._failure is None:
            return "cancelled" if self._unfinished else "finished"
        return {499: "cancelled", 504: "timeout", 429: "refused"}.get(
            self._failure.status, "refused" if self._failure.status < 500 else "failed"
        )

    def facts(self) -> dict[str, object]:
        """For the log."""
        return {
            "model": self.model.name,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            **({} if self._failure is None else {"error": self._failure.message}),
        }

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        if self._failure is None:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._failure is not None:
            raise self._failure
