"""Which kernel multiplies: what was measured to be fastest, or else by rules, by weight type, rows and device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tandem.devices.vulkan.dispatch import ROW_LANES, Grid
from tandem.devices.vulkan.matrices import Chunk, Matrix
from tandem.devices.vulkan.packing import BLOCK, blocks_of
from tandem.devices.vulkan.tiles import (
    FEW_ROWS,
    MATRIX_ROWS,
    MOST_ROWS,
    NARROW_ROWS,
    USUAL_SUBGROUP,
    byte_matrix_tile,
    even_rows,
    matrix_tile,
    most_splits,
    ordered_matrix_tile,
    quantized_rows,
    usual_splits,
)
from tandem.devices.vulkan.variants import (
    BYTES,
    FEW,
    FLOATS,
    Abilities,
    Extent,
    Variant,
    allowed,
    few_rows,
    tiled,
    with_matrices,
)
from tandem.devices.vulkan.workspace import padded, quantized_words
from tandem.weights.tensor import TensorType

# Shaders that take rows in float32; others take 8-bit ones.
TAKE_FLOATS = ("product", "product_tile_float")
# Lanes that keep a large GPU busy.
_BUSY = 150_000
# Of `gated_product`, whose workgroups are few and large: where a product takes longer than a few dispatches, it costs
# more to have some multiprocessors idle at its end than one dispatch more. Of `norm_product`, whose every workgroup has
# the registers of a norm.
_FUSED_MACS, _FUSED_WEIGHTS, _FUSED_WIDTH = 300_000_000, 200_000_000, 3072


@dataclass(frozen=True, slots=True)
class Kernels:
    """What a device multiplies with. table: what tuning has chosen, by matrix and bucket; rules decide the rest.
    proved: types of weights with which this process saw matrices keep the order of a sum, and none that did not.
    """

    abilities: Abilities
    table: dict[tuple[Extent, int], Variant] = field(default_factory=dict)
    proved: set[TensorType] = field(default_factory=set)

    @property
    def matrices(self) -> bool:
        """Whether some products use cooperative matrices in whatever order is fastest, and may cut their sums."""
        has = self.abilities
        return bool(has.matrix_shapes or has.byte_shapes) and not has.deterministic

    def choice(self, extent: Extent, bucket: int) -> Variant:
        """How a product is computed."""
        return self.table.get((extent, bucket)) or self.rule(extent, bucket)

    def rule(self, extent: Extent, bucket: int) -> Variant:
        """How it is where nothing was measured: as an H100 liked it best."""
        has, by_matrices = self.abilities, self.matrix_rules(extent, bucket)
        if has.deterministic and extent.type not in self.proved:
            by_matrices = []
        if by_matrices and bucket >= (NARROW_ROWS if by_matrices[0].shader == BYTES else MATRIX_ROWS):
            return by_matrices[0]
        if bucket > MOST_ROWS and not has.deterministic:
            return tiled(has, extent.type)
        return self.few_rule(extent, bucket)

    def matrix_rules(self, extent: Extent, bucket: int) -> list[Variant]:
        """With cooperative matrices, of bytes and of float16, as far as there are such; the better ones first. With
        `deterministic` those that keep the order of `few_rule`, where they are faster.
        """
        has, found = self.abilities, []
        splits = usual_splits(extent.outputs, bucket)
        # Few rows like narrow matrices better, even where they fill wide ones.
        shape = has.narrow_shape if bucket <= FEW_ROWS else None
        if shape is None and bucket >= MATRIX_ROWS and has.byte_shapes:
            shape = has.byte_shapes[0]
        if shape is not None and has.multiplies(extent.type, BYTES):
            if has.deterministic:
                ordered = ordered_matrix_tile(bucket, extent.outputs, extent.share)
                options = [with_matrices(BYTES, shape, ordered, has.subgroup, 1)] if ordered else []
                return [each for each in options if allowed(each, extent, has, 1)]
            tile = byte_matrix_tile(bucket, has.subgroup, has.shared_memory)
            found.append(with_matrices(BYTES, shape, tile, has.subgroup, splits))
        if has.multiplies(extent.type, FLOATS):
            tile = matrix_tile(bucket, has.subgroup)
            found.append(with_matrices(FLOATS, has.matrix_shapes[0], tile, has.subgroup, splits))
        # Of many rows scaling the dots of blocks takes longer than what bytes save.
        return found[::-1] if bucket > FEW_ROWS and has.subgroup == USUAL_SUBGROUP else found

    def few_rule(self, extent: Extent, bucket: int) -> Variant:
        """By the kernel that takes few rows at once, and many above each other."""
        if not self.abilities.quantizes(extent.type):
            return few_rows("product", even_rows(bucket), 1, extent.share, extent.lanes)
        rows, each = quantized_rows(bucket, extent.outputs, blocks_of(extent.columns), thin=extent.thin)
        return few_rows("product_int", rows, each, extent.share, extent.lanes)

    def shader(self, matrix: Matrix, bucket: int) -> str:
        """The shader."""
        return self.choice(extent_of(matrix), bucket).shader

    def fusible(self, matrix: Matrix, bucket: int) -> str | None:
        """The shader whose fused forms (`gated_product`, `norm_product`) may stand for the product. They save a
        dispatch, which no other product of so few rows could win back; so the rules decide, whatever was measured.
        """
        shader = self.rule(extent_of(matrix), bucket).shader
        return shader if shader in FEW else None

    def splits(self, matrices: Sequence[Matrix], bucket: int) -> int:
        """Into how many results, to be added by whoever reads them, the products with these matrices cut their sums: so
        many that the whole GPU has something to read.
        """
        chosen = min(self.choice(extent_of(matrix), bucket).splits for matrix in matrices)
        return min(chosen, most_splits(sum(matrix.rows for matrix in matrices), bucket))

    def forms(self, matrix: Matrix, bucket: int) -> tuple[bool, bool]:
        """Whether the product takes float32 rows, and 8-bit ones."""
        quantized = self.abilities.quantizes(matrix.type)
        return not quantized, quantized or self.shader(matrix, bucket) == FLOATS

    def wants_bounds(self, matrix: Matrix, bucket: int) -> bool:
        """Whether the product reads the bounds of its 8-bit rows."""
        return self.shader(matrix, bucket) == FLOATS


def extent_of(matrix: Matrix) -> Extent:
    return Extent(matrix.type, matrix.rows, matrix.columns)


@dataclass(frozen=True, slots=True)
class Product:
    """One dispatch of a product. values: its first push constants."""

    shader: str
    constants: tuple[int, ...]
    grid: Grid
    values: tuple[int, ...]
    chunk: Chunk


def products(kernels: Kernels, matrix: Matrix, bucket: int, sampled: bool, splits: int) -> Iterator[Product]:
    """The dispatches that multiply with a matrix: one for each of its bindings. splits: see `Kernels.splits`."""
    return specialized(kernels.choice(extent_of(matrix), bucket), matrix, sampled, splits)


def specialized(variant: Variant, matrix: Matrix, sampled: bool, splits: int) -> Iterator[Product]:
    """The same by one variant."""
    stride = _stride(variant.shader, matrix)
    constants = (variant.lanes, matrix.type.ggml_id, *variant.sizes)
    for chunk in matrix.chunks:
        grid = Grid(-(-chunk.rows // variant.outputs) * splits, variant.rows, sampled)
        values = (matrix.blocks, chunk.rows, matrix.row_words, stride, splits)
        yield Product(variant.shader, constants, grid, values, chunk)


def gated_product(kernels: Kernels, matrix: Matrix, bucket: int) -> Product | None:
    """Gate, up and activation as one dispatch, of which each workgroup makes a block of outputs for all rows; None
    where there is none for this matrix or so many rows. values: its first push constants.
    """
    width = matrix.rows // 2
    if bucket > MOST_ROWS or width % BLOCK or len(matrix.chunks) > 1:
        return None
    shader = kernels.fusible(matrix, bucket)
    weights = matrix.rows * matrix.columns
    if shader is None or weights > _FUSED_WEIGHTS or bucket * weights > _FUSED_MACS:
        return None
    # So many lanes that a large GPU is busy, and that all workgroups fit there at once.
    lanes = ROW_LANES if width // BLOCK * ROW_LANES < _BUSY else ROW_LANES // 2
    each = gated_outputs(shader, bucket)
    (chunk,) = matrix.chunks
    constants = (lanes, matrix.type.ggml_id, bucket, each, extent_of(matrix).share)
    values = (matrix.blocks, width, matrix.row_words, _stride(shader, matrix))
    return Product(f"{shader}_gated", constants, Grid(width // BLOCK, bucket), values, chunk)


def gated_outputs(shader: str, bucket: int) -> int:
    """Outputs of a lane of `gated_product`: as many as registers allow all workgroups to be there at once."""
    if shader == "product":
        return 2 if bucket == 1 else 1
    return 4 if bucket <= 2 else 2


def norm_product(kernels: Kernels, matrix: Matrix, bucket: int) -> Product | None:
    """A product whose last workgroup does what norm.comp would; None as for `gated_product`. One workgroup takes about
    as long for a row as a dispatch costs, so only of one row. values: its first push constants.
    """
    if bucket > 1 or matrix.rows > _FUSED_WIDTH or len(matrix.chunks) > 1:
        return None
    shader = kernels.fusible(matrix, bucket)
    if shader is None:
        return None
    (chunk,) = matrix.chunks
    share = extent_of(matrix).share
    constants = (ROW_LANES, matrix.type.ggml_id, 1, 1, share)
    grid = Grid(-(-matrix.rows // (ROW_LANES // share)))
    return Product(f"{shader}_norm", constants, grid, (matrix.blocks, matrix.row_words), chunk)


def _stride(shader: str, matrix: Matrix) -> int:
    """From one row of x to the next: vec4, or words of 8-bit rows."""
    return padded(matrix.columns) // 4 if shader in TAKE_FLOATS else quantized_words(matrix.columns)
