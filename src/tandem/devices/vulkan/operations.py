"""Blocks as dispatches: which shader computes what from where to where."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tandem.devices.spec import AttentionSpec, CombineSpec, EmbedSpec, FFNSpec, HeadSpec, NormSpec
from tandem.devices.vulkan.blocks import VulkanBlock
from tandem.devices.vulkan.dispatch import (
    LANES,
    MAX_SPLITS,
    NONE,
    ROW_LANES,
    SPLIT_ROWS,
    Dispatch,
    Grid,
    Use,
    push,
)
from tandem.devices.vulkan.kv import VulkanKVPool
from tandem.devices.vulkan.memory import View
from tandem.devices.vulkan.products import Kernels, products
from tandem.devices.vulkan.profile import block_label
from tandem.devices.vulkan.workspace import Workspace, padded

# What quantize.glsl makes of a row.
_AS_FLOAT, _AS_BYTES = 1, 2
# Queries of a workgroup of attention.comp at most: what its shared memory and registers hold.
_QUERIES = 16
# Of the queries of a workgroup of attention_split.comp, at most.
_QUERY_ELEMENTS = 2048


@dataclass(frozen=True, slots=True)
class Places:
    """What a program's blocks work on. rows: of `hidden` and of each slice in `partials`; batch_rows: of the largest
    step.

    row_bucket, sample_bucket: no step that this is for has more rows or samples.
    """

    workspace: Workspace
    step: View
    hidden: View
    logits: View
    partials: View
    slots: View
    slot_count: int
    rows: int
    batch_rows: int
    row_bucket: int
    sample_bucket: int
    kernels: Kernels


@dataclass(frozen=True, slots=True)
class Addend:
    """What is to be added to the residual stream: the sum of `count` parts, biased and normalized; norm.comp does it
    together with the norm that follows.
    """

    block: VulkanBlock
    parts: View
    count: int
    stride: int
    bias: str | None
    post_norm: NormSpec | None


def program_dispatches(
    blocks: Sequence[VulkanBlock], places: Places, pools: Mapping[int, VulkanKVPool]
) -> Iterator[Dispatch]:
    """The dispatches of consecutive blocks. `pools`: by layer."""
    addend: Addend | None = None
    for block in blocks:
        work = block.work
        if addend is not None and not isinstance(work, AttentionSpec | FFNSpec):
            yield from _labelled(addend.block, [_norm(addend.block, places, None, 0, addend)])
            addend = None
        match work:
            case EmbedSpec():
                yield from _labelled(block, _embed(work, block, places))
            case AttentionSpec():
                yield from _labelled(block, _attention(work, block, places, pools[work.layer], addend))
                addend = _output_addend(block, places, "o_bias", work.post_norm)
            case FFNSpec():
                yield from _labelled(block, _ffn(work, block, places, addend))
                addend = _output_addend(block, places, None, work.post_norm)
            case CombineSpec():
                stride = places.rows * work.hidden
                addend = Addend(block, places.partials, work.slices, stride, "bias", work.post_norm)
            case HeadSpec():
                yield from _labelled(block, _head(work, block, places))
    if addend is not None:
        yield from _labelled(addend.block, [_norm(addend.block, places, None, 0, addend)])


def _labelled(block: VulkanBlock, dispatches: Iterable[Dispatch]) -> Iterator[Dispatch]:
    label = block_label(block.work)
    return (replace(each, block=label) for each in dispatches)


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
    outputs = _outputs(block, "output", places, places.sample_bucket)
    yield _norm(block, places, spec.norm, outputs, None, sampled=True)
    softcap = float(spec.softcap or 0)
    yield from _product(block, "output", places, "normed", places.logits, spec.vocab, sampled=True, softcap=softcap)


def _attention(
    spec: AttentionSpec, block: VulkanBlock, places: Places, pool: VulkanKVPool, addend: Addend | None
) -> Iterator[Dispatch]:
    qkv, splits = places.workspace.view("qkv"), places.workspace.view("splits")
    yield _norm(block, places, spec.norm, _outputs(block, "qkv", places), addend)
    parts, width = _splits(block, "qkv", places), (spec.heads + 2 * spec.kv_heads) * spec.head_dim
    yield from _product(block, "qkv", places, "normed", qkv, width, splits=parts)
    shape = (pool.group.index, spec.kv_heads, pool.group.page_size, pool.chunk_pages)
    pages = pool.chunks(spec.layer)
    assert block.vectors is not None
    at = block.vectors.at
    eps = float(spec.qk_norm.eps) if spec.qk_norm else 0.0
    values = (
        *shape,
        spec.heads,
        at.get("q_bias", NONE),
        at.get("q_norm", NONE),
        at.get("k_norm", NONE),
        eps,
        eps,
        at.get("frequencies", 0),
        spec.rope.dims if spec.rope else 0,
        int(spec.rope is not None and spec.rope.layout == "interleaved"),
        parts[1],
    )
    uses = [Use(0, places.step), Use(1, qkv, "both"), Use(2, block.vectors.view)]
    uses += [Use(3 + index, view, "both") for index, view in enumerate(pages)]
    yield Dispatch(
        "heads", (LANES, *pool.constants, parts[0]), tuple(uses), push(*values), Grid(spec.heads + 2 * spec.kv_heads)
    )
    split = places.row_bucket <= SPLIT_ROWS
    slots, window = MAX_SPLITS if split else 1, spec.window or 0
    heads = heads_together(spec.heads // spec.kv_heads, spec.head_dim if split else 0)
    uses = [Use(0, places.step), Use(1, qkv), Use(2, splits, "write" if split else "both")]
    uses += [Use(3 + index, view) for index, view in enumerate(pages)]
    reach = push(*shape, spec.heads, slots, window, float(spec.scale), float(spec.softcap or 0))
    if split:
        # Keys at once: what fits into shared memory beside the queries.
        lanes = ROW_LANES if heads <= 4 else ROW_LANES // 2
        grid = Grid(spec.heads // heads, splits=window)
        yield Dispatch("attention_split", (lanes, *pool.constants, heads), tuple(uses), reach, grid)
    else:
        # Two times 64 lanes share the queries.
        rows = _QUERIES // heads // 2 * 2
        grid = Grid(spec.heads // heads, rows, each=True)
        yield Dispatch("attention", (2 * LANES, *pool.constants, heads, rows), tuple(uses), reach, grid)
    outputs, width = _outputs(block, "o", places), spec.heads * spec.head_dim
    uses = [Use(0, places.step), Use(1, splits), *_targets(places, "attended", outputs)]
    merged = (spec.heads, spec.head_dim, slots, window, outputs)
    yield Dispatch("combine", (ROW_LANES,), tuple(uses), push(*merged), Grid(_groups(padded(width) // 4, ROW_LANES)))
    yield from _output(block, "o", places, "attended")


def heads_together(group: int, head_dim: int) -> int:
    """Query heads of one KV head that a workgroup of attention takes, of `group`, so that shared memory holds them."""
    most = min(_QUERIES // 2, _QUERY_ELEMENTS // head_dim) if head_dim else _QUERIES // 2
    return max((count for count in range(1, most + 1) if group % count == 0), default=1)


def _ffn(spec: FFNSpec, block: VulkanBlock, places: Places, addend: Addend | None) -> Iterator[Dispatch]:
    gate_up = places.workspace.view("gate_up")
    yield _norm(block, places, spec.norm, _outputs(block, "gate_up", places), addend)
    parts = _splits(block, "gate_up", places)
    yield from _product(block, "gate_up", places, "normed", gate_up, 2 * spec.ffn, splits=parts)
    outputs = _outputs(block, "down", places)
    uses = (Use(0, places.step), Use(1, gate_up), *_targets(places, "gated", outputs))
    values = (spec.ffn, outputs, int(spec.activation == "gelu_tanh"), parts[1])
    yield Dispatch("gated", (ROW_LANES, parts[0]), uses, push(*values), Grid(_groups(padded(spec.ffn) // 4, ROW_LANES)))
    yield from _output(block, "down", places, "gated")


def _output(block: VulkanBlock, name: str, places: Places, x: str) -> Iterator[Dispatch]:
    """The block's last product: of a slice into its partials."""
    hidden = block.work.hidden
    if block.slice is not None:
        first = block.slice.index * places.rows * hidden
        yield from _product(block, name, places, x, places.partials, hidden, first=first, columns=False)
    else:
        parts = _splits(block, name, places)
        yield from _product(block, name, places, x, places.workspace.view("product"), hidden, splits=parts)


