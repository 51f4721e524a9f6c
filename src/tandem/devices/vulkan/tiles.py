"""How products are cut: row-count buckets, tiles of cooperative matrices, and splits of their sums."""

from __future__ import annotations

from dataclasses import dataclass

# The row-count buckets: a step takes the first that holds its rows. Up to MOST_ROWS a product can take them all at
# once, and every count has its own: a kernel for 12 rows takes as long for 9.
MOST_ROWS, MANY_ROWS = 16, 1 << 16
# From so many rows cooperative matrices multiply, where they may; those of bytes, where the driver has some that are as
# narrow, from fewer.
MATRIX_ROWS, NARROW_ROWS = 9, 8
BUCKETS: tuple[int, ...] = (*range(1, MOST_ROWS + 1), 18, 20, 24, 28, 32, 40, 48, 56, 64, MANY_ROWS)
# Lanes of a subgroup whose registers hold 64 x 64 results of float16 matrices.
USUAL_SUBGROUP = 32
# Steps of more than FEW_ROWS have several tiles of rows. Of others: workgroups of product_matrix.comp that keep a large
# GPU reading, and the splits that may get there. Of these: as many of matrix_tile's as an H100 takes at once, their
# splits at most, and tiles of 512 rows.
FEW_ROWS, MOST_SPLITS = 64, 8
_FEW_TILES, _MANY_TILES, _MANY_SPLITS, _TILES_ABOVE = 512, 264, 4, 4
# Where few rows are best taken together: many outputs, or those of a thin product that are not too few nor their sums
# too long. Where the lines are an H100 knows.
_WIDE_OUTPUTS, _SMALL_OUTPUTS, _LONG_BLOCKS = 1 << 16, 2048, 512
# Outputs times rows from which matrices that keep an order have enough to do for a large GPU.
_ORDERED_RESULTS = 1 << 18


