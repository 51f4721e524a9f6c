"""Attention as dispatches: from a block's input to the rows that its output product takes."""

from __future__ import annotations

from collections.abc import Iterator

from tandem.devices.spec import AttentionSpec
from tandem.devices.vulkan.blocks import VulkanBlock
from tandem.devices.vulkan.dispatch import (
    LANES,
    MAX_SPLITS,
    NONE,
    ROW_LANES,
    SPLIT_ROWS,
    TEAM,
    Dispatch,
    Grid,
    Use,
    groups,
    push,
)
from tandem.devices.vulkan.kv import VulkanKVPool
from tandem.devices.vulkan.matrices import Vectors
from tandem.devices.vulkan.packing import BLOCK
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
from tandem.devices.vulkan.tiles import AttentionTile, attention_tile
from tandem.devices.vulkan.workspace import TICKETS, padded

# Queries of a workgroup of attention.comp at most: what its shared memory and registers hold.
_QUERIES = 16
# Of the queries of a workgroup of attention_split.comp, at most.
_QUERY_ELEMENTS = 2048


def attention(
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
        yield Dispatch("heads", (TEAM, *pool.constants, parts[0]), tuple(uses), values, grid)
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
    merges = merges and not wants_bounds(block, "o", places)
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
    heads, tile = heads_together(spec.heads // spec.kv_heads, 0), _matrix_tile(spec, places, pool)
    if tile is None:
        # Two times 64 lanes share the queries.
        rows, sizes = _QUERIES // heads // 2 * 2, tuple[int, ...]()
        shader, lanes = "attention", 2 * LANES
    else:
        rows, sizes = tile.queries // heads, tile.sizes
        shader, lanes = "attention_matrix", tile.lanes
    grid = Grid(spec.heads // heads, rows, each=True)
    uses = [Use(0, places.step), Use(1, places.workspace.view("qkv"))]
    uses += [Use(2, places.workspace.view("splits"), "both")]
    uses += [Use(3 + index, view) for index, view in enumerate(pool.chunks(spec.layer))]
    values = push(*_shape(spec, pool), *_reach(spec, 1))
    yield Dispatch(shader, (lanes, *pool.constants, heads, rows, *sizes), tuple(uses), values, grid)
    yield _combine(spec, places, 1, wanted_forms(block, "o", places))


def _matrix_tile(spec: AttentionSpec, places: Places, pool: VulkanKVPool) -> AttentionTile | None:
    """With cooperative matrices, unless the bits must be those of few rows, or pages hold more than float16 does."""
    has = places.kernels.abilities
    if has.deterministic or not has.matrix_shapes or pool.group.dtype == "f32":
        return None
    return attention_tile(has.matrix_shapes[0], spec.head_dim, has.subgroup, has.shared_memory)


def _reach(spec: AttentionSpec, slots: int) -> tuple[int | float, ...]:
    return spec.heads, slots, spec.window or 0, float(spec.scale), float(spec.softcap or 0)


def _combine(spec: AttentionSpec, places: Places, slots: int, outputs: int) -> Dispatch:
    targets = Rows.of(places, "attended").targets(places, outputs)
    uses = (Use(0, places.step), Use(1, places.workspace.view("splits")), *targets)
    values = push(spec.heads, spec.head_dim, slots, spec.window or 0, outputs)
    quads = padded(spec.heads * spec.head_dim) // 4
    return Dispatch("combine", (ROW_LANES,), uses, values, Grid(groups(quads, ROW_LANES)))


def heads_together(group: int, head_dim: int) -> int:
    """Query heads of one KV head that a workgroup of attention takes, of `group`, so that shared memory holds them."""
    most = min(_QUERIES // 2, _QUERY_ELEMENTS // head_dim) if head_dim else _QUERIES // 2
    return max((count for count in range(1, most + 1) if group % count == 0), default=1)
