"""Variants of a product: every way in which a kernel of ours may multiply with a matrix, and what bounds them.

What may be chosen is what `allowed` says: tuning looks nowhere else, and what was kept is held against it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace as resized
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from tandem.devices.vulkan.context import INVOCATIONS, Size
from tandem.devices.vulkan.matrices import GROUP_OUTPUTS
from tandem.devices.vulkan.packing import blocks_of
from tandem.devices.vulkan.tiles import FEW_ROWS, MOST_ROWS, MOST_SPLITS, MatrixTile
from tandem.weights.tensor import TensorType

# Lanes of a workgroup of product.comp and product_int.comp, and how many share an output: more where few outputs have
# long sums, for which the GPU would otherwise have too little to do at once.
SHARED, THIN = (128, 16), (256, 64)
_THIN_OUTPUTS, _LONG_BLOCKS = 8192, 32
# The shaders with cooperative matrices, of float16 and of bytes.
FLOATS, BYTES = "product_matrix", "product_matrix_int8"
# Those that take few rows at once.
FEW = ("product", "product_int")
# Rows and outputs of a workgroup of product_tile.comp and product_tile_float.comp.
_TILE, _TILE_LANES = 64, 256
# Outputs times rows that a lane of product_int.comp adds up at most, and outputs of product.comp, which takes vectors.
_SUMS, _FLOAT_OUTPUTS = 32, 2
# Sums of a lane that shaders with matrices have registers for, of bytes and of float16; matrices of a subgroup,
# and words on their way to a lane of that of bytes.
_BYTE_SUMS, _FLOAT_SUMS, _MATRICES, _ON_THEIR_WAY = 64, 128, 16, 160
_MINIMA = (TensorType.Q4_1, TensorType.Q5_1, TensorType.Q4_K, TensorType.Q5_K)


class Extent(NamedTuple):
    """What decides how fast a product is, beside its rows: a matrix's type and size."""

    type: TensorType
    outputs: int
    columns: int

    @property
    def share(self) -> int:
        """Lanes that share an output with `deterministic`: their number decides the order of its sum."""
        return self._usual[1]

    @property
    def thin(self) -> bool:
        """Few outputs that have long sums."""
        return self._usual == THIN

    @property
    def lanes(self) -> int:
        """Of a workgroup, by rule."""
        return self._usual[0]

    @property
    def _usual(self) -> tuple[int, int]:
        thin = self.outputs < _THIN_OUTPUTS and blocks_of(self.columns) >= _LONG_BLOCKS
        return THIN if thin else SHARED


class Variant(msgspec.Struct, frozen=True):
    """A specialized kernel. sizes: its constants after lanes and type. rows, outputs: of a workgroup.

    splits: results that a sum is cut into, where their reader can add them.
    """

    shader: str
    lanes: int
    sizes: tuple[int, ...]
    rows: int
    outputs: int
    splits: int = 1


# What product_matrix.comp multiplies with float32 rows.
_HALVES = (TensorType.F16, TensorType.BF16)


class Abilities(NamedTuple):
    """What there is to choose from. matrix_shapes, byte_shapes: of cooperative matrices of float16 and of bytes, the
    usual one first; narrow_shape: that of bytes for few rows.

    subgroup: lanes of one; shared_memory: bytes that a workgroup may have; groups: that a grid has in its first
    dimension.
    """

    integer_dot: bool
    deterministic: bool
    matrix_shapes: tuple[Size, ...]
    byte_shapes: tuple[Size, ...]
    narrow_shape: Size | None
    subgroup: int
    shared_memory: int
    groups: int

    def quantizes(self, type: TensorType) -> bool:
        """Whether products with weights of this type take 8-bit rows."""
        return self.integer_dot and type.block > 1

    def multiplies(self, type: TensorType, shader: str) -> bool:
        """Whether cooperative matrices may multiply with weights of this type, by FLOATS or BYTES."""
        if shader == BYTES:
            return bool(self.byte_shapes) and self.quantizes(type) and type is not TensorType.Q6_K
        return not self.deterministic and bool(self.matrix_shapes) and (self.quantizes(type) or type in _HALVES)


