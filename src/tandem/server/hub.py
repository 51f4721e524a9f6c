"""The models of a server: found by name, loaded when asked for, unloaded when their memory is needed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from tandem.errors import ModelFileError
from tandem.memory.system import format_bytes
from tandem.server.config import ServerConfig
from tandem.server.errors import ApiError
from tandem.server.model import ServedModel
from tandem.weights.hub import HUB_PREFIX
from tandem.weights.open import EXPECTED


class ModelHub:
    """sources: name to what `open_checkpoint` takes; the first is the one that requests without a name get."""

    def __init__(self, sources: dict[str, str], config: ServerConfig) -> None:
        self.models = {
            name: ServedModel(
                name, source, config.engine, max_queue=config.max_queue, grant=self._grant, evict=self._evict
            )
            for name, source in sources.items()
        }
        self._budget = config.memory_budget
        self._granting = asyncio.Lock()

    def check(self) -> None:
        """Raises ModelFileError or UnsupportedModelError for what a glance at the models shows."""
        for model in self.models.values():
            source = model.source
            if not source.startswith(HUB_PREFIX) and not Path(source).expanduser().exists():
                raise ModelFileError(f"there is no model at {source}; expected {EXPECTED}")
        self.find(None).open()

    def find(self, name: str | None) -> ServedModel:
        """Raises ApiError 404 for a model that is not served."""
        if name is None:
            return next(iter(self.models.values()))
        model = self.models.get(name)
        if model is None:
            known = ", ".join(self.models)
            raise ApiError(
                404, f"there is no model {name!r:.200}; this server has {known}", param="model", code="model_not_found"
            )
        return model

    async def _grant(self, model: ServedModel, host_bytes: int) -> None:
        """Makes room in the budget for a model. Raises ApiError where models that are at work leave too little."""
        if self._budget is None:
            return
        async with self._granting:
            while host_bytes > (room := self._budget - sum(other.host_bytes for other in self.models.values())):
                if not await self._evict(model):
                    raise ApiError(
                        503,
                        f"{model.name} needs {format_bytes(host_bytes)}, and {format_bytes(room)} of the budget of "
                        f"{format_bytes(self._budget)} are free while the other models are in use",
                        code="no_memory",
                        retry_after=5,
                    )

    async def _evict(self, model: ServedModel) -> bool:
        """Unloads the model besides this one that nobody uses, and was used longest ago; False if there is none."""
        idle = [other for other in self.models.values() if other is not model and other.state == "ready" and other.idle]
        if idle:
            await min(idle, key=lambda other: other.last_used).unload()
        return bool(idle)

    async def unload_idle(self, seconds: float) -> None:
        """For ever: a model that nobody has used for so long gives its memory back."""
        while True:
            await asyncio.sleep(min(1.0, seconds / 4))
            for model in self.models.values():
                if model.state == "ready" and model.idle and time.monotonic() - model.last_used > seconds:
                    await model.unload()

    async def close(self) -> None:
        await asyncio.gather(*(model.unload("closed") for model in self.models.values()))


def name_sources(given: Sequence[str]) -> dict[str, str]:
    """`NAME=MODEL` or MODEL, where a folder of several GGUF files stands for them all; names must differ.

    Raises ModelFileError.
    """
    named: dict[str, str] = {}
    for entry in given:
        for name, source in _expand(entry):
            if name in named:
                raise ModelFileError(f"two models are called {name}; name one of them yourself, as in NAME={source}")
            named[name] = source
    return named


def _expand(entry: str) -> list[tuple[str, str]]:
    name, equals, source = entry.partition("=")
    if equals and name and "/" not in name and not Path(entry).exists():
        return [(name, source)]
    path = Path(entry).expanduser()
    if path.is_dir() and not (path / "config.json").exists():
        found = sorted(
            file for file in path.iterdir() if file.suffix.lower() == ".gguf" or (file / "config.json").exists()
        )
        if found:
            return [(file.stem if file.is_file() else file.name, str(file)) for file in found]
    stem = entry.rstrip("/").rpartition("/")[2]
    return [(stem.removesuffix(".gguf") or entry, entry)]
