"""What a GPU must never see: a batch whose rows, pages or samples point outside what a program was linked with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tandem._native import MAX_CANDIDATES
from tandem.devices.batch import Batch
from tandem.devices.candidates import TAKES_SLOT, CandidateBuffers
from tandem.devices.vulkan.kv import VulkanKVPool
from tandem.errors import DeviceError


def check_batch(
    batch: Batch, rows: int, samples: int, vocab: int | None, slots: int, pools: Sequence[VulkanKVPool]
) -> None:
    """Raises DeviceError, naming what is wrong. vocab: of the program's embedding, if it has one. slots: of tokens."""
    if not 0 <= batch.n_rows <= rows:
        raise DeviceError(f"vulkan: a batch of {batch.n_rows} rows, for a program linked for {rows}")
    if vocab is not None:
        _check_tokens(batch, vocab, slots)
    if pools:
        _check_sequences(batch)
        for pool in pools:
            _check_pages(batch, pool)
    if samples:
        chosen = batch.samples[: batch.n_samples, 0]
        if batch.n_samples > samples:
            raise DeviceError(f"vulkan: {batch.n_samples} samples, for a program linked for {samples}")
        if len(chosen) and (chosen.min() < 0 or chosen.max() >= batch.n_rows):
            raise DeviceError(f"batch: a sample names a row outside the batch's {batch.n_rows}")


def check_asks(asked: CandidateBuffers, batch: Batch, vocab: int, slots: int) -> None:
    """Raises DeviceError for asks that name what is not there."""
    samples = batch.n_samples
    chosen = asked.asks[:samples, 0] != 0
    asks, named = asked.asks[:samples][chosen], batch.samples[:samples, 1][chosen]
    if np.any((asks[:, 1] & TAKES_SLOT != 0) & ((named < 0) | (named >= slots))):
        raise DeviceError(f"asks: a token is to go to a slot outside the {slots} that there are")
    k, mask, first, count = asks[:, 0], asks[:, 3], asks[:, 4], asks[:, 5]
    if np.any((k < 0) | (k > min(MAX_CANDIDATES, vocab))):
        raise DeviceError(f"asks: a row asks for more than {min(MAX_CANDIDATES, vocab)} candidates")
    if np.any((mask < -1) | (mask >= len(asked.masks))):
        raise DeviceError(f"asks: a row names a mask outside the {len(asked.masks)} that there are")
    if np.any((first < 0) | (count < 0) | (first > len(asked.adjustments) - count)):
        raise DeviceError(f"asks: a row names adjustments outside the {len(asked.adjustments)} that there are")
    tokens = asked.adjustments[: asked.used(samples)[0], 0]
    if np.any((tokens < 0) | (tokens >= vocab)):
        raise DeviceError(f"asks: an adjustment names a token outside the vocabulary of {vocab}")


def _check_tokens(batch: Batch, vocab: int, slots: int) -> None:
    tokens = batch.rows[: batch.n_rows, 2]
    if len(tokens) and (tokens.min() < -slots or tokens.max() >= vocab):
        row = int(((tokens < -slots) | (tokens >= vocab)).argmax())
        if tokens[row] < 0:
            raise DeviceError(f"batch: row {row} names token slot {-1 - tokens[row]} of {slots}")
        raise DeviceError(f"batch: row {row} has token {tokens[row]}, the vocabulary has {vocab}")


def _check_sequences(batch: Batch) -> None:
    sequence, position = batch.rows[: batch.n_rows, 0], batch.rows[: batch.n_rows, 1]
    if batch.n_rows and (sequence.min() < 0 or sequence.max() >= batch.n_sequences):
        raise DeviceError(f"batch: a row names a sequence outside the batch's {batch.n_sequences}")
    first, count, length, _ = batch.sequences[: batch.n_sequences, :4].T
    if (np.bincount(sequence, minlength=batch.n_sequences) != count).any():
        raise DeviceError("batch: a sequence has not as many rows as it says")
    start = (length - count - first)[sequence]
    if (length < count).any() or (position != start + np.arange(batch.n_rows)).any():
        raise DeviceError("batch: the positions of a sequence's rows do not end at its length")


def _check_pages(batch: Batch, pool: VulkanKVPool) -> None:
    """Only the pages that the rows attend to: those behind a window may be anything."""
    group, size = pool.group, pool.group.page_size
    what = f"KV group {group.index}: its page table"
    if group.index >= batch.layout.kv_groups:
        raise DeviceError(
            f"batch: it has page tables of {batch.layout.kv_groups} KV groups, not of group {group.index}"
        )
    _, count, length, _ = batch.sequences[: batch.n_sequences, :4].T
    offset, first = batch.sequences[: batch.n_sequences, 4 + 2 * group.index : 6 + 2 * group.index].T
    lowest = np.int32(0) if group.window is None else np.maximum(length - count - (group.window - 1), 0) // size
    start, stop = offset + lowest - first, offset + (length - 1) // size - first + 1
    bad = (count > 0) & ((lowest < first) | (offset < 0) | (stop > len(batch.pages)))
    if bad.any():
        raise DeviceError(f"batch: sequence {bad.argmax()}, {what} does not cover what the sequence attends to")
    entries = np.where(count > 0, stop - start, 0)
    ends = entries.cumsum()
    # Entry i of all that are attended to, sequence after sequence.
    pages = batch.pages[np.arange(ends[-1] if len(ends) else 0) + np.repeat(start - ends + entries, entries)]
    if len(pages) and (pages.min() < 0 or pages.max() >= pool.pages):
        entry = ((pages < 0) | (pages >= pool.pages)).argmax()
        raise DeviceError(
            f"batch: sequence {np.searchsorted(ends, entry, side='right')}, {what} names page {pages[entry]} of a pool "
            f"with {pool.pages}"
        )
