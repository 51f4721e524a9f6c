"""What the routes share: the configuration, the models, and the steps that every call goes through."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

from starlette.requests import Request

from tandem.engine.output import RequestOutput
from tandem.engine.pooling import PoolingKind
from tandem.engine.prompt import Message, Prompt
from tandem.engine.sampling_params import SamplingParams
from tandem.errors import ModelFileError, RequestError
from tandem.server.call import Call, Encoded
from tandem.server.config import ServerConfig
from tandem.server.errors import ApiError, bad_request
from tandem.server.http import noticing_disconnect
from tandem.server.hub import ModelHub
from tandem.server.metrics import Metrics
from tandem.server.model import ServedModel
from tandem.text.chat import check_template_kwargs


class Service:
    """One server's configuration, models and metrics."""

    def __init__(self, config: ServerConfig, hub: ModelHub) -> None:
        self.config = config
        self.hub = hub
        self.metrics = Metrics(hub.models.values())
        self.ending = False
        # Why the first model cannot be had, and whom to tell.
        self.failure: Exception | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self._tasks: list[asyncio.Task[None]] = []
        self._closing: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Begins to load the first model."""
        self._tasks.append(asyncio.create_task(self._load_first()))
        if self.config.idle_unload is not None:
            self._tasks.append(asyncio.create_task(self.hub.unload_idle(self.config.idle_unload)))

    async def _load_first(self) -> None:
        model = self.hub.find(None)
        try:
            await model.load()
        except ApiError:
            if model.state == "failed":
                self.failure = model.failure
                self.on_failure()

    def drain(self) -> None:
        """From now on nothing new is taken."""
        self.ending = True

    def cut_off(self) -> None:
        """What still runs has had its time."""
        for model in self.hub.models.values():
            model.fail_all(ApiError(503, "the server is shutting down", code="shutting_down"))
        self._closing = asyncio.create_task(self.hub.close())

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await (self._closing or self.hub.close())

    @staticmethod
    def of(request: Request) -> Service:
        return cast(Service, request.app.state.service)

    async def model(self, name: str | None) -> ServedModel:
        """The model that a request names, loaded; the only or first one if it names none. Raises ApiError."""
        if self.ending:
            raise ApiError(503, "the server is shutting down", code="shutting_down")
        model = self.hub.find(name)
        try:
            async with asyncio.timeout(self.config.request_timeout):
                await model.load()
        except TimeoutError:
            raise ApiError(
                503, f"{model.name} is still {model.state}", code="model_unavailable", retry_after=5
            ) from None
        return model

    async def encode(self, model: ServedModel, prompt: Prompt) -> Encoded:
        """A prompt's token ids. Raises ApiError."""
        try:
            return await asyncio.to_thread(model.prompts.encode, prompt)
        except RequestError as error:
            raise bad_request(error, "prompt") from None

    async def render(
        self,
        model: ServedModel,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> Encoded:
        """A conversation's token ids, through the model's own template with these variables. Raises ApiError."""
        try:
            kwargs = check_template_kwargs(variables)
        except RequestError as error:
            raise bad_request(error, "chat_template_kwargs") from None
        render = partial(
            model.prompts.render, messages, tools=tools, add_generation_prompt=add_generation_prompt, **kwargs
        )
        try:
            return await asyncio.to_thread(render)
        except ModelFileError as error:
            raise ApiError(500, str(error), code="model_broken") from None
        except RequestError as error:
            raise bad_request(error, "messages") from None

    async def start(
        self,
        request: Request,
        model: ServedModel,
        prompts: Sequence[Encoded],
        params: SamplingParams,
        *,
        cache_salt: str | None = None,
        pooling: PoolingKind | None = None,
    ) -> Call:
        """A call that the engine has accepted. Raises ApiError."""
        call = Call(model, prompts, params, self.metrics, cache_salt=cache_salt or "", pooling=pooling)
        request.state.call = call
        try:
            with noticing_disconnect(request.receive, call):
                await call.start(self.config.request_timeout)
        except BaseException:
            call.close()
            raise
        return call

    async def finish(self, request: Request, call: Call) -> list[RequestOutput]:
        """A call's outputs, once it has ended; closes it. Raises ApiError."""
        try:
            with noticing_disconnect(request.receive, call):
                return await call.finish()
        finally:
            call.close()
