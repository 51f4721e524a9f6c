"""Blocks as dispatches: which shader computes what from where to where."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tandem.devices.spec import AttentionSpec, CombineSpec, EmbedSpec, FFNSpec, HeadSpec, NormSpec
from tandem.devices.vulkan.blocks import VulkanBlock
from tandem.devices.vulkan.dispatch import LANES, NONE, Dispatch, Grid, Use, push
from tandem.devices.vulkan.kv import VulkanKVPool
from tandem.devices.vulkan.matrices import GROUP_OUTPUTS, Matrix
from tandem.devices.vulkan.memory import View
from tandem.devices.vulkan.workspace import Workspace, padded, quantized_words

# Rows that a float32 product takes at once; more would not fit the registers.
FLOAT_ROWS = 8


@dataclass(frozen=True, slots=True)
class Places:
    """What a program's blocks work on. rows: of `hidden` and of each slice in `partials`.

    row_tile, sample_tile: rows and samples that a product takes at once.
    """

    workspace: Workspace
    step: View
    hidden: View
    logits: View
    partials: View
    slots: View
    slot_count: int
    rows: int
    row_tile: int
    sample_tile: int
    integer_dot: bool


def block_dispatches(block: VulkanBlock, places: Places, pool: VulkanKVPool | None) -> Iterator[Dispatch]:
    """The dispatches of one block, in order. `pool`: of an attention block."""
    match block.work:
        case EmbedSpec() as spec:
            yield from _embed(spec, block, places)
        case AttentionSpec() as spec:
            assert pool is not None
            yield from _attention(spec, block, places, pool)
        case FFNSpec() as spec:
            yield from _ffn(spec, block, places)
        case CombineSpec() as spec:
            stride = places.rows * spec.hidden
            yield _residual(block, places, places.partials, spec.slices, stride, "bias", spec.post_norm)
        case HeadSpec() as spec:
            normed = places.workspace.view("normed", spec)
            yield _norm(block, places, spec.norm, normed, sampled=True)
            yield from _quantize(block, ("output",), places, normed, sampled=True)
            yield from _product(
                block,
                "output",
                places,
                normed,
                places.logits,
                spec.vocab,
                sampled=True,
                softcap=float(spec.softcap or 0),
            )


def copy_rows(places: Places, source: View, target: View, width: int) -> Dispatch:
    """Rows of the residual stream from one buffer to another."""
    uses = (Use(0, places.step), Use(1, source), Use(2, target, "write"))
    return Dispatch("copy", (LANES,), uses, push(width), Grid(_groups(width, LANES)))


def _embed(spec: EmbedSpec, block: VulkanBlock, places: Places) -> Iterator[Dispatch]:
    matrix = block.matrices["embedding"]
    for chunk in matrix.chunks:
        uses = (Use(0, places.step), Use(1, chunk.view), Use(2, places.hidden, "write"), Use(3, places.slots))
        constants = (LANES, matrix.type.ggml_id)
        values = (matrix.blocks, chunk.first, chunk.rows, matrix.row_words, spec.hidden)
        ends = push(*values, float(spec.scale), places.slot_count)
        yield Dispatch("embed", constants, uses, ends, Grid(1))


def _attention(spec: AttentionSpec, block: VulkanBlock, places: Places, pool: VulkanKVPool) -> Iterator[Dispatch]:
    normed, qkv, attended = (places.workspace.view(name, spec) for name in ("normed", "qkv", "attended"))
    yield _norm(block, places, spec.norm, normed)
    width = (spec.heads + 2 * spec.kv_heads) * spec.head_dim
    first = 0
    yield from _quantize(block, ("q", "k", "v"), places, normed)
    for role in ("q", "k", "v"):
        yield from _product(block, role, places, normed, qkv, width, first=first)
        first += block.matrices[role].rows
    constants = (LANES, spec.head_dim, int(pool.group.dtype == "f32"))
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
    )
    uses = [Use(0, places.step), Use(1, qkv, "both"), Use(2, block.vectors.view)]
    uses += [Use(3 + index, view, "both") for index, view in enumerate(pages)]
    yield Dispatch("heads", constants, tuple(uses), push(*values), Grid(spec.heads + 2 * spec.kv_heads))
    uses = [Use(0, places.step), Use(1, qkv), Use(2, attended, "write")]
    uses += [Use(3 + index, view) for index, view in enumerate(pages)]
    stride = padded(spec.heads * spec.head_dim)
    reach = (*shape, spec.heads, stride, spec.window or 0, float(spec.scale), float(spec.softcap or 0))
    yield Dispatch("attention", constants, tuple(uses), push(*reach), Grid(spec.heads))
    yield from _output(block, "o", places, attended, "o_bias", spec.post_norm)


def _ffn(spec: FFNSpec, block: VulkanBlock, places: Places) -> Iterator[Dispatch]:
    normed, gate_up, gated = (places.workspace.view(name, spec) for name in ("normed", "gate_up", "gated"))
    yield _norm(block, places, spec.norm, normed)
    yield from _quantize(block, ("gate", "up"), places, normed)
    yield from _product(block, "gate", places, normed, gate_up, 2 * spec.ffn)
    yield from _product(block, "up", places, normed, gate_up, 2 * spec.ffn, first=spec.ffn)
    uses = (Use(0, places.step), Use(1, gate_up), Use(2, gated, "write"))
    values = (spec.ffn, padded(spec.ffn), int(spec.activation == "gelu_tanh"))
    yield Dispatch("gated", (LANES,), uses, push(*values), Grid(_groups(spec.ffn, LANES)))
    yield from _output(block, "down", places, gated, None, spec.post_norm)


def _output(
    block: VulkanBlock, role: str, places: Places, x: View, bias: str | None, post_norm: NormSpec | None
) -> Iterator[Dispatch]:
    """The block's last product: added to the residual stream, or for a slice put bare into its partials."""
    hidden = block.work.hidden
    yield from _quantize(block, (role,), places, x)
    if block.slice is not None:
        first = block.slice.index * places.rows * hidden
        yield from _product(block, role, places, x, places.partials, hidden, first=first, columns=False)
        return
    product = places.workspace.view("product", block.work)
    yield from _product(block, role, places, x, product, hidden)
    yield _residual(block, places, product, 1, 0, bias, post_norm)


