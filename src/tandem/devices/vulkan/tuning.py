"""Tuning: for each matrix of a model and each row count, which kernel of ours is fastest on this GPU.

It happens once, when a program is linked that multiplies with a matrix of a new size: seconds, in which the GPU's own
clock times the candidates on the model's weights. What was chosen is kept for device, driver and shaders; a step never
tunes. Where nothing is measured the rules of `Kernels` decide.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from tandem.devices.vulkan.blocks import VulkanBlock
from tandem.devices.vulkan.context import Context
from tandem.devices.vulkan.kept import Choice, TuningTable, log, read_tuning, write_tuning
from tandem.devices.vulkan.matrices import Matrix
from tandem.devices.vulkan.memory import Memory
from tandem.devices.vulkan.pipelines import Pipelines
from tandem.devices.vulkan.probe import Gpu
from tandem.devices.vulkan.products import Kernels, extent_of
from tandem.devices.vulkan.search import choose, monotone, search
from tandem.devices.vulkan.tiles import BUCKETS, MANY_ROWS, bucket_of, most_splits
from tandem.devices.vulkan.timing import ProductTimer
from tandem.devices.vulkan.variants import FEW, Extent, Variant, allowed, for_bucket, neighbours, tiled
from tandem.errors import ConfigError, DeviceError
from tandem.weights.tensor import TensorType

TUNE_VARIABLE = "TANDEM_VULKAN_TUNE"

# Buckets that are searched; those between them take what was found beside them.
_ANCHORS = (1, 2, 4, 8, 12, 16, 32, 64, MANY_ROWS)
# Rows with which the largest bucket is measured; fewer where their results would be more than so many words.
_MANY_MEASURED, _MOST_RESULTS = 256, 16 << 20
# Seconds after which no further bucket is begun; the next process goes on.
_PATIENCE = 12.0
# Seconds that others must make up for where the kernel for few rows may be fused with what is before and after it.
_FUSING = 10e-6
# From so many rows other kernels are tried than those that take few.
_TILED_ROWS = 4


def wants_tuning(gpu: Gpu) -> bool:
    """What TANDEM_VULKAN_TUNE says, on or off; without it every GPU is tuned, and no software driver. Raises
    ConfigError for another word.
    """
    word = os.environ.get(TUNE_VARIABLE, "")
    if word not in ("", "on", "off"):
        raise ConfigError(f"{TUNE_VARIABLE} must be on or off, not {word!r}")
    return word == "on" or (word == "" and gpu.type != "cpu")


@dataclass(frozen=True, slots=True)
class Need:
    """Products with matrices of a size, in steps of up to `rows` rows. single: see `Choice`."""

    extent: Extent
    single: bool
    rows: int

    @property
    def buckets(self) -> list[int]:
        return [bucket for bucket in BUCKETS if bucket <= bucket_of(self.rows)]

    def measured(self, bucket: int) -> int:
        """Rows with which a bucket is measured."""
        return max(1, min(bucket, self.rows, _MANY_MEASURED, _MOST_RESULTS // self.extent.outputs))

    def splits(self, bucket: int) -> int:
        return 1 if self.single else most_splits(self.extent.outputs, bucket)


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
    """Of one device. path: of what is kept."""

    context: Context
    memory: Memory
    pipelines: Pipelines
    kernels: Kernels
    path: Path
    kept: dict[tuple[Extent, bool, int], Choice] | None = None

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
        trial = Pipelines(self.context, beside=self.pipelines)
        try:
            timer = ProductTimer(
                self.context,
                self.memory,
                trial,
                rows=max(need.measured(MANY_ROWS) for need in needs),
                columns=[need.extent.columns for need in needs],
                results=max(_result_words(need) for need in needs),
                exact=self.kernels.abilities.deterministic,
            )
            try:
                done = 0
                by_extent: dict[Extent, list[Matrix]] = {need.extent: [] for need in needs}
                for matrix in matrices:
                    by_extent.get(extent_of(matrix), []).append(matrix)

                def bytes_of(each: tuple[Need, list[int]]) -> int:
                    return sum(matrix.bytes for matrix in by_extent[each[0].extent])

                # Those that steps spend most of their time on come first.
                for need, buckets in sorted(missing, key=bytes_of, reverse=True):
                    mine = by_extent[need.extent]
                    choices = self._choices(need, buckets, end, partial(timer.race, mine, matrices))
                    self._note(need, choices)
                    done += len(choices)
                return done
            finally:
                timer.close()
        finally:
            trial.close()

    def _choices(
        self,
        need: Need,
        buckets: Sequence[int],
        end: float,
        raced: Callable[[int, Sequence[Variant]], dict[Variant, float]],
    ) -> dict[int, Choice]:
        """By bucket: of those that were begun before the time was up. raced: seconds of variants for some rows."""
        extent, abilities = need.extent, self.kernels.abilities

        def extra(bucket: int, variant: Variant) -> float:
            return _FUSING if variant.shader not in FEW and self._usual(need, bucket).shader in FEW else 0.0

        def race(bucket: int, variants: Sequence[Variant]) -> dict[Variant, float]:
            times = raced(need.measured(bucket), variants)
            return {each: taken + extra(bucket, each) for each, taken in times.items()}

        def searched(bucket: int) -> dict[Variant, float]:
            splits = need.splits(bucket)
            return search(
                starts(self.kernels, extent, bucket, splits),
                lambda variant: neighbours(variant, extent, bucket, abilities, splits),
                lambda variants: race(bucket, variants),
            )

        tried: dict[int, dict[Variant, float]] = {}
        for bucket in (bucket for bucket in buckets if bucket in _ANCHORS and time.perf_counter() < end):
            tried[bucket] = searched(bucket)
        best = {bucket: choose(times, self._usual(need, bucket)) for bucket, times in tried.items()}
        for bucket in _ANCHORS:
            if (extent, bucket) in self.kernels.table:
                best[bucket] = self.kernels.table[extent, bucket]
        for bucket in (bucket for bucket in buckets if time.perf_counter() < end):
            beside = [best[other] for other in _beside(bucket, sorted(best))]
            options = [self._usual(need, bucket), *(for_bucket(variant, bucket) for variant in beside)]
            known = tried.setdefault(bucket, {})
            new = [
                each
                for each in dict.fromkeys(options)
                if each not in known and allowed(each, extent, abilities, need.splits(bucket))
            ]
            if new:
                # Against what is known of this bucket, measured again in the same turns.
                again = [best[bucket]] if bucket in best else []
                known |= race(bucket, [*again, *new])
        chosen = {bucket: choose(times, self._usual(need, bucket)) for bucket, times in tried.items()}
        fitting = monotone({bucket: (variant, tried[bucket][variant]) for bucket, variant in chosen.items()}, extra)
        return {
            bucket: Choice(
                extent.type.name,
                extent.outputs,
                extent.columns,
                need.single,
                bucket,
                need.measured(bucket),
                variant,
                seconds,
                tried[bucket][self._usual(need, bucket)],
            )
            for bucket, (variant, seconds) in fitting.items()
        }

    def _usual(self, need: Need, bucket: int) -> Variant:
        usual = self.kernels.rule(need.extent, bucket)
        return replace(usual, splits=1) if need.single else usual

    def _note(self, need: Need, choices: Mapping[int, Choice]) -> None:
        assert self.kept is not None
        for bucket, choice in choices.items():
            self.kernels.table[need.extent, bucket] = choice.variant
            self.kept[need.extent, need.single, bucket] = choice

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


def starts(kernels: Kernels, extent: Extent, bucket: int, splits: int) -> list[Variant]:
    """One of each kernel that may multiply with such a matrix, the rules' first."""
    abilities = kernels.abilities
    found = [kernels.rule(extent, bucket), kernels.few_rule(extent, bucket)]
    if bucket >= _TILED_ROWS:
        found += [tiled(abilities, extent.type), *kernels.matrix_rules(extent, bucket)]
    found = [replace(each, splits=min(each.splits, splits)) for each in found]
    return [each for each in dict.fromkeys(found) if allowed(each, extent, abilities, splits)]


def _beside(bucket: int, anchors: Sequence[int]) -> list[int]:
    """The nearest anchors below and above."""
    below = [anchor for anchor in anchors if anchor < bucket]
    above = [anchor for anchor in anchors if anchor > bucket]
    return [*below[-1:], *above[:1]]


def _result_words(need: Need) -> int:
    return max(need.measured(bucket) * need.extent.outputs * need.splits(bucket) for bucket in need.buckets)
