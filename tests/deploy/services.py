"""A service of the bundled model, without files or a machine that would have to fit."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from tandem.deploy.service import Service
from tandem.engine.build import EngineConfig, plan_engine
from tandem.llm import BUNDLED_MODEL
from tandem.memory.plan import MemoryPlan
from tandem.weights.open import open_checkpoint

# No file is there, and none is read; wherever this package lies, a service may see it.
MODEL = Path("/srv/models/stories.gguf")


@cache
def bundled_plan() -> MemoryPlan:
    planned = plan_engine(open_checkpoint(BUNDLED_MODEL), EngineConfig(max_sequences=4, context=256))
    planned.close()
    return planned.plan


def on_vulkan(plan: MemoryPlan) -> MemoryPlan:
    """As if the GPU had it all."""
    return replace(plan, devices=tuple(replace(device, device="vulkan:0") for device in plan.devices))


def service(**more: Any) -> Service:
    usual: dict[str, Any] = {
        "name": "stories", "model": MODEL, "host": "127.0.0.1", "port": 8000, "plan": bundled_plan(),
        "settings": {"context": 256, "max_sequences": 4}, "python": Path("/usr/bin/env"), "user": "somebody",
    }  # fmt: skip
    return Service(**{**usual, **more})
