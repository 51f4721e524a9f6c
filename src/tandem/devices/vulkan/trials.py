"""What is tried for one size of matrix: for some row counts all kernels, for the others those that did well there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import inf

from msgspec.structs import replace

from tandem.devices.vulkan.kept import Choice
from tandem.devices.vulkan.products import Kernels
from tandem.devices.vulkan.search import choose, fastest, search
from tandem.devices.vulkan.tiles import BUCKETS, MANY_ROWS, bucket_of, most_splits
from tandem.devices.vulkan.variants import BYTES, FEW, FLOATS, Extent, Variant, allowed, for_bucket, neighbours, tiled
from tandem.weights.tensor import TensorType

# Buckets that are searched, in the order in which their users are likely to miss them; those between them take what was
# found beside them.
ANCHORS = (1, MANY_ROWS, 2, 4, 8, 16, 32, 64, 12)
# Rows with which the largest bucket is measured: those of a chunk of a prompt, as it is their number that decides how
# much of the GPU the last workgroups leave idle. Fewer where their results would be more than so many words.
_MANY_MEASURED, _MOST_RESULTS = 512, 24 << 20
# Seconds that others must make up for where the kernel for few rows may be fused with what is before and after it.
_FUSING = 10e-6
# From so many rows other kernels are tried than those that take few.
_TILED_ROWS = 7


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


@dataclass(slots=True)
class Trial:
    """Of the buckets of a need. count: matrices of that size. raced: seconds of variants for some rows. doubted: types
    with which some matrices did not keep the order of a sum.
    """

    kernels: Kernels
    need: Need
    count: int
    buckets: Sequence[int]
    raced: Callable[[int, Sequence[Variant]], dict[Variant, float]]
    doubted: set[TensorType]
    _tried: dict[int, dict[Variant, float]] = field(default_factory=dict)
    _best: dict[int, Variant] = field(default_factory=dict)

    def search(self, bucket: int) -> None:
        """The fastest of all variants, as far as a search finds it."""
        extent, abilities, splits = self.need.extent, self.kernels.abilities, self.need.splits(bucket)
        self._tried[bucket] = search(
            starts(self.kernels, extent, bucket, splits),
            lambda variant: neighbours(variant, extent, bucket, abilities, splits),
            lambda variants: self._race(bucket, variants),
        )
        self._best[bucket] = choose(self._tried[bucket], self._usual(bucket))

    def pipeline(self, bucket: int) -> Variant | None:
        """What was found best, if it takes matrices, whatever its splits, which are no part of a pipeline."""
        best = self._best.get(bucket)
        return replace(best, splits=1) if best is not None and _takes_matrices(best) else None

    def compare(self, bucket: int, pipelines: Iterable[Variant]) -> dict[Variant, float]:
        """Seconds by each pipeline, with its best splits; infinity where it may not be used."""
        splits = {self._best[bucket].splits, self._usual(bucket).splits, 1}
        found = [replace(pipeline, splits=count) for pipeline in pipelines for count in sorted(splits)]
        self._tried[bucket] = self._race(bucket, self._allowed(bucket, [*found, *self._needed(bucket)]))
        return {
            pipeline: min((taken for each, taken in self._tried[bucket].items() if _same(each, pipeline)), default=inf)
            for pipeline in pipelines
        }

    def adopt(self, bucket: int, pipeline: Variant) -> None:
        """One of those compared."""
        tried = self._tried[bucket].items()
        self._best[bucket] = fastest({each: seconds for each, seconds in tried if _same(each, pipeline)})

    def settle(self, end: float) -> None:
        """All buckets, until that time (`time.perf_counter`), by what did well beside them. From more rows to fewer:
        where more took less time, fewer do as they do; and what takes matrices does as the next anchor does, so that
        all sizes of matrices have one pipeline there, too.
        """
        for bucket in ANCHORS:
            if (self.need.extent, bucket) in self.kernels.table:
                self._best[bucket] = self.kernels.table[self.need.extent, bucket]
        for bucket in sorted(self.buckets, reverse=True):
            if time.perf_counter() > end:
                return
            if self.pipeline(bucket) is not None:
                continue
            usual = self._usual(bucket)
            above = self._best.get(min((each for each in ANCHORS if each > bucket), default=bucket))
            if above is not None and _takes_matrices(above) and _takes_matrices(usual):
                self._tried[bucket] = times = self._race(bucket, self._allowed(bucket, [above, *self._needed(bucket)]))
                self._best[bucket] = above if times.get(above, inf) < inf else choose(times, usual)
                continue
            options = self._options(bucket)
            if not self._tried.get(bucket, {}).keys() >= set(options):
                self._tried[bucket] = self._race(bucket, options)
            self._best[bucket] = choose(self._tried[bucket], usual)

    def choices(self) -> dict[int, Choice]:
        """By bucket: of those that something was measured for."""
        extent, need = self.need.extent, self.need
        return {
            bucket: Choice(
                extent.type.name,
                extent.outputs,
                extent.columns,
                need.single,
                bucket,
                need.measured(bucket),
                self._best[bucket],
                times[self._best[bucket]],
                times.get(self._usual(bucket), times[self._best[bucket]]),
            )
            for bucket, times in self._tried.items()
        }

    def _options(self, bucket: int) -> list[Variant]:
        """What this bucket's kernel may be, as far as is known: the rules', the best so far, and those of the nearest
        anchors.
        """
        beside = [self._best[other] for other in _beside(bucket, [each for each in ANCHORS if each in self._best])]
        found = [*self._needed(bucket), *(for_bucket(variant, bucket) for variant in beside)]
        if bucket in self._best:
            found.append(self._best[bucket])
        return self._allowed(bucket, found)

    def _needed(self, bucket: int) -> list[Variant]:
        """The rules' kernel, and what others must agree with where sums keep an order."""
        few = [self.kernels.few_rule(self.need.extent, bucket)] if self.kernels.abilities.deterministic else []
        return [self._usual(bucket), *few]

    def _allowed(self, bucket: int, variants: Iterable[Variant]) -> list[Variant]:
        extent, abilities, splits = self.need.extent, self.kernels.abilities, self.need.splits(bucket)
        return [each for each in dict.fromkeys(variants) if allowed(each, extent, abilities, splits)]

    def _race(self, bucket: int, variants: Sequence[Variant]) -> dict[Variant, float]:
        times = self.raced(self.need.measured(bucket), variants)
        self._note_proofs(times)
        usual_is_few = self._usual(bucket).shader in FEW
        return {
            variant: seconds + (_FUSING if usual_is_few and variant.shader not in FEW else 0.0)
            for variant, seconds in times.items()
        }

    def _note_proofs(self, times: dict[Variant, float]) -> None:
        """Which types matrices may multiply with where nothing is measured: all that were tried kept their order."""
        tried = [seconds for variant, seconds in times.items() if variant.shader == BYTES]
        if inf in tried:
            self.doubted.add(self.need.extent.type)
        if tried:
            self.kernels.proved.add(self.need.extent.type)
        self.kernels.proved.difference_update(self.doubted)

    def _usual(self, bucket: int) -> Variant:
        usual = self.kernels.rule(self.need.extent, bucket)
        return replace(usual, splits=1) if self.need.single else usual