def _norm(block: VulkanBlock, places: Places, norm: NormSpec, normed: View, *, sampled: bool = False) -> Dispatch:
    assert block.vectors is not None
    hidden = block.work.hidden
    uses = (Use(0, places.step), Use(1, places.hidden), Use(2, block.vectors.view), Use(3, normed, "write"))
    values = (hidden, padded(hidden), block.vectors.at["norm"], int(sampled), float(norm.eps))
    return Dispatch("norm", (LANES,), uses, push(*values), Grid(1, sampled=sampled))


def _residual(
    block: VulkanBlock,
    places: Places,
    parts: View,
    count: int,
    stride: int,
    bias: str | None,
    post_norm: NormSpec | None,
) -> Dispatch:
    # A block without vectors of its own still binds something there.
    vectors = block.vectors.view if block.vectors else places.step
    at = block.vectors.at if block.vectors else {}
    values = (
        block.work.hidden,
        count,
        stride,
        at.get(bias, NONE) if bias else NONE,
        at["post_norm"] if post_norm else NONE,
        float(post_norm.eps) if post_norm else 0.0,
    )
    uses = (Use(0, places.step), Use(1, parts), Use(2, vectors), Use(3, places.hidden, "both"))
    return Dispatch("residual", (LANES,), uses, push(*values), Grid(1))


def _integer(matrix: Matrix, places: Places) -> bool:
    """Whether a product takes 8-bit activations: with quantized weights, where the device has integer dots."""
    return places.integer_dot and matrix.type.block > 1


def _quantize(
    block: VulkanBlock, roles: tuple[str, ...], places: Places, x: View, *, sampled: bool = False
) -> Iterator[Dispatch]:
    """Makes the rows of x 8-bit, if the product of one of the roles wants them so."""
    matrices = [block.matrices[role] for role in roles if _integer(block.matrices[role], places)]
    if matrices:
        blocks, columns = matrices[0].blocks, matrices[0].columns
        target = places.workspace.view("quantized", block.work)
        uses = (Use(0, places.step), Use(1, x), Use(2, target, "write"))
        values = (blocks, quantized_words(columns), int(sampled))
        yield Dispatch("quantize", (LANES,), uses, push(*values), Grid(_groups(blocks, LANES), sampled=sampled))


def _product(
    block: VulkanBlock,
    role: str,
    places: Places,
    x: View,
    y: View,
    stride: int,
    *,
    first: int = 0,
    sampled: bool = False,
    softcap: float = 0.0,
    columns: bool = True,
) -> Iterator[Dispatch]:
    """y[:, first : first + outputs] = x W for the role's W, rows of y `stride` apart. columns: `first` is in a row."""
    matrix = block.matrices[role]
    tile = places.sample_tile if sampled else places.row_tile
    shader, x_stride = "product", matrix.blocks * 8
    if not _integer(matrix, places):
        tile = min(tile, FLOAT_ROWS)
    else:
        shader, x_stride = "product_int", quantized_words(matrix.columns)
        x = places.workspace.view("quantized", block.work)
    for chunk in matrix.chunks:
        start = first + chunk.first
        written = (start, start + chunk.rows) if columns else None
        uses = (Use(0, places.step), Use(1, chunk.view), Use(2, x), Use(3, y, "write", written))
        values = (
            matrix.blocks,
            chunk.rows,
            matrix.row_words,
            x_stride,
            stride,
            start,
            int(sampled),
            float(softcap),
        )
        grid = Grid(_groups(chunk.rows, GROUP_OUTPUTS), tile, sampled)
        yield Dispatch(shader, (LANES, matrix.type.ggml_id, tile), uses, push(*values), grid)


def _groups(count: int, size: int) -> int:
    return -(-count // size)
