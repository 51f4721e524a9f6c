"""Whole token sequences through an executor, for every position's logits: prompts in chunks, then one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tandem.devices.base import Device, Float32Array
from tandem.devices.batch import Batch
from tandem.memory.plan import PAGE_SIZE, Limits, Planner
from tandem.models.load import block_weights
from tandem.models.open import model_spec
from tandem.pipeline.executor import Executor
from tandem.pipeline.notation import parse_placement
from tandem.weights.open import open_checkpoint
from tandem.weights.tensor import Tensor


def placed(model: Path, text: str, devices: Mapping[str, Device], limits: Limits) -> Executor:
    """A model on devices of any names; only those that the placement names are given to the executor."""
    checkpoint = open_checkpoint(str(model))
    spec = model_spec(checkpoint)

    def weights(index: int) -> Mapping[str, Tensor]:
        return block_weights(checkpoint, spec, index)

    placement = parse_placement(text, spec, weights)
    used = {name: devices[name] for name in placement.names}
    planner = Planner(spec, placement.stages(), used, weights, micro_batches=placement.micro_batches)
    return Executor(spec, planner.plan(limits, limits.context * limits.sequences), placement, used, weights)


def forced(executor: Executor, stories: Sequence[Sequence[int]], *, chunk: int, decode: int) -> Float32Array:
    """[positions of all stories, vocab]: all stories at once, all but their last `decode` tokens in chunks."""
    plan = executor.plan
    batch = Batch(plan.layout)
    done = [0] * len(stories)
    parts: list[list[Float32Array]] = [[] for _ in stories]
    while any(at < len(story) for at, story in zip(done, stories, strict=True)):
        left = plan.limits.rows
        work: list[tuple[int, int]] = []
        for index, story in enumerate(stories):
            count = min(chunk, max(len(story) - decode - done[index], 1), len(story) - done[index], left)
            if count > 0:
                work.append((index, count))
                left -= count
        _fill(batch, executor, stories, done, work)
        logits = executor.submit(batch).wait()
        at = 0
        for index, count in work:
            parts[index].append(logits[at : at + count].copy())
            at += count
            done[index] += count
    return np.concatenate([part for each in parts for part in each])


def _fill(
    batch: Batch,
    executor: Executor,
    stories: Sequence[Sequence[int]],
    done: Sequence[int],
    work: Sequence[tuple[int, int]],
) -> None:
    """Every row sampled; a sequence's pages lie in a ring of as many as it may have at a time."""
    row = page = 0
    for at, (index, count) in enumerate(work):
        start, stop = done[index], done[index] + count
        batch.rows[row : row + count] = [(at, position, stories[index][position], 0) for position in range(start, stop)]
        batch.sequences[at, :4] = (row, count, stop, index)
        for group, planned in enumerate(executor.plan.groups):
            window, ring = planned.group.window, planned.sequence_pages
            first = 0 if window is None else max(0, start - window + 1) // PAGE_SIZE
            last = -(-stop // PAGE_SIZE)
            batch.sequences[at, 4 + 2 * group :][:2] = (page, first)
            batch.pages[page : page + last - first] = [index * ring + p % ring for p in range(first, last)]
            page += last - first
        row += count
    batch.samples[:row, 0] = range(row)
    batch.samples[:row, 1] = 0
    batch.set_counts(row, len(work), row)
