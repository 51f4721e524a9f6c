"""From a configuration to an engine: the plan first, then the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import get_args

import msgspec

from tandem.devices.base import Device
from tandem.devices.spec import HeadSpec, KVDtype
from tandem.engine.engine import Engine
from tandem.engine.pooling import FinalNorm
from tandem.errors import DeviceError, MemoryPlanError
from tandem.memory.plan import Limits, MemoryPlan, Planner
from tandem.memory.system import available_bytes, counted, format_bytes, parse_bytes
from tandem.models.load import block_weights
from tandem.models.open import model_spec
from tandem.models.spec import ModelSpec
from tandem.models.tokenizer import open_tokenizer
from tandem.pipeline.devices import open_device
from tandem.pipeline.executor import Executor
from tandem.pipeline.notation import parse_placement
from tandem.pipeline.placement import Placement, on_one
from tandem.text.tokenizer import Tokenizer
from tandem.weights.checkpoint import Checkpoint
from tandem.weights.dequantize import dequantize
from tandem.weights.tensor import Tensor

# Where nobody says how much memory to use, KV pools hold this many positions per sequence on average.
_USUAL_POSITIONS = 2048
# Left to the rest of the machine when the plan may use what is free.
_HEADROOM = 256 << 20


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """placement: a device, or several as `tandem.pipeline.notation` has them; `auto` lets Tandem choose.

    threads: of the CPU device; None takes one per usable core. max_sequences: how many run at once. rows: the largest
    step and prefill chunk. context: positions of one sequence; None is the model's, or as many as fit.
    full_sequences: how many sequences of full length the KV pools must hold at least.
    memory: bytes in all, as a number or text such as `8GiB`; `auto` takes what is free; None takes a moderate KV pool.
    deterministic: on Vulkan, results that do not depend on the batch; without it products of many rows are faster.
    Checked when made, as far as that needs no model: MemoryPlanError or DeviceError for a value of the wrong type.
    """

    placement: str = "auto"
    threads: int | None = None
    max_sequences: int = 32
    rows: int = 256
    context: int | None = None
    full_sequences: int = 1
    memory: int | str | None = None
    kv_dtype: KVDtype = "f16"
    prefix_cache: bool = True
    deterministic: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.placement, str):
            raise DeviceError(
                f"placement must be a device such as cpu, or attn=DEVICE,ffn=DEVICE, not {self.placement!r}"
            )
        if self.threads is not None and not _is_integer(self.threads):
            raise DeviceError(f"threads must be a whole number, not {self.threads!r}")
        for name in ("max_sequences", "rows", "context", "full_sequences"):
            value = getattr(self, name)
            if not (_is_integer(value) or (value is None and name == "context")):
                raise MemoryPlanError(f"{name} must be a whole number, not {value!r}")
        for name in ("prefix_cache", "deterministic"):
            if not isinstance(getattr(self, name), bool):
                raise MemoryPlanError(f"{name} must be true or false, not {getattr(self, name)!r}")
        if not (self.memory is None or isinstance(self.memory, str) or _is_integer(self.memory)):
            raise MemoryPlanError(f"memory must be a number of bytes or a text such as 8GiB, not {self.memory!r}")
        if isinstance(self.memory, str) and self.memory != "auto":
            _parse(self.memory)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _parse(memory: str) -> int:
    try:
        return parse_bytes(memory)
    except ValueError as error:
        raise MemoryPlanError(str(error)) from None


@dataclass(frozen=True, slots=True)
class PlannedEngine:
    """A model that is planned but not loaded. Devices are open: `load` it or `close` it."""

    checkpoint: Checkpoint
    spec: ModelSpec
    config: EngineConfig
    placement: Placement
    devices: Mapping[str, Device]
    plan: MemoryPlan

    def load(
        self,
        eos_ids: Iterable[int],
        *,
        tokenizer: Tokenizer | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Engine:
        """`load_executor`, and the engine around it. tokenizer: for requests with a grammar; None reads it from the
        model's files when the first one comes.
        """
        checkpoint, head = self.checkpoint, self.spec.blocks[-1]
        final_norm = None
        if isinstance(head, HeadSpec):
            final_norm = FinalNorm(head.norm, dequantize(self._weights(len(self.spec.blocks) - 1)["norm"]))
        return Engine(
            self.load_executor(progress=progress),
            eos_ids=eos_ids,
            prefix_cache=self.config.prefix_cache,
            tokenizer=lambda: open_tokenizer(checkpoint) if tokenizer is None else tokenizer,
            recover=self._load_elsewhere if self.config.placement.strip() == "auto" else None,
            final_norm=final_norm,
        )

    def load_executor(self, *, progress: Callable[[int, int], None] | None = None) -> Executor:
        """Loads the weights and links the programs. progress: called with (blocks loaded, blocks).

        Raises MemoryPlanError where the machine has less memory free than the plan takes.
        """
        needed, free = self.plan.by_memory()["host"], available_bytes()
        if needed > free:
            raise MemoryPlanError(
                f"the plan takes {format_bytes(needed)}, and this machine has {format_bytes(free)} free; free some, "
                "or ask for less with memory=auto"
            )
        return Executor(
            self.spec,
            self.plan,
            self.placement,
            self.devices,
            self._weights,
            progress=progress,
        )

    def _load_elsewhere(self, lost: frozenset[str]) -> Executor:
        """The model on the first device of the placement that is left, or on the CPU, for the same limits. Raises
        DeviceError or MemoryPlanError where that cannot be.
        """
        left = next((name for name in self.placement.names if name not in lost), "cpu")
        placement = on_one(self.spec, left)
        devices = {
            name: open_device(name, threads=self.config.threads, deterministic=self.config.deterministic)
            for name in placement.names
        }
        try:
            planner = Planner(self.spec, placement.stages(), devices, self._weights)
            budget = {"host": _budget(self.config.memory)} | _device_budgets(devices)
            at_most = self.plan.kv_positions
            plan = planner.fit(self.plan.limits, budget, full_sequences=self.config.full_sequences, at_most=at_most)
            return Executor(self.spec, plan, placement, devices, self._weights)
        except BaseException:
            for device in devices.values():
                device.close()
            raise

    def _weights(self, index: int) -> Mapping[str, Tensor]:
        return block_weights(self.checkpoint, self.spec, index)

    def close(self) -> None:
        for device in self.devices.values():
            device.close()


def plan_engine(checkpoint: Checkpoint, config: EngineConfig, spec: ModelSpec | None = None) -> PlannedEngine:
    """Reads headers, opens the devices and plans their memory. spec: a part of the model, for measurements.

    Raises MemoryPlanError where the configuration does not fit, DeviceError where a device is missing, and what
    `model_spec` raises.
    """
    spec = spec or model_spec(checkpoint)
    text = config.placement
    if text.strip() == "auto":
        from tandem.engine.placing import choose_placement

        text = choose_placement(checkpoint, spec, config)
    placement = parse_placement(text, spec, lambda i: block_weights(checkpoint, spec, i))
    devices = {
        name: open_device(name, threads=config.threads, deterministic=config.deterministic) for name in placement.names
    }
    try:
        plan = plan_placement(checkpoint, spec, config, placement, devices)
    except BaseException:
        for device in devices.values():
            device.close()
        raise
    return PlannedEngine(checkpoint, spec, config, placement, devices, plan)


def plan_placement(
    checkpoint: Checkpoint, spec: ModelSpec, config: EngineConfig, placement: Placement, devices: Mapping[str, Device]
) -> MemoryPlan:
    """The memory of a placement, whatever `config` says of it; `devices` are its devices. Raises MemoryPlanError."""
    planner = Planner(
        spec,
        placement.stages(),
        devices,
        lambda i: block_weights(checkpoint, spec, i),
        micro_batches=placement.micro_batches,
    )
    return _plan(planner, spec, config, devices)


def _plan(planner: Planner, spec: ModelSpec, config: EngineConfig, devices: Mapping[str, Device]) -> MemoryPlan:
    check_limits(spec, config)
    budget = {"host": _budget(config.memory)} | _device_budgets(devices)
    limits = Limits(config.context or spec.context, config.max_sequences, config.rows, config.kv_dtype)
    if config.context is None:
        context = planner.largest_context(limits, budget, config.full_sequences, spec.context)
        if context:
            limits = replace(limits, context=context)
    usual = limits.sequences * min(limits.context, _USUAL_POSITIONS)
    at_most = max(usual, limits.context * config.full_sequences) if config.memory is None else None
    return planner.fit(limits, budget, full_sequences=config.full_sequences, at_most=at_most)


def _device_budgets(devices: Mapping[str, Device]) -> dict[str, int]:
    """Bytes that each device reaches: what is free of its own memory, less a little for what its driver takes; or, of a
    GPU that shares the host's, what its driver lets it have.
    """
    spaces = {name.partition("/")[0]: device.info.memory[0] for name, device in devices.items()}
    return {
        name: max(0, space.bytes_free - min(_HEADROOM, space.bytes_free // 16))
        for name, space in spaces.items()
        if space.name != "host"
    }


def _budget(memory: int | str | None) -> int:
    """Bytes of host memory that the plan may use."""
    free = max(0, available_bytes() - _HEADROOM)
    if memory is None or memory == "auto":
        return free
    return _parse(memory) if isinstance(memory, str) else memory


def check_limits(spec: ModelSpec, config: EngineConfig) -> None:
    """Raises MemoryPlanError for what no amount of memory makes possible."""
    if config.context is not None and not 2 <= config.context <= spec.context:
        raise MemoryPlanError(
            f"context={config.context:,} is not possible: {spec.name} was trained for {spec.context:,} positions; "
            f"choose 2 to {spec.context:,}"
        )
    if not 1 <= config.max_sequences <= 4096:
        raise MemoryPlanError(f"max_sequences={config.max_sequences} is not possible; choose 1 to 4096")
    if not config.max_sequences <= config.rows <= 65536:
        raise MemoryPlanError(
            f"rows={config.rows} is not possible: choose at least one row for each of "
            f"{counted(config.max_sequences, 'sequence')}, and at most 65,536"
        )
    if config.kv_dtype not in get_args(KVDtype):
        known = ", ".join(get_args(KVDtype))
        raise MemoryPlanError(f"kv_dtype={config.kv_dtype!r} is not one that the KV cache has; choose one of {known}")
    if not 1 <= config.full_sequences <= config.max_sequences:
        raise MemoryPlanError(
            f"full_sequences={config.full_sequences} is not possible; choose 1 to max_sequences={config.max_sequences}"
        )
