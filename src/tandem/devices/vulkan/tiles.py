"""How products are cut: row-count buckets, tiles of cooperative matrices, and splits of their sums."""

from __future__ import annotations

from dataclasses import dataclass

# The row-count buckets: a step takes the first that holds its rows. Up to MOST_ROWS a product takes them all at once,
# and every count has its own: a kernel for 12 rows takes as long for 9.
MOST_ROWS, MANY_ROWS = 16, 1 << 16
# From so many rows cooperative matrices multiply, where they may; those of bytes, where the driver has some that are as
# narrow, from fewer.
MATRIX_ROWS, NARROW_ROWS = 9, 8
BUCKETS: tuple[int, ...] = (*range(1, MOST_ROWS + 1), 18, 20, 24, 28, 32, 40, 48, 56, 64, MANY_ROWS)
# Lanes of a subgroup whose registers hold 64 x 64 results of float16 matrices.
USUAL_SUBGROUP = 32
# Sums of a lane in product_matrix_int8.comp, those of its tree counted, that a GPU has registers for.
ORDERED_SUMS = 160
# Workgroups of product_matrix.comp, for each tile of rows, that keep a large GPU reading, and the splits that may get
# there; steps of more than FEW_ROWS have several tiles of rows.
FEW_ROWS, _FEW_TILES, _MANY_TILES, MOST_SPLITS = 64, 512, 256, 8


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

    def sums(self, subgroup: int) -> int:
        """That a lane keeps while it works: its own, and what a tree of `share` has on each level."""
        levels = self.share.bit_length() - 1 if self.share else 0
        return self.rows * self.outputs * (levels + 1) // (self.subgroups * subgroup)


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


def ordered_matrix_tile(bucket: int, subgroup: int, row_size: int, share: int) -> MatrixTile:
    """For product_matrix_int8.comp where sums keep the order that `share` lanes give them: many subgroups, as a lane
    has registers for few sums; wide ones have fewer. row_size: rows of a matrix.
    """
    subgroups = 4 if bucket <= 32 or subgroup > 32 else 8
    most = ORDERED_SUMS if subgroup <= 32 else ORDERED_SUMS * 3 // 8
    for rows in (64, 32, 16):
        above = max(1, min(2, rows // row_size))
        tile = MatrixTile(rows, 64, 64, subgroups, above, 2, share)
        if rows <= max(bucket, row_size) and tile.sums(subgroup) <= most:
            return tile
    return MatrixTile(row_size, 64, 64, subgroups, 1, 2, share)


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
    tiles = -(-outputs // 64)
    if bucket > FEW_ROWS:
        return min(4, -(-_MANY_TILES // tiles))
    return min(MOST_SPLITS, -(-_FEW_TILES // tiles))


def most_splits(outputs: int, bucket: int) -> int:
    """Splits that there is room for, whatever is chosen: results are planned before anything is measured."""
    usual = usual_splits(outputs, bucket)
    return usual if bucket > FEW_ROWS else min(MOST_SPLITS, 2 * usual)


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