@dataclass(frozen=True, slots=True)
class MatrixTile:
    """A workgroup of product_matrix.comp or product_matrix_int8.comp: the rows and outputs that it makes, the elements
    of a sum that it takes at a time, its subgroups and how many of them stand above each other; how many parts of the
    sum are on their way while it multiplies; the lanes of product_int.comp whose order sums keep, 0 for none.
    """

    rows: int
    outputs: int
    part: int
    subgroups: int
    above: int
    ahead: int = 1
    share: int = 0

    @property
    def sizes(self) -> tuple[int, ...]:
        """As the shaders' constants have them; only that of bytes knows the last two."""
        return self.rows, self.outputs, self.part, self.subgroups, self.above, self.ahead, self.share

    @property
    def beside(self) -> int:
        """Subgroups that share the outputs."""
        return max(1, self.subgroups // self.above)

    def sums(self, subgroup: int) -> int:
        """That a lane makes."""
        return self.rows * self.outputs // (self.subgroups * subgroup)


def matrix_tile(bucket: int, subgroup: int) -> MatrixTile:
    """subgroup: lanes of one. Few rows: narrow tiles with much on its way; many: as much as registers hold, and shared
    memory for a second workgroup beside it. The best of those tried on an H100.
    """
    if bucket <= 16:
        return MatrixTile(16, 64, 64, 4, 1)
    if bucket <= 32:
        return MatrixTile(32, 64, 64, 4, 2)
    if bucket <= FEW_ROWS:
        return MatrixTile(64, 64, 64, 4, 2)
    return MatrixTile(128, 128 if subgroup == USUAL_SUBGROUP else 64, 32, 4, 2)


def byte_matrix_tile(bucket: int, subgroup: int, shared_memory: int) -> MatrixTile:
    """The same for product_matrix_int8.comp, within `shared_memory` bytes. What is ahead is in registers, of which wide
    subgroups have fewer.
    """
    narrow = subgroup <= 32
    if bucket <= NARROW_ROWS:
        return MatrixTile(NARROW_ROWS, 64, 128, 4, 1, 4 if narrow else 2)
    if bucket <= 32:
        return MatrixTile(16 if bucket <= 16 else 32, 64, 128, 4, 1, 3 if narrow else 2)
    if bucket <= FEW_ROWS:
        return MatrixTile(64, 64, 64, 4, 2, 2)
    if subgroup > 32:
        return MatrixTile(128, 64, 32, 4, 2)
    return MatrixTile(128, 128, 64 if shared_memory >= 48 << 10 else 32, 8, 2, 2)


def ordered_matrix_tile(bucket: int, outputs: int, share: int) -> MatrixTile | None:
    """For product_matrix_int8.comp where sums keep the order that `share` lanes give them, for which a lane has a
    second one of each, and no sum is cut; None where other kernels were faster.
    """
    if outputs * bucket < _ORDERED_RESULTS or bucket < MATRIX_ROWS:
        return None
    if bucket <= 16:
        return MatrixTile(16, 128, 64, 4, 1, 2, share)
    if bucket <= 32:
        return MatrixTile(32, 64, 64, 4, 2, 2, share)
    return MatrixTile(64, 64, 64, 4, 2, 1, share)


# Keys of a tile of attention_matrix.comp, and elements of a head at a time.
_KEYS, _HEAD_PART = 64, 64


@dataclass(frozen=True, slots=True)
class AttentionTile:
    """A workgroup of attention_matrix.comp: a matrix's shape, the queries that are its rows, its subgroups and how many
    of them stand above each other.
    """

    lanes: int
    shape: tuple[int, int, int]
    queries: int
    subgroups: int
    above: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """As the shader's constants have them."""
        return *self.shape, self.queries, self.subgroups, self.above


def attention_tile(
    shape: tuple[int, int, int], head_dim: int, subgroup: int, shared_memory: int
) -> AttentionTile | None:
    """With matrices of this shape, [M, K] times [K, N], for as many queries as shared memory (bytes) holds, up to 32;
    None where that is too little or a workgroup cannot be made of the driver's subgroups.
    """
    m, n, k = shape
    for queries in (32, 16):
        above = min(4, queries // m)
        lanes = 4 * subgroup
        fits = above and queries % m == _KEYS % k == _KEYS * above // 4 % n == 0
        fits = fits and queries <= lanes <= 16 * queries and lanes <= 8 * _KEYS
        if fits and _attention_bytes(queries, head_dim, lanes) <= shared_memory:
            return AttentionTile(lanes, shape, queries, 4, above)
    return None


def _attention_bytes(queries: int, head_dim: int, lanes: int) -> int:
    """Queries, a part of keys or values, weights; scores; decays, what lanes share, and places."""
    padded = -(-head_dim // _HEAD_PART) * _HEAD_PART
    halves = queries * (padded + 8) + _KEYS * (_HEAD_PART + 8) + queries * (_KEYS + 8)
    return 2 * halves + 4 * queries * (_KEYS + 16) + 4 * (queries + lanes) + 2 * 16 * _KEYS


def usual_splits(outputs: int, bucket: int) -> int:
    """Splits of a sum that makes so many outputs, where nothing was measured."""
    if bucket <= FEW_ROWS:
        return min(MOST_SPLITS, -(-_FEW_TILES // -(-outputs // 64)))
    tiles = _TILES_ABOVE * -(-outputs // 128)
    if tiles >= _MANY_TILES:
        return 1
    # Those that leave least of the GPU idle while the last workgroups run; the fewest of them.
    options = range(1, most_splits(outputs, bucket) + 1)
    return max(options, key=lambda splits: tiles * splits / -(-tiles * splits // _MANY_TILES))


def most_splits(outputs: int, bucket: int) -> int:
    """Splits that there is room for, whatever is chosen: results are planned before anything is measured."""
    if bucket <= FEW_ROWS:
        return min(MOST_SPLITS, 2 * usual_splits(outputs, bucket))
    return min(_MANY_SPLITS, -(-_MANY_TILES // -(-outputs // 64)))


def result_rows(outputs: int, rows: int) -> int:
    """Rows that a product's results take together, where a program has `rows` at most."""
    return max(min(bucket, rows) * most_splits(outputs, bucket) for bucket in BUCKETS if bucket <= bucket_of(rows))


def bucket_of(count: int) -> int:
    """The bucket of a count of rows or samples."""
    return next(bucket for bucket in BUCKETS if count <= bucket)


def even_rows(bucket: int) -> int:
    """Rows of a workgroup that takes at most MOST_ROWS: as equal as they can be, so that none works for rows that are
    not there.
    """
    return MOST_ROWS if bucket > FEW_ROWS else -(-bucket // -(-bucket // MOST_ROWS))


def quantized_rows(bucket: int, outputs: int, blocks: int, *, thin: bool) -> tuple[int, int]:
    """Rows of a workgroup and outputs of a lane for product_int.comp. Workgroups above each other start together, so
    what one reads of the weights the next finds in a cache; where the GPU has room for twice as many they wait for less
    than one that takes all rows. blocks: of a row; thin: few outputs, for which more lanes share a sum.
    """
    if bucket == 1:
        return 1, 1
    if bucket > FEW_ROWS:
        return 8, 4
    together = blocks < _LONG_BLOCKS and outputs >= _SMALL_OUTPUTS if thin else outputs >= _WIDE_OUTPUTS
    above = 1 if together and bucket <= 8 else max(2, -(-bucket // 8))
    return -(-bucket // above), 2