def few_rows(shader: str, rows: int, each: int, share: int, lanes: int) -> Variant:
    """product.comp or product_int.comp. each: outputs of a lane."""
    return Variant(shader, lanes, (rows, each, share), rows, lanes // share * each)


def tiled(abilities: Abilities, type: TensorType) -> Variant:
    """product_tile.comp or product_tile_float.comp."""
    shader = "product_tile" if abilities.quantizes(type) else "product_tile_float"
    return Variant(shader, _TILE_LANES, (), _TILE, _TILE)


def with_matrices(shader: str, shape: Sequence[int], tile: MatrixTile, subgroup: int, splits: int) -> Variant:
    """shader: FLOATS or BYTES."""
    return Variant(shader, tile.subgroups * subgroup, (*shape, *tile.sizes), tile.rows, tile.outputs, splits)


def allowed(variant: Variant, extent: Extent, abilities: Abilities, splits: int) -> bool:
    """Whether a product may be computed so: the device holds it, and with `deterministic` its sums keep their order.

    splits: that there is room for.
    """
    if variant.outputs < 1 or not 1 <= variant.splits <= splits:
        return False
    # A matrix is split over bindings of so many outputs.
    outputs = min(extent.outputs, abilities.groups * GROUP_OUTPUTS)
    if -(-outputs // variant.outputs) * variant.splits > abilities.groups:
        return False
    match variant.shader:
        case "product" | "product_int":
            return _few_rows_fit(variant, extent, abilities)
        case "product_tile" | "product_tile_float":
            return not abilities.deterministic and variant == tiled(abilities, extent.type)
        case "product_matrix" | "product_matrix_int8":
            return abilities.multiplies(extent.type, variant.shader) and _matrices_fit(variant, extent, abilities)
    return False


def _few_rows_fit(variant: Variant, extent: Extent, abilities: Abilities) -> bool:
    quantized = abilities.quantizes(extent.type)
    if len(variant.sizes) != 3 or (variant.shader == "product_int") != quantized:
        return False
    rows, each, share = variant.sizes
    return (
        variant.lanes in (64, 128, 256)
        and share in (4, 8, 16, 32, 64)
        and (not abilities.deterministic or share == extent.share)
        and variant == few_rows(variant.shader, rows, each, share, variant.lanes)
        and 1 <= rows <= MOST_ROWS
        and each in (1, 2, 4)
        and each * rows <= _SUMS
        and (quantized or each <= _FLOAT_OUTPUTS)
    )


def _matrices_fit(variant: Variant, extent: Extent, abilities: Abilities) -> bool:
    if len(variant.sizes) != 10 or min(variant.sizes[:-1]) < 1:
        return False
    floats = variant.shader == FLOATS
    m, n, k, *sizes = variant.sizes
    tile = MatrixTile(*sizes)
    # A matrix of results has M rows and N outputs, in the shader of bytes the other way round.
    row_size, output_size = (m, n) if floats else (n, m)
    rows, outputs = tile.above * row_size, tile.beside * output_size
    return (
        (m, n, k) in (abilities.matrix_shapes if floats else abilities.byte_shapes)
        and variant == with_matrices(variant.shader, (m, n, k), tile, abilities.subgroup, variant.splits)
        and tile.subgroups % tile.above == tile.rows % rows == tile.outputs % outputs == 0
        and tile.part % 32 == 32 % k == 0
        and variant.lanes <= INVOCATIONS
        and tile.share == (extent.share if abilities.deterministic else 0)
        and (not abilities.deterministic or variant.splits == 1)
        and tile.sums(abilities.subgroup) <= (_FLOAT_SUMS if floats else _BYTE_SUMS)
        and (tile.rows // rows) * (tile.outputs // outputs) <= _MATRICES
        and (tile.ahead == 1 if floats else _bytes_fit(variant, tile, extent.type))
        and (_float_bytes(tile, m, n) if floats else _byte_bytes(tile, m * n, extent.type)) <= abilities.shared_memory
    )


def _bytes_fit(variant: Variant, tile: MatrixTile, type: TensorType) -> bool:
    """What product_matrix_int8.comp asks for beside: registers for what is ahead."""
    blocks = tile.part // 32
    weights, rows = (-(-count * blocks // variant.lanes) for count in (tile.outputs, tile.rows))
    return tile.ahead * (weights * (14 if type is TensorType.Q8_0 else 10) + rows * 10) <= _ON_THEIR_WAY


def _float_bytes(tile: MatrixTile, m: int, n: int) -> int:
    """Of shared memory that a workgroup of product_matrix.comp has; of one of product_matrix_int8.comp below."""
    parts = (tile.outputs + tile.rows) * (tile.part // 8 + 1)
    wide, narrow = (tile.subgroups * m * (tiles * n // 4 + 1) for tiles in (tile.outputs // n // tile.beside, 1))
    return 16 * max(parts, wide if wide <= parts else narrow) + 4 * tile.rows


def _byte_bytes(tile: MatrixTile, size: int, type: TensorType) -> int:
    """size: elements of one matrix of results."""
    factors = (2 if type in _MINIMA else 1) * (tile.part // 32)
    row = 8 * (tile.part // 8 + 2)
    weights = max(tile.outputs * row, 4 * tile.subgroups * size)
    return weights + tile.rows * row + 4 * factors * (tile.outputs + tile.rows)


def neighbours(
    variant: Variant, extent: Extent, bucket: int, abilities: Abilities, splits: int
) -> Iterator[list[Variant]]:
    """What differs from a variant in one thing: a list for each thing, the one that matters most first."""
    for axis in _axes(variant, bucket, abilities):
        found = [each for each in dict.fromkeys(axis) if each != variant]
        yield [each for each in found if allowed(each, extent, abilities, splits)]


def _axes(variant: Variant, bucket: int, abilities: Abilities) -> Iterator[list[Variant]]:
    if variant.shader in FEW:
        rows, each, share = variant.sizes
        shader, lanes = variant.shader, variant.lanes
        yield [few_rows(shader, rows, other, share, lanes) for other in (1, 2, 4)]
        yield [few_rows(shader, other, each, share, lanes) for other in row_counts(bucket)]
        yield [few_rows(shader, rows, each, share, other) for other in (64, 128, 256)]
        yield [few_rows(shader, rows, each, other, lanes) for other in (8, 16, 32, 64)]
    elif variant.shader in (FLOATS, BYTES):
        yield from _matrix_axes(variant, abilities)


def _matrix_axes(variant: Variant, abilities: Abilities) -> Iterator[list[Variant]]:
    shader, shape, tile = variant.shader, variant.sizes[:3], MatrixTile(*variant.sizes[3:])
    sizes = (32, 64, 128)

    def other(tile: MatrixTile) -> Variant:
        return with_matrices(shader, shape, tile, abilities.subgroup, variant.splits)

    yield [replace(variant, splits=count) for count in range(1, MOST_SPLITS + 1)]
    yield [other(resized(tile, outputs=outputs, part=part)) for outputs in sizes for part in sizes]
    yield [other(resized(tile, subgroups=count, above=above)) for count in (2, 4, 8) for above in (1, 2, 4)]
    yield [other(resized(tile, rows=rows)) for rows in (8, 16, 32, 64, 128)]
    yield [other(resized(tile, ahead=ahead)) for ahead in (1, 2, 3, 4)]
    shapes = abilities.matrix_shapes if shader == FLOATS else abilities.byte_shapes
    yield [with_matrices(shader, each, tile, abilities.subgroup, variant.splits) for each in shapes]


def row_counts(bucket: int) -> list[int]:
    """Rows of a workgroup that takes few: with as few of them above each other as can be, one more, twice, or more."""
    if bucket > FEW_ROWS:
        return [MOST_ROWS, MOST_ROWS // 2]
    above = -(-bucket // MOST_ROWS)
    return [-(-bucket // count) for count in (above, above + 1, 2 * above, 4 * above)]


def for_bucket(variant: Variant, bucket: int) -> Variant:
    """A variant that did well with another number of rows, for this one."""
    if variant.shader not in FEW or bucket > FEW_ROWS:
        return variant
    rows, each, share = variant.sizes
    return few_rows(variant.shader, -(-bucket // -(-bucket // rows)), each, share, variant.lanes)
