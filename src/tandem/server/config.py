"""What a server is started with."""

from __future__ import annotations

import msgspec

from tandem.engine.build import EngineConfig


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """host, port: where to listen; port 0 takes a free one. api_keys: one of them must come with every request; none
    lets everybody in. cors_origins: web pages of these origins may call; "*" is any.
    allowed_hosts: names under which this server may be called besides localhost and IP addresses, where there is no
    key: a page on the web cannot then reach it by giving its own name this machine's address.
    max_queue: samples that may wait for each model beyond those that run. request_timeout, drain_timeout: seconds that
    a request may take, and that running ones get when the server is told to end. max_body: bytes of a request.
    max_tokens: most tokens that one answer may have; None leaves it to the context.
    memory_budget: host bytes that all loaded models may take together; None is what is free.
    idle_unload: seconds after which a model that nobody uses is unloaded; None keeps it until its memory is needed.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    max_queue: int = 256
    request_timeout: float = 600.0
    drain_timeout: float = 30.0
    max_body: int = 8 << 20
    max_tokens: int | None = None
    memory_budget: int | None = None
    idle_unload: float | None = None
    engine: EngineConfig = EngineConfig()
