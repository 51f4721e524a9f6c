"""What is deployed: a model with its plan, and where it listens."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tandem.config import Value
from tandem.memory.plan import MemoryPlan

# Of the processes beside what the plan counts: interpreters, tokenizer, requests, allocators.
_BESIDE_PLAN = 1 << 30


@dataclass(frozen=True, slots=True)
class Service:
    """name: of the unit or container. settings: those of `tandem.config` that the service's own file will hold.

    model: an absolute path. api_key_file: of this machine. user: whom a unit runs as; None is one of its own.
    python: the interpreter that has Tandem.
    """

    name: str
    model: Path
    host: str
    port: int
    plan: MemoryPlan
    settings: Mapping[str, Value]
    python: Path
    api_key_file: Path | None = None
    user: str | None = None

    @property
    def vulkan(self) -> bool:
        return any(device.device.startswith("vulkan") for device in self.plan.devices)

    @property
    def memory_limit(self) -> int:
        """Bytes that the service may have: the plan's, an eighth more, and what is beside it, in whole MiB."""
        return (self.plan.total * 9 // 8 + _BESIDE_PLAN) >> 20 << 20

    @property
    def mounted(self) -> Path:
        """The least folder that holds all of the model's files, also where they are links into a cache."""
        files = [self.model]
        if self.model.is_dir():
            files += [path for path in self.model.iterdir() if path.is_file()]
        folders = {self.model if self.model.is_dir() else self.model.parent, *(path.resolve().parent for path in files)}
        return Path(os.path.commonpath(folders))

    def configuration(self) -> str:
        """The TOML file."""
        lines = [f"# Settings of the service {self.name}; `tandem config --explain` tells what there is."]
        lines += [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in self.settings.items()]
        return "\n".join(lines) + "\n"


def arguments(model: str, host: str, port: int, config: str, api_key_file: str | None) -> list[str]:
    """What follows `tandem`."""
    words = ["serve", model, "--host", host, "--port", str(port), "--config", config]
    return [*words, "--api-key-file", api_key_file] if api_key_file else words
