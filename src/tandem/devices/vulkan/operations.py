"""Blocks as dispatches: which shader computes what from where to where."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from tandem.devices.spec import AttentionSpec, CombineSpec, EmbedSpec, FFNSpec, HeadSpec, NormSpec
from tandem.devices.vulkan.blocks import VulkanBlock
from tandem.devices.vulkan.dispatch import LANES, MAX_SPLITS, NONE, ROW_LANES, SPLIT_ROWS, Dispatch, Grid, Use, push
from tandem.devices.vulkan.kv import VulkanKVPool
from tandem.devices.vulkan.matrices import Vectors
from tandem.devices.vulkan.memory import View
from tandem.devices.vulkan.packing import BLOCK
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
)
from tandem.devices.vulkan.workspace import TICKETS, padded

# Queries of a workgroup of attention.comp at most: what its shared memory and registers hold.
_QUERIES = 16
# Of the queries of a workgroup of attention_split.comp, at most.
_QUERY_ELEMENTS = 2048


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
                yield from _labelled(block, _attention(work, block, places, pools[work.layer], addend))
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
    return Dispatch("copy", (LANES,), uses, push(width), Grid(_groups(width, LANES)))


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


def _attention(
    spec: AttentionSpec, block: VulkanBlock, places: Places, pool: VulkanKVPool, addend: Addend | None
) -> Iterator[Dispatch]:
    qkv, normed = places.workspace.view("qkv"), Rows.of(places, "normed")
    yield from add_and_norm(block, places, spec.norm, wanted_forms(block, "qkv", places), addend)
    parts, width = result_splits(block, "qkv", places), (spec.heads + 2 * spec.kv_heads) * spec.head_dim
    yield from product(block, "qkv", places, normed, qkv, width, splits=parts)
    alone = _alone(spec, places, pool, parts[0])
    if not alone:
        uses = [Use(0, places.step), Use(1, qkv, "both"), Use(2, _vectors(block).view)]
        uses += [Use(3 + index, view, "both") for index, view in enumerate(pool.chunks(spec.layer))]
        values = push(*_shape(spec, pool), spec.heads) + _heads(spec, block) + push(parts[1])
        grid = Grid(spec.heads + 2 * spec.kv_heads)
        yield Dispatch("heads", (LANES, *pool.constants, parts[0]), tuple(uses), values, grid)
    if places.row_bucket <= SPLIT_ROWS:
        yield from _attend_few(spec, block, places, pool, alone)
    else:
        yield from _attend_many(spec, block, places, pool)


def _shape(spec: AttentionSpec, pool: VulkanKVPool) -> tuple[int, ...]:
    """KvShape of kv.glsl."""
    return pool.group.index, spec.kv_heads, pool.group.page_size, pool.chunk_pages


def _heads(spec: AttentionSpec, block: VulkanBlock) -> bytes:
    """Heads of heads.glsl."""
    at, rope = _vectors(block).at, spec.rope
    norms = (at.get("q_norm", NONE), at.get("k_norm", NONE))
    eps = float(spec.qk_norm.eps) if spec.qk_norm else 0.0
    turns = (at.get("frequencies", 0), rope.dims if rope else 0, int(rope is not None and rope.layout == "interleaved"))
    return push(at.get("q_bias", NONE), *norms, eps, eps, *turns)


def _vectors(block: VulkanBlock) -> Vectors:
    assert block.vectors is not None
    return block.vectors


def _alone(spec: AttentionSpec, places: Places, pool: VulkanKVPool, results: int) -> bool:
    """Whether attention does what heads.comp would: nobody else needs what it makes of a row's own key and value. Where
    pages have one binding, so that there is one for the vectors.
    """
    group = spec.heads // spec.kv_heads
    together = heads_together(group, spec.head_dim) == group
    return places.single and places.row_bucket <= SPLIT_ROWS and results == 1 and together and pool.constants[2] == 1


def _attend_few(
    spec: AttentionSpec, block: VulkanBlock, places: Places, pool: VulkanKVPool, alone: bool
) -> Iterator[Dispatch]:
    """From queries and pages to the rows that the output product takes, the splits of a row's keys side by side. alone:
    see `_alone`.
    """
    workspace, outputs = places.workspace, wanted_forms(block, "o", places)
    attended, heads = Rows.of(places, "attended"), heads_together(spec.heads // spec.kv_heads, spec.head_dim)
    # It merges its splits, too, where they are whole blocks of one form, whose bounds nobody asks for.
    merges = heads * spec.head_dim % BLOCK == 0 and outputs in (AS_FLOAT, AS_BYTES)
    merges = merges and not _wants_bounds(block, "o", places)
    merges = merges and places.row_bucket * spec.heads // heads <= TICKETS
    pages = [Use(3 + index, view, "both" if alone else "read") for index, view in enumerate(pool.chunks(spec.layer))]
    values = push(*_shape(spec, pool), *_reach(spec, MAX_SPLITS), outputs if merges else 0)
    if alone:
        pages[3] = Use(6, _vectors(block).view)
        values += _heads(spec, block)
    uses = (
        Use(0, places.step),
        Use(1, workspace.view("qkv")),
        Use(2, workspace.ticketed("splits"), "both"),
        *pages,
        attended.target(7, outputs) if merges else Use(7, places.step),
    )
    # Keys at once: what fits into shared memory beside the queries.
    lanes = ROW_LANES if heads <= 4 else ROW_LANES // 2
    grid = Grid(spec.heads // heads, splits=spec.window or 0)
    yield Dispatch("attention_row" if alone else "attention_split", (lanes, *pool.constants, heads), uses, values, grid)
    if not merges:
        yield _combine(spec, places, MAX_SPLITS, outputs)


def _attend_many(spec: AttentionSpec, block: VulkanBlock, places: Places, pool: VulkanKVPool) -> Iterator[Dispatch]:
    """As `_attend_few`, the splits one after another."""
    heads = heads_together(spec.heads // spec.kv_heads, 0)
    # Two times 64 lanes share the queries.
    rows = _QUERIES // heads // 2 * 2
    grid = Grid(spec.heads // heads, rows, each=True)
    uses = [Use(0, places.step), Use(1, places.workspace.view("qkv"))]
    uses += [Use(2, places.workspace.view("splits"), "both")]
    uses += [Use(3 + index, view) for index, view in enumerate(pool.chunks(spec.layer))]
    values = push(*_shape(spec, pool), *_reach(spec, 1))
    yield Dispatch("attention", (2 * LANES, *pool.constants, heads, rows), tuple(uses), values, grid)
    yield _combine(spec, places, 1, wanted_forms(block, "o", places))


def _reach(spec: AttentionSpec, slots: int) -> tuple[int | float, ...]:
    return spec.heads, slots, spec.window or 0, float(spec.scale), float(spec.softcap or 0)


def _combine(spec: AttentionSpec, places: Places, slots: int, outputs: int) -> Dispatch:
    targets = Rows.of(places, "attended").targets(places, outputs)
    uses = (Use(0, places.step), Use(1, places.workspace.view("splits")), *targets)
    values = push(spec.heads, spec.head_dim, slots, spec.window or 0, outputs)
    quads = padded(spec.heads * spec.head_dim) // 4
    return Dispatch("combine", (ROW_LANES,), uses, values, Grid(_groups(quads, ROW_LANES)))


def _wants_bounds(block: VulkanBlock, name: str, places: Places) -> bool:
    return any(places.kernels.wants_bounds(matrix, places.row_bucket) for matrix in block.matrices[name])


def heads_together(group: int, head_dim: int) -> int:
    """Query heads of one KV head that a workgroup of attention takes, of `group`, so that shared memory holds them."""
    most = min(_QUERIES // 2, _QUERY_ELEMENTS // head_dim) if head_dim else _QUERIES // 2
    return max((count for count in range(1, most + 1) if group % count == 0), default=1)


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
    yield Dispatch("gated", (ROW_LANES, parts[0]), uses, push(*values), Grid(_groups(padded(spec.ffn) // 4, ROW_LANES)))


def _gated_product(block: VulkanBlock, places: Places) -> Product | None:
    """Gate, up and activation in one, where the down product takes what that makes: one form, without bounds."""
    if len(block.matrices["gate_up"]) > 1 or wanted_forms(block, "down", places) == AS_FLOAT | AS_BYTES:
        return None
    if _wants_bounds(block, "down", places):
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


def _groups(count: int, size: int) -> int:
    return -(-count // size)
