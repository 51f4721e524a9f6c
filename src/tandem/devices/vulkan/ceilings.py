"""What a GPU can do at best, measured: how fast it reads and copies its memory, and how many integer dots it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tandem.devices.base import Ceilings
from tandem.devices.vulkan.binding import constants as vk
from tandem.devices.vulkan.context import Context
from tandem.devices.vulkan.dispatch import LANES, Dispatch, Grid, Use, push
from tandem.devices.vulkan.memory import Memory
from tandem.devices.vulkan.pipelines import Pipelines
from tandem.devices.vulkan.profile import Timestamps
from tandem.devices.vulkan.recording import GROUPS_BYTES, Recording
from tandem.devices.vulkan.staging import record_copies

# Beyond every cache of today's GPUs; a software device is content with less.
_BYTES = {"cpu": 64 << 20}
_USUAL_BYTES = 1 << 30
_GROUPS, _UNROLL, _CHAINS = 4096, 8, 16
_TURNS = {"cpu": 16}
_USUAL_TURNS = 4096
_PASSES = 5


def measure_ceilings(context: Context, memory: Memory, pipelines: Pipelines) -> Ceilings:
    """The best of some passes each. Raises DeviceError where the memory for it is not there."""
    kind = context.gpu.type
    turn = 16 * LANES * _GROUPS * _UNROLL
    size = min(_BYTES.get(kind, _USUAL_BYTES), context.gpu.limits.storage_range) // turn * turn
    turns = _TURNS.get(kind, _USUAL_TURNS)
    source, sink = memory.device(size), memory.device(size, clear=False)
    table = memory.host(GROUPS_BYTES)
    assert table.mapped is not None
    table.mapped[:GROUPS_BYTES].view("uint32")[:] = (_GROUPS, 1, 1)
    uses = (Use(0, source.all()), Use(1, sink.all(), "write"))

    def shader(name: str, value: int) -> float:
        dispatch = Dispatch(name, (LANES,), uses, push(value), Grid(_GROUPS))

        def run(times: Timestamps) -> None:
            recording = Recording(context, pipelines, [dispatch], [dispatch.grid], table.all(), times.queries)
            context.run(recording.commands)

        return _best(context, run)

    def copy(times: Timestamps) -> None:
        def write(commands: Any) -> None:
            vulkan = context.vulkan
            vulkan.vkCmdResetQueryPool(commands, times.queries, 0, 2)
            vulkan.vkCmdWriteTimestamp(commands, vk.STAGE_BOTTOM, times.queries, 0)
            record_copies(context, commands, [(source.all(), sink.all())])
            vulkan.vkCmdWriteTimestamp(commands, vk.STAGE_BOTTOM, times.queries, 1)

        context.run_once(write)

    try:
        read = shader("ceiling_read", size // 16)
        copied = _best(context, copy)
        dots = None
        if context.gpu.features.integer_dot:
            dots = 4 * _CHAINS * turns * LANES * _GROUPS / shader("ceiling_dots", turns)
        return Ceilings(size / read, 2 * size / copied, dots)
    finally:
        memory.free_all([source, sink, table])


def _best(context: Context, run: Callable[[Timestamps], None]) -> float:
    """Seconds of the fastest pass."""
    times = Timestamps(context, 1)
    passes = []
    try:
        for _ in range(_PASSES):
            run(times)
            passes.append(times.read()[0])
    finally:
        times.close()
    return min(passes)