def share_pipelines(trials: Sequence[Trial], bucket: int) -> None:
    """One pipeline with matrices for all sizes of a type, where each had found its own: a step takes them one after
    another, and their code is large, so what comes between finds its own code gone from the GPU's caches.
    """
    groups: dict[tuple[TensorType, int], list[tuple[Trial, Variant]]] = {}
    for trial in trials:
        pipeline = trial.pipeline(bucket)
        if pipeline is not None:
            extent = trial.need.extent
            share = extent.share if trial.kernels.abilities.deterministic else 0
            groups.setdefault((extent.type, share), []).append((trial, pipeline))
    for group in groups.values():
        if len({pipeline for _, pipeline in group}) == 1:
            continue
        first, _ = group[0]
        usual = replace(first.kernels.rule(first.need.extent, bucket), splits=1)
        found = [pipeline for _, pipeline in group]
        pipelines = list(dict.fromkeys([usual, *found] if _takes_matrices(usual) else found))
        compared = [(trial, trial.compare(bucket, pipelines)) for trial, _ in group]
        sums = {pipeline: sum(trial.count * times[pipeline] for trial, times in compared) for pipeline in pipelines}
        best = choose(sums, usual)
        if sums[best] < inf:
            for trial, _ in group:
                trial.adopt(bucket, best)


def _takes_matrices(variant: Variant) -> bool:
    return variant.shader in (FLOATS, BYTES)


def _same(variant: Variant, pipeline: Variant) -> bool:
    return replace(variant, splits=1) == pipeline


def starts(kernels: Kernels, extent: Extent, bucket: int, splits: int) -> list[Variant]:
    """One of each kernel that may multiply with such a matrix, the rules' first."""
    abilities = kernels.abilities
    found = [kernels.rule(extent, bucket), kernels.few_rule(extent, bucket)]
    if bucket >= _TILED_ROWS:
        found += kernels.matrix_rules(extent, bucket) or [tiled(abilities, extent.type)]
    found = [replace(each, splits=min(each.splits, splits)) for each in found]
    return [each for each in dict.fromkeys(found) if allowed(each, extent, abilities, splits)]


def _beside(bucket: int, anchors: Sequence[int]) -> list[int]:
    """The nearest of them below and above."""
    below = max((anchor for anchor in anchors if anchor < bucket), default=None)
    above = min((anchor for anchor in anchors if anchor > bucket), default=None)
    return [each for each in (below, above) if each is not None]
