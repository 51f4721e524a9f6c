"""Which kernel multiplies: by weight type, by the rows of a step, and by what the device has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tandem.devices.vulkan.dispatch import ROW_LANES, Grid
from tandem.devices.vulkan.matrices import Chunk, Matrix
from tandem.devices.vulkan.packing import BLOCK
from tandem.devices.vulkan.tiles import MATRIX_ROWS, MOST_ROWS, NARROW_ROWS, byte_matrix_tile, matrix_tile, most_splits
from tandem.devices.vulkan.workspace import padded, quantized_words
from tandem.weights.tensor import TensorType

# Lanes of a workgroup of product.comp and product_int.comp, and how many share an output: more where few outputs have
# long sums, for which the GPU would otherwise have too little to do at once.
SHARED, THIN = (128, 16), (256, 64)
_THIN_OUTPUTS, _LONG_BLOCKS = 8192, 32
# Lanes that keep a large GPU busy.
_BUSY = 150_000
# Of `gated_product`, whose workgroups are few and large: where a product takes longer than a few dispatches, it costs
# more to have some multiprocessors idle at its end than one dispatch more. Of `norm_product`, whose every workgroup has
# the registers of a norm.
_FUSED_MACS, _FUSED_WIDTH = 300_000_000, 3072
# Rows and outputs of a workgroup of product_tile.comp and product_tile_float.comp.
_TILE, _TILE_LANES = (64, 64), 256


@dataclass(frozen=True, slots=True)
class Kernels:
    """What a device multiplies with. deterministic: sums in one order, however many rows there are.

    matrix_shape, byte_matrix_shape, narrow_matrix_shape: of cooperative matrices of float16, of bytes, and of bytes for
    few rows, where there are some; subgroup: lanes of one; shared_memory: bytes that a workgroup may have.
    """

    integer_dot: bool
    deterministic: bool
    matrix_shape: tuple[int, int, int] | None
    byte_matrix_shape: tuple[int, int, int] | None
    narrow_matrix_shape: tuple[int, int, int] | None
    subgroup: int
    shared_memory: int

    @property
    def matrices(self) -> bool:
        """Whether some products use cooperative matrices."""
        return (self.matrix_shape or self.byte_matrix_shape) is not None and not self.deterministic

    def splits(self, matrices: Sequence[Matrix], bucket: int) -> int:
        """Into how many results, to be added by whoever reads them, the products with these matrices cut their sums: so
        many that the whole GPU has something to read.
        """
        if not all(self.shader(matrix, bucket).startswith("product_matrix") for matrix in matrices):
            return 1
        return most_splits(sum(matrix.rows for matrix in matrices), bucket)

    def forms(self, matrix: Matrix, bucket: int) -> tuple[bool, bool]:
        """Whether the product takes float32 rows, and 8-bit ones."""
        kind = self.shader(matrix, bucket)
        quantized = self.integer_dot and matrix.type.block > 1
        return not quantized, quantized or kind == "product_matrix"

    def shader(self, matrix: Matrix, bucket: int) -> str:
        """The shader."""
        quantized = self.integer_dot and matrix.type.block > 1
        if self.byte_shape(bucket) and quantized and matrix.type is not TensorType.Q6_K:
            return "product_matrix_int8"
        floats = self.matrix_shape if bucket >= MATRIX_ROWS and not self.deterministic else None
        if floats and (quantized or matrix.type is TensorType.F16):
            return "product_matrix"
        if bucket > MOST_ROWS and not self.deterministic:
            return "product_tile" if quantized else "product_tile_float"
        return "product_int" if quantized else "product"

    def byte_shape(self, bucket: int) -> tuple[int, int, int] | None:
        """The matrices of bytes that multiply a step's rows, if any do."""
        if self.deterministic or bucket < NARROW_ROWS:
            return None
        return self.byte_matrix_shape if bucket >= MATRIX_ROWS else self.narrow_matrix_shape

    def few_rows(self, matrix: Matrix, bucket: int) -> bool:
        """Whether the product is one that has fused forms (`gated_product`, `norm_product`)."""
        return self.shader(matrix, bucket) in ("product", "product_int")

    def wants_bounds(self, matrix: Matrix, bucket: int) -> bool:
        """Whether the product reads the bounds of its 8-bit rows."""
        return self.shader(matrix, bucket) == "product_matrix"


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
    shader = kernels.shader(matrix, bucket)
    kind = matrix.type.ggml_id
    stride = _stride(shader, matrix)
    if shader.startswith("product_matrix"):
        if shader == "product_matrix":
            shape, tile = kernels.matrix_shape, matrix_tile(bucket, kernels.subgroup, kernels.shared_memory)
        else:
            shape, tile = kernels.byte_shape(bucket), byte_matrix_tile(bucket, kernels.subgroup, kernels.shared_memory)
        assert shape is not None
        rows, outputs = tile.rows, tile.outputs
        constants: tuple[int, ...] = (tile.subgroups * kernels.subgroup, kind, *shape, *tile.sizes)
    elif shader.startswith("product_tile"):
        rows, outputs = _TILE
        constants = (_TILE_LANES, kind)
    else:
        rows = min(bucket, MOST_ROWS)
        lanes, share = shared_lanes(matrix)
        # Two outputs a lane share what it loads of the rows; not where too few lanes would be left, nor where registers
        # would be.
        each = 2 if shader == "product_int" and 1 < rows < MOST_ROWS and matrix.rows * share >= _BUSY else 1
        outputs = lanes // share * each
        constants = (lanes, kind, rows, each, share)
    for chunk in matrix.chunks:
        grid = Grid(-(-chunk.rows // outputs) * splits, rows, sampled)
        yield Product(shader, constants, grid, (matrix.blocks, chunk.rows, matrix.row_words, stride, splits), chunk)


def gated_product(kernels: Kernels, matrix: Matrix, bucket: int) -> Product | None:
    """Gate, up and activation as one dispatch, of which each workgroup makes a block of outputs for all rows; None
    where there is none for this matrix or so many rows. values: its first push constants.
    """
    width = matrix.rows // 2
    if bucket > MOST_ROWS or width % BLOCK or len(matrix.chunks) > 1 or not kernels.few_rows(matrix, bucket):
        return None
    if bucket * matrix.rows * matrix.columns > _FUSED_MACS:
        return None
    # So many lanes that a large GPU is busy, and that all workgroups fit there at once.
    lanes = ROW_LANES if width // BLOCK * ROW_LANES < _BUSY else ROW_LANES // 2
    shader = kernels.shader(matrix, bucket)
    each = gated_outputs(shader, bucket)
    (chunk,) = matrix.chunks
    constants = (lanes, matrix.type.ggml_id, bucket, each, shared_lanes(matrix)[1])
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
    if bucket > 1 or matrix.rows > _FUSED_WIDTH or len(matrix.chunks) > 1 or not kernels.few_rows(matrix, bucket):
        return None
    (chunk,) = matrix.chunks
    _, share = shared_lanes(matrix)
    constants = (ROW_LANES, matrix.type.ggml_id, 1, 1, share)
    grid = Grid(-(-matrix.rows // (ROW_LANES // share)))
    return Product(f"{kernels.shader(matrix, bucket)}_norm", constants, grid, (matrix.blocks, matrix.row_words), chunk)


def shared_lanes(matrix: Matrix) -> tuple[int, int]:
    """Lanes of a workgroup of product.comp or product_int.comp, and those that share an output."""
    return THIN if matrix.rows < _THIN_OUTPUTS and matrix.blocks >= _LONG_BLOCKS else SHARED


def _stride(shader: str, matrix: Matrix) -> int:
    """From one row of x to the next: vec4, or words of 8-bit rows."""
    as_float = shader in ("product", "product_tile_float")
    return padded(matrix.columns) // 4 if as_float else quantized_words(matrix.columns)