def _output_addend(block: VulkanBlock, places: Places, bias: str | None, post_norm: NormSpec | None) -> Addend | None:
    """What `_output` leaves to be added: of a slice nothing."""
    if block.slice is not None:
        return None
    (name,) = {"o", "down"} & set(block.matrices)
    return Addend(block, places.workspace.view("product"), *_splits(block, name, places), bias, post_norm)


def _norm(
    block: VulkanBlock,
    places: Places,
    norm: NormSpec | None,
    outputs: int,
    addend: Addend | None,
    *,
    sampled: bool = False,
) -> Dispatch:
    """hidden += addend, then its norm for the product that follows; without `norm` only the first."""
    # Something must be bound where nothing is used.
    nothing = places.step
    at = block.vectors.at if block.vectors else {}
    uses = [Use(0, places.step), Use(1, places.hidden, "both" if addend else "read")]
    uses += [Use(2, block.vectors.view if block.vectors else nothing), *_targets(places, "normed", outputs)]
    count = 0
    added: tuple[int | float, ...] = (0, NONE, NONE, 0.0)
    if addend is not None:
        vectors = addend.block.vectors
        places_of = vectors.at if vectors else {}
        post = addend.post_norm
        count = addend.count
        added = (
            addend.stride,
            places_of.get(addend.bias, NONE) if addend.bias else NONE,
            places_of["post_norm"] if post else NONE,
            float(post.eps) if post else 0.0,
        )
        uses += [Use(5, addend.parts), Use(6, vectors.view if vectors else nothing)]
    else:
        uses += [Use(5, nothing), Use(6, nothing)]
    normed = (at["norm"], float(norm.eps)) if norm else (NONE, 0.0)
    values = (block.work.hidden, *added, *normed, int(sampled), outputs)
    width, ats = block.work.hidden, (*added[:3], normed[0])
    whole = width % 4 == 0 and all(at % 4 == 0 for at in ats if at != NONE)
    constants = (ROW_LANES, _groups(padded(width) // 4, ROW_LANES), int(whole), count)
    return Dispatch("norm", constants, tuple(uses), push(*values), Grid(1, sampled=sampled))


def _outputs(block: VulkanBlock, name: str, places: Places, bucket: int | None = None) -> int:
    """In which forms a product wants its rows. bucket: of rows, None for the step's."""
    forms = [places.kernels.forms(matrix, bucket or places.row_bucket) for matrix in block.matrices[name]]
    return (_AS_FLOAT if any(form[0] for form in forms) else 0) | (_AS_BYTES if any(form[1] for form in forms) else 0)


def _targets(places: Places, name: str, outputs: int) -> list[Use]:
    """Where quantize.glsl stores."""
    floats = Use(3, places.workspace.view(name), "write") if outputs & _AS_FLOAT else Use(3, places.step)
    quantized = Use(4, places.workspace.view("quantized"), "write") if outputs & _AS_BYTES else Use(4, places.step)
    return [floats, quantized]


def _splits(block: VulkanBlock, name: str, places: Places) -> tuple[int, int]:
    """How many results a block's product has, to be added, and from one to the next (elements)."""
    matrices = block.matrices[name]
    count = places.kernels.splits(matrices, places.row_bucket)
    return count, min(places.row_bucket, places.batch_rows) * sum(matrix.rows for matrix in matrices)


def _product(
    block: VulkanBlock,
    name: str,
    places: Places,
    x: str,
    y: View,
    stride: int,
    *,
    first: int = 0,
    sampled: bool = False,
    softcap: float = 0.0,
    columns: bool = True,
    splits: tuple[int, int] = (1, 0),
) -> Iterator[Dispatch]:
    """y[:, first : first + outputs] = x W, rows of y `stride` apart. columns: `first` is in a row. splits: as `_splits`
    gives them.
    """
    workspace = places.workspace
    bucket = places.sample_bucket if sampled else places.row_bucket
    for matrix in block.matrices[name]:
        as_float, as_bytes = places.kernels.forms(matrix, bucket)
        quantized = workspace.view("quantized") if as_bytes else places.step
        source = workspace.view(x) if as_float else quantized
        for each in products(places.kernels, matrix, bucket, sampled, splits[0]):
            start = first + each.chunk.first
            written = (start, start + each.chunk.rows) if columns else None
            uses = (
                Use(0, places.step),
                Use(1, each.chunk.view),
                Use(2, source),
                Use(3, y, "write", written),
                Use(4, quantized),
            )
            values = push(*each.values, stride, start, splits[1], int(sampled), softcap)
            yield Dispatch(each.shader, each.constants, uses, values, each.grid)
        first += matrix.rows


def _groups(count: int, size: int) -> int:
    return -(-count // size)
