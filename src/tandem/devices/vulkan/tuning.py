"""Tuning: for each matrix of a model and each row count, which kernel of ours is fastest on this GPU.

It happens once, when a program is linked that multiplies with a matrix of a new size: seconds, in which the GPU's own
clock times the candidates on the model's weights. What was chosen is kept for device, driver and shaders; a step never
tunes. Where nothing is measured the rules of `Kernels` decide.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tandem.devices.vulkan.blocks import VulkanBlock
from tandem.devices.vulkan.context import Context
from tandem.devices.vulkan.kept import Choice, TuningTable, log, read_tuning, write_tuning
from tandem.devices.vulkan.matrices import Matrix
from tandem.devices.vulkan.memory import Memory
from tandem.devices.vulkan.pipelines import Pipelines
from tandem.devices.vulkan.probe import Gpu
from tandem.devices.vulkan.products import Kernels, extent_of
from tandem.devices.vulkan.tiles import MANY_ROWS
from tandem.devices.vulkan.timing import ProductTimer
from tandem.devices.vulkan.trials import ANCHORS, Need, Trial, share_pipelines
from tandem.devices.vulkan.variants import Extent, allowed
from tandem.errors import ConfigError, DeviceError
from tandem.weights.tensor import TensorType

TUNE_VARIABLE = "TANDEM_VULKAN_TUNE"

# Seconds after which no further row count is begun; the next process goes on.
_PATIENCE = 12.0


def wants_tuning(gpu: Gpu) -> bool:
    """What TANDEM_VULKAN_TUNE says, on or off; without it every GPU is tuned, and no software driver. Raises
    ConfigError for another word.
    """
    word = os.environ.get(TUNE_VARIABLE, "")
    if word not in ("", "on", "off"):
        raise ConfigError(f"{TUNE_VARIABLE} must be on or off, not {word!r}")
    return word == "on" or (word == "" and gpu.type != "cpu")


def needs_of(blocks: Iterable[VulkanBlock], rows: int, samples: int) -> list[Need]:
    """One for each size of matrix."""
    found: dict[Extent, Need] = {}
    for block in blocks:
        for name, matrices in block.matrices.items():
            if name == "embedding":
                continue
            # Nobody adds up the splits of logits, nor of a slice's result.
            single = name == "output" or (name in ("o", "down") and block.slice is not None)
            for extent in map(extent_of, matrices):
                known = found.get(extent, Need(extent, False, 0))
                most = max(known.rows, samples if name == "output" else rows)
                found[extent] = Need(extent, single or known.single, most)
    return list(found.values())


@dataclass(slots=True)
class Tuner:
    """Of one device. path: of what is kept. doubted: types with which some matrices did not keep a sum's order."""

    context: Context
    memory: Memory
    pipelines: Pipelines
    kernels: Kernels
    path: Path
    kept: dict[tuple[Extent, bool, int], Choice] | None = None
    doubted: set[TensorType] = field(default_factory=set)

    def tune(self, blocks: Iterable[VulkanBlock], rows: int, samples: int, matrices: Sequence[Matrix]) -> None:
        """Fills the kernels' table for programs of these blocks; `matrices` are all of the device. On its lane.

        What is not kept is measured. Where that cannot be, the rules remain, and the log says why.
        """
        missing = [(need, left) for need in needs_of(blocks, rows, samples) if (left := self._take_kept(need))]
        if not missing:
            return
        if not self.context.gpu.limits.timestamp_ns:
            log.info("%s keeps no time on its queues; kernels are chosen by rule", self.context.name)
            return
        begin = time.perf_counter()
        counted = sum(len(left) for _, left in missing)
        log.info(
            "%s: measuring which kernels are fastest for %d sizes of matrices, %d row counts in all; once for this "
            "GPU and driver, some seconds",
            self.context.name, len(missing), counted,
        )  # fmt: skip
        try:
            done = self._measure(missing, matrices, begin + _PATIENCE)
        except DeviceError as error:
            if self.context.queue.lost:
                raise
            log.warning("%s: kernels are chosen by rule, as measuring them failed: %s", self.context.name, error)
            return
        kept = write_tuning(self.path, self._table())
        where = f"kept in {self.path}" if kept else f"they cannot be kept in {self.path.parent}"
        log.info(
            "%s: measured %d of %d in %.1f s; %s",
            self.context.name,
            done,
            counted,
            time.perf_counter() - begin,
            where,
        )

    def _take_kept(self, need: Need) -> list[int]:
        """Into the table; returns the buckets of which nothing is kept."""
        if self.kept is None:
            self.kept = kept_choices(read_tuning(self.path))
        left = []
        for bucket in need.buckets:
            key = (need.extent, bucket)
            if key in self.kernels.table:
                continue
            choice = self.kept.get((need.extent, need.single, bucket))
            splits = need.splits(bucket)
            if choice is not None and allowed(choice.variant, need.extent, self.kernels.abilities, splits):
                self.kernels.table[key] = choice.variant
            else:
                left.append(bucket)
        return left

    def _measure(self, missing: Sequence[tuple[Need, list[int]]], matrices: Sequence[Matrix], end: float) -> int:
        """missing: buckets of each need. Returns how many were done by then."""
        needs = [need for need, _ in missing]
        by_extent: dict[Extent, list[Matrix]] = {need.extent: [] for need in needs}
        for matrix in matrices:
            by_extent.get(extent_of(matrix), []).append(matrix)

        def bytes_of(trial: Trial) -> int:
            return sum(matrix.bytes for matrix in by_extent[trial.need.extent])

        with ExitStack() as opened:
            pipelines = opened.enter_context(closing(Pipelines(self.context, beside=self.pipelines)))
            timer = ProductTimer(
                self.context,
                self.memory,
                pipelines,
                rows=max(need.measured(MANY_ROWS) for need in needs),
                columns=[need.extent.columns for need in needs],
                results=max(_result_words(need) for need in needs),
                exact=self.kernels.abilities.deterministic,
            )
            opened.callback(timer.close)
            trials = [
                Trial(self.kernels, need, len(mine), buckets, partial(timer.race, mine, matrices), self.doubted)
                for need, buckets in missing
                if (mine := by_extent[need.extent])
            ]
            # What steps spend most of their time on comes first.
            trials.sort(key=bytes_of, reverse=True)
            for bucket in ANCHORS:
                if time.perf_counter() > end:
                    break
                for trial in trials:
                    if bucket in trial.buckets:
                        trial.search(bucket)
                share_pipelines(trials, bucket)
            for trial in trials:
                trial.settle(end)
            return sum(self._note(trial.need, trial.choices()) for trial in trials)

    def _note(self, need: Need, choices: Mapping[int, Choice]) -> int:
        assert self.kept is not None
        for bucket, choice in choices.items():
            self.kernels.table[need.extent, bucket] = choice.variant
            self.kept[need.extent, need.single, bucket] = choice
        return len(choices)

    def _table(self) -> TuningTable:
        assert self.kept is not None
        gpu = self.context.gpu
        return TuningTable(gpu.name, gpu.driver, [self.kept[key] for key in sorted(self.kept, key=str)])


def kept_choices(table: TuningTable | None) -> dict[tuple[Extent, bool, int], Choice]:
    """By what they are for; what names no type of ours is left out."""
    choices = table.choices if table is not None else []
    return {
        (Extent(TensorType[choice.type], choice.outputs, choice.columns), choice.single, choice.bucket): choice
        for choice in choices
        if choice.type in TensorType.__members__
    }


def _result_words(need: Need) -> int:
    return max(need.measured(bucket) * need.extent.outputs * need.splits(bucket) for bucket in need.buckets)
