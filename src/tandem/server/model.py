"""A model that is served: its engine's process kept alive, its tokenizer, and the calls that run on it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Literal

from tandem.engine.build import EngineConfig
from tandem.engine.prompt import PromptEncoder
from tandem.engine.sampling_params import SamplingParams
from tandem.errors import MemoryPlanError, TandemError
from tandem.models.generation import sampling_defaults
from tandem.models.open import model_spec
from tandem.models.tokenizer import open_tokenizer
from tandem.server import frames
from tandem.server.call import Call, Generation
from tandem.server.errors import ApiError, bad_request
from tandem.server.process import EngineDied, EngineProcess
from tandem.text.tokenizer import Tokenizer
from tandem.weights.open import open_checkpoint

_log = logging.getLogger("tandem.server")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 30.0
# An engine that has lived so long did not die of being started.
_HEALTHY_SECONDS = 30.0

# unloaded: nobody has asked for it, or its memory was needed. restarting: the engine died and is being started again.
State = Literal["unloaded", "loading", "ready", "restarting", "failed", "closed"]


class ServedModel:
    """One model of the server. All of it runs on the event loop."""

    def __init__(
        self,
        name: str,
        source: str,
        config: EngineConfig,
        *,
        max_queue: int,
        grant: Callable[[ServedModel, int], Awaitable[None]],
        evict: Callable[[ServedModel], Awaitable[bool]],
    ) -> None:
        """source: what `open_checkpoint` takes. grant: awaited with the host bytes that the engine will take.
        evict: unloads another model where the machine's memory does not suffice; False if there is none to unload.
        """
        self.name = name
        self.source = source
        self.created = int(time.time())
        self.last_used = time.monotonic()
        self.state: State = "unloaded"
        self.progress = 0.0
        self.restarts = 0
        self.architecture = ""
        # Totals over all lives of the engine; seconds by where a step spent them.
        self.rows = 0
        self.busy = {"host": 0.0, "devices": 0.0, "sampler": 0.0}
        self.host_bytes = 0
        self.ready: frames.Ready | None = None
        self.stats: frames.Stats | None = None
        self.failure: TandemError | ApiError | None = None
        self.watchers: set[Callable[[frames.Stepped], None]] = set()
        self._config = config
        self._max_queue = max_queue
        self._grant = grant
        self._evict = evict
        self._tokenizer: Tokenizer | None = None
        self._prompts: PromptEncoder | None = None
        self._defaults: dict[str, float | int] = {}
        self._process: EngineProcess | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._live: dict[str, Generation] = {}
        self._waiting = 0

    @property
    def tokenizer(self) -> Tokenizer:
        assert self._tokenizer is not None, "the model has not been opened"
        return self._tokenizer

    @property
    def prompts(self) -> PromptEncoder:
        assert self._prompts is not None, "the model has not been loaded"
        return self._prompts

    @property
    def context(self) -> int:
        """Positions of one sequence. The model must be loaded."""
        assert self.ready is not None, "the model has not been loaded"
        return self.ready.context

    @property
    def pid(self) -> int | None:
        """Of the engine's process, while there is one."""
        return None if self._process is None else self._process.pid

    @property
    def idle(self) -> bool:
        """Nobody uses it or waits for it."""
        return not self._live and not self._waiting

    @property
    def samples(self) -> int:
        """Samples that run or are queued."""
        return sum(generation.samples for generation in self._live.values())

    def sampling(self, given: dict[str, object]) -> SamplingParams:
        """The model's own defaults with what a request gives. Raises RequestError."""
        return SamplingParams(**{**self._defaults, **given})  # type: ignore[arg-type]

    def open(self) -> None:
        """Reads headers and the tokenizer. Raises ModelFileError or UnsupportedModelError. Takes a moment."""
        if self._tokenizer is None:
            checkpoint = open_checkpoint(self.source)
            self._defaults = sampling_defaults(checkpoint)
            self.architecture = model_spec(checkpoint).architecture
            self._tokenizer = open_tokenizer(checkpoint)

    async def load(self) -> None:
        """Returns once the engine is ready, starting it if need be. Raises ApiError when it cannot be had."""
        self.last_used = time.monotonic()
        if self.state != "ready" and self._waiting >= self._config.max_sequences + self._max_queue:
            raise ApiError(
                429, f"{self._waiting} requests wait for {self.name} to be loaded", code="queue_full", retry_after=5
            )
        self._waiting += 1
        try:
            if self._supervisor is None or self._supervisor.done():
                self._set("loading")
                self._supervisor = asyncio.create_task(self._supervise())
            while self.state != "ready":
                if self.state in ("failed", "closed"):
                    raise self._unavailable()
                await self._changed.wait()
        finally:
            self._waiting -= 1

    def submit(self, call: Call) -> None:
        """Hands a call's requests to the engine. Raises ApiError when the queue is full or the engine is gone."""
        if self._process is None or self.state != "ready":
            raise self._unavailable()
        wanted = sum(generation.samples for generation in call.generations)
        room = self._config.max_sequences + self._max_queue - self.samples
        if self._live and wanted > room:
            raise ApiError(
                429, f"{self.name} has {self.samples} samples running or queued, and no room for {wanted} more",
                code="queue_full", retry_after=1,
            )  # fmt: skip
        for generation in call.generations:
            self._live[generation.request.id] = generation
            self._process.send(frames.Submit(generation.request))

    def withdraw(self, call: Call) -> None:
        """Cancels what a call still has in the engine; nothing of it is delivered any more."""
        self.last_used = time.monotonic()
        for generation in call.generations:
            if self._live.pop(generation.request.id, None) is not None and self._process is not None:
                self._process.send(frames.Cancel(generation.request.id))

    def fail_all(self, error: ApiError) -> None:
        """Ends every call that runs."""
        for call in {generation.call for generation in self._live.values()}:
            call.fail(error)

    def watch(self, watcher: Callable[[frames.Stepped], None], on: bool) -> None:
        """Steps are shown to a watcher, with the owners of pages, until it is taken away."""
        (self.watchers.add if on else self.watchers.discard)(watcher)
        if self._process is not None:
            self._process.send(frames.Watch(bool(self.watchers)))

    async def unload(self, state: State = "unloaded") -> None:
        """Ends the engine's process. What runs fails."""
        self.fail_all(ApiError(503, f"{self.name} is being unloaded", code="shutting_down"))
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            supervisor.cancel()
            await asyncio.gather(supervisor, return_exceptions=True)
        self._set(state)

    async def _supervise(self) -> None:
        """Starts the engine, and again whenever it dies."""
        pause = _FIRST_PAUSE
        try:
            while True:
                began = time.monotonic()
                try:
                    reason = await self._run()
                except (TandemError, ApiError) as error:
                    if isinstance(error, MemoryPlanError) and await self._evict(self):
                        continue
                    self.failure = error
                    _log.error("engine refused", extra={"model": self.name, "reason": str(error)})
                    self._set("failed")
                    return
                except EngineDied as death:
                    reason = str(death)
                pause = _FIRST_PAUSE if time.monotonic() - began > _HEALTHY_SECONDS else pause
                self.restarts += 1
                self._set("restarting")
                _log.error("engine died", extra={"model": self.name, "reason": reason, "restart_in_s": pause})
                self.fail_all(
                    ApiError(
                        503, f"{self.name}'s engine ended while it worked on this request: {reason}; it starts again",
                        code="engine_died", retry_after=1,
                    )
                )  # fmt: skip
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        finally:
            self._forget()

    async def _run(self) -> str:
        """One life of the engine; how it ended. Raises as EngineProcess.start does."""
        await asyncio.to_thread(self.open)
        process = EngineProcess(self._step)
        start = frames.Start(self.source, self._config, sorted(self.tokenizer.eos_ids))
        try:
            ready = await process.start(start, self._granted, self._show)
            self._process, self.ready = process, ready
            self._prompts = PromptEncoder(self.tokenizer, ready.context)
            if self.watchers:
                process.send(frames.Watch(True))
            self._set("ready")
            return await asyncio.shield(process.ended)
        finally:
            self._forget()
            await asyncio.shield(process.stop())

    async def _granted(self, host_bytes: int) -> None:
        await self._grant(self, host_bytes)
        self.host_bytes = host_bytes

    def _show(self, done: int, total: int) -> None:
        self.progress = done / total

    def _forget(self) -> None:
        self._process, self.ready, self.stats = None, None, None
        self.host_bytes, self.progress = 0, 0.0

    def _set(self, state: State) -> None:
        """A new state, which wakes whoever waits for one."""
        self.state = state
        self._changed.set()
        self._changed = asyncio.Event()

    def _unavailable(self) -> ApiError:
        if self.state == "failed" and self.failure is not None:
            code = getattr(self.failure, "code", None) or "model_unavailable"
            return ApiError(503, f"{self.name} cannot be loaded: {self.failure}", code=code, retry_after=10)
        return ApiError(503, f"{self.name} is not ready: {self.state}", code="model_unavailable", retry_after=1)

    def _note(self, stats: frames.Stats) -> None:
        self.stats = stats
        self.rows += stats.rows
        self.busy["host"] += stats.host_seconds
        self.busy["devices"] += stats.wait_seconds
        self.busy["sampler"] += stats.sample_seconds

    def _step(self, stepped: frames.Stepped) -> None:
        """What a step brought goes to the calls."""
        if stepped.stats is not None:
            self._note(stepped.stats)
        for request_id in stepped.accepted:
            if (generation := self._live.get(request_id)) is not None:
                generation.accepted = True
                generation.call.wake()
        for request_id, reason in stepped.rejected:
            if (generation := self._live.pop(request_id, None)) is not None:
                generation.call.fail(bad_request(reason))
        for delta in stepped.deltas:
            generation = self._live.get(delta.request_id)
            if generation is None:
                continue
            chunk = generation.call.deliver(generation, delta)
            if generation.text.output.finished:
                self._live.pop(delta.request_id, None)
            if chunk is not None and chunk.finish_reason is not None and delta.finish_reason is None:
                assert self._process is not None
                self._process.send(frames.Cancel(delta.request_id, delta.index))
        for watcher in self.watchers:
            watcher(stepped)
