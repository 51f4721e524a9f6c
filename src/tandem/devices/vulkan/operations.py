"""Blocks as dispatches: which shader computes what from where to where."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from tandem.devices.spec import AttentionSpec, CombineSpec, EmbedSpec, FFNSpec, HeadSpec, NormSpec
from tandem.devices.vulkan.attention import attention
from tandem.devices.vulkan.blocks import VulkanBlock
from tandem.devices.vulkan.dispatch import LANES, ROW_LANES, Dispatch, Grid, Use, groups, push
from tandem.devices.vulkan.kv import VulkanKVPool
from tandem.devices.vulkan.memory import View
from tandem.devices.vulkan.products import Product, gated_product
from tandem.devices.vulkan.profile import block_label
from tandem.devices.vulkan.projections import (
    AS_BYTES,
    AS_FLOAT,
    Addend,
    Places,
    Rows,
    add_and_norm,
    product,
    result_splits,
    wanted_forms,
    wants_bounds,
)
from tandem.devices.vulkan.workspace import padded


def program_dispatches(
    blocks: Sequence[VulkanBlock], places: Places, pools: Mapping[int, VulkanKVPool]
) -> Iterator[Dispatch]:
    """The dispatches of consecutive blocks. `pools`: by layer."""
    addend: Addend | None = None
    for block in blocks:
        work = block.work
        if addend is not None and not isinstance(work, AttentionSpec | FFNSpec):
            yield from add_and_norm(addend.block, places, None, 0, addend)
            addend = None
        match work:
            case EmbedSpec():
                yield from _labelled(block, _embed(work, block, places))
            case AttentionSpec():
                yield from _labelled(block, attention(work, block, places, pools[work.layer], addend))
                yield from _labelled(block, _sliced_output(block, "o", places, Rows.of(places, "attended")))
                addend = _output(block, "o", places, Rows.of(places, "attended"), "o_bias", work.post_norm)
            case FFNSpec():
                yield from _labelled(block, _ffn(work, block, places, addend))
                yield from _labelled(block, _sliced_output(block, "down", places, _gated_rows(block, places)))
                addend = _output(block, "down", places, _gated_rows(block, places), None, work.post_norm)
            case CombineSpec():
                stride = places.rows * work.hidden
                addend = Addend(block, places.partials, work.slices, stride, "bias", work.post_norm)
            case HeadSpec():
                yield from _labelled(block, _head(work, block, places))
    if addend is not None:
        yield from add_and_norm(addend.block, places, None, 0, addend)


def _labelled(block: VulkanBlock, dispatches: Iterable[Dispatch]) -> Iterator[Dispatch]:
    """What has no label yet gets the block's."""
    label = block_label(block.work)
    return (each if each.block else replace(each, block=label) for each in dispatches)


def copy_rows(places: Places, source: View, target: View, width: int) -> Dispatch:
    """Rows of the residual stream from one buffer to another."""
    uses = (Use(0, places.step), Use(1, source), Use(2, target, "write"))
    return Dispatch("copy", (LANES,), uses, push(width), Grid(groups(width, LANES)))


def _embed(spec: EmbedSpec, block: VulkanBlock, places: Places) -> Iterator[Dispatch]:
    (matrix,) = block.matrices["embedding"]
    for chunk in matrix.chunks:
        uses = (Use(0, places.step), Use(1, chunk.view), Use(2, places.hidden, "write"), Use(3, places.slots))
        constants = (LANES, matrix.type.ggml_id)
        values = (matrix.blocks, chunk.first, chunk.rows, matrix.row_words, spec.hidden)
        ends = push(*values, float(spec.scale), places.slot_count)
        yield Dispatch("embed", constants, uses, ends, Grid(1))


def _head(spec: HeadSpec, block: VulkanBlock, places: Places) -> Iterator[Dispatch]:
    outputs = wanted_forms(block, "output", places, places.sample_bucket)
    yield from add_and_norm(block, places, spec.norm, outputs, None, sampled=True)
    softcap, rows = float(spec.softcap or 0), Rows.of(places, "normed")
    yield from product(block, "output", places, rows, places.logits, spec.vocab, sampled=True, softcap=softcap)


def _ffn(spec: FFNSpec, block: VulkanBlock, places: Places, addend: Addend | None) -> Iterator[Dispatch]:
    gelu, outputs = int(spec.activation == "gelu_tanh"), wanted_forms(block, "down", places)
    normed, rows = Rows.of(places, "normed"), _gated_rows(block, places)
    yield from add_and_norm(block, places, spec.norm, wanted_forms(block, "gate_up", places), addend)
    fused = _gated_product(block, places)
    if fused is not None:
        source = normed.floats if fused.shader == "product_gated" else normed.quantized
        made = (Use(0, places.step), Use(1, fused.chunk.view), Use(2, source), rows.target(3, outputs))
        yield Dispatch(fused.shader, fused.constants, made, push(*fused.values, outputs, gelu), fused.grid)
        return
    gate_up, parts = places.workspace.view("gate_up"), result_splits(block, "gate_up", places)
    yield from product(block, "gate_up", places, normed, gate_up, 2 * spec.ffn, splits=parts)
    uses = (Use(0, places.step), Use(1, gate_up), *rows.targets(places, outputs))
    values = (spec.ffn, outputs, gelu, parts[1])
    yield Dispatch("gated", (ROW_LANES, parts[0]), uses, push(*values), Grid(groups(padded(spec.ffn) // 4, ROW_LANES)))


def _gated_product(block: VulkanBlock, places: Places) -> Product | None:
    """Gate, up and activation in one, where the down product takes what that makes: one form, without bounds."""
    if len(block.matrices["gate_up"]) > 1 or wanted_forms(block, "down", places) == AS_FLOAT | AS_BYTES:
        return None
    if wants_bounds(block, "down", places):
        return None
    return gated_product(places.kernels, block.matrices["gate_up"][0], places.row_bucket)


def _gated_rows(block: VulkanBlock, places: Places) -> Rows:
    """Where the down product finds its rows: not where gate and up have theirs, while these may still be read."""
    rows = Rows.of(places, "gated")
    return rows if _gated_product(block, places) is None else replace(rows, quantized=rows.floats)


def _sliced_output(block: VulkanBlock, name: str, places: Places, x: Rows) -> Iterator[Dispatch]:
    """The last product of a slice, into its partials."""
    if block.slice is not None:
        first = block.slice.index * places.rows * block.work.hidden
        yield from product(block, name, places, x, places.partials, block.work.hidden, first=first, columns=False)


def _output(
    block: VulkanBlock, name: str, places: Places, x: Rows, bias: str | None, post_norm: NormSpec | None
) -> Addend | None:
    """The last product of a whole block, and what is to be done with it: of a slice nothing."""
    if block.slice is not None:
        return None
    parts = places.workspace.view("product")
    return Addend(block, parts, *result_splits(block, name, places), bias, post_norm, (name, x))
