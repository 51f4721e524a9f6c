"""What blocks are made of: products with the norms between them, and where each finds what the one before left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tandem.devices.spec import NormSpec
from tandem.devices.vulkan.blocks import VulkanBlock
from tandem.devices.vulkan.dispatch import NONE, ROW_LANES, Dispatch, Grid, Use, push
from tandem.devices.vulkan.memory import View
from tandem.devices.vulkan.products import Kernels, Product, norm_product, products
from tandem.devices.vulkan.profile import block_label
from tandem.devices.vulkan.workspace import Workspace, padded

# The forms of a product's rows, as quantize.glsl has them.
AS_FLOAT, AS_BYTES = 1, 2


@dataclass(frozen=True, slots=True)
class Places:
    """What a program's blocks work on. rows: of `hidden` and of each slice in `partials`; batch_rows: of the largest
    step.

    row_bucket, sample_bucket: no step that this is for has more rows or samples. single: nor two rows of one sequence.
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
    single: bool
    kernels: Kernels


@dataclass(frozen=True, slots=True)
class Rows:
    """Where a product finds its rows: float32, and 8-bit."""

    floats: View
    quantized: View

    @staticmethod
    def of(places: Places, name: str) -> Rows:
        """8-bit rows have one place, as few outlive the next dispatch."""
        return Rows(places.workspace.view(name), places.workspace.view("quantized"))

    def targets(self, places: Places, outputs: int) -> list[Use]:
        """Where quantize.glsl stores the forms that are wanted."""
        floats = Use(3, self.floats, "write") if outputs & AS_FLOAT else Use(3, places.step)
        quantized = Use(4, self.quantized, "write") if outputs & AS_BYTES else Use(4, places.step)
        return [floats, quantized]

    def target(self, binding: int, outputs: int) -> Use:
        """Where a shader stores that makes one form."""
        return Use(binding, self.floats if outputs == AS_FLOAT else self.quantized, "write")


@dataclass(frozen=True, slots=True)
class Addend:
    """What is to be added to the residual stream: the sum of `count` parts, biased and normalized; norm.comp does it
    together with the norm that follows.

    made: a block's parts are still to be made, by its product of that name with these rows.
    """

    block: VulkanBlock
    parts: View
    count: int
    stride: int
    bias: str | None
    post_norm: NormSpec | None
    made: tuple[str, Rows] | None = None


def add_and_norm(
    block: VulkanBlock,
    places: Places,
    norm: NormSpec | None,
    outputs: int,
    addend: Addend | None,
    *,
    sampled: bool = False,
) -> Iterator[Dispatch]:
    """hidden += addend, and the norm of that in the forms that a product wants (`outputs`); without `norm` only the
    sum. Where the addend is still to be made, that comes before it or is done in one.
    """
    at = block.vectors.at if block.vectors else {}
    # Something must be bound where nothing is used.
    weight = vectors = block.vectors.view if block.vectors else places.step
    added: tuple[int | float, ...] = (0, NONE, NONE, 0.0)
    if addend is not None:
        places_of = addend.block.vectors.at if addend.block.vectors else {}
        vectors = addend.block.vectors.view if addend.block.vectors else places.step
        added = (
            addend.stride,
            places_of.get(addend.bias, NONE) if addend.bias else NONE,
            places_of["post_norm"] if addend.post_norm else NONE,
            float(addend.post_norm.eps) if addend.post_norm else 0.0,
        )
    normed = (at["norm"], float(norm.eps)) if norm else (NONE, 0.0)
    width, ats = block.work.hidden, (*added[:3], normed[0])
    values = push(width, *added, *normed, outputs)
    whole = int(width % 4 == 0 and all(at % 4 == 0 for at in ats if at != NONE))
    each = -(-padded(width) // 4 // ROW_LANES)
    # A program that only adds has no room for rows.
    rows = Rows.of(places, "normed") if norm else Rows(places.step, places.step)

    if addend is not None and addend.made is not None:
        (name, x), label = addend.made, block_label(addend.block.work)
        fused = _norm_product(addend.block, name, places, outputs)
        if fused is not None:
            every = (
                Use(0, places.step),
                Use(1, fused.chunk.view),
                Use(2, x.floats if fused.shader == "product_norm" else x.quantized),
                Use(3, places.workspace.ticketed("product"), "both"),
                rows.target(4, outputs) if outputs else Use(4, places.step),
                Use(5, places.hidden, "both"),
                Use(6, vectors),
                Use(7, weight),
            )
            constants = (*fused.constants, each, whole)
            yield Dispatch(fused.shader, constants, every, push(*fused.values) + values, fused.grid, label)
            return
        splits = result_splits(addend.block, name, places)
        for made in product(addend.block, name, places, x, addend.parts, width, splits=splits):
            yield replace(made, block=label)
    parts = addend.parts if addend is not None else places.step
    uses = (
        Use(0, places.step),
        Use(1, places.hidden, "both" if addend else "read"),
        Use(2, weight),
        *rows.targets(places, outputs),
        Use(5, parts),
        Use(6, vectors),
    )
    constants = (ROW_LANES, each, whole, addend.count if addend else 0)
    grid = Grid(1, sampled=sampled)
    yield Dispatch("norm", constants, uses, values + push(int(sampled)), grid, block_label(block.work))


def _norm_product(block: VulkanBlock, name: str, places: Places, outputs: int) -> Product | None:
    """The block's last product where the norm that follows can be a part of it."""
    matrices = block.matrices[name]
    if len(matrices) > 1 or outputs == AS_FLOAT | AS_BYTES:
        return None
    return norm_product(places.kernels, matrices[0], places.row_bucket)


def wanted_forms(block: VulkanBlock, name: str, places: Places, bucket: int | None = None) -> int:
    """In which forms a product wants its rows. bucket: of rows, None for the step's."""
    forms = [places.kernels.forms(matrix, bucket or places.row_bucket) for matrix in block.matrices[name]]
    return (AS_FLOAT if any(form[0] for form in forms) else 0) | (AS_BYTES if any(form[1] for form in forms) else 0)


def result_splits(block: VulkanBlock, name: str, places: Places) -> tuple[int, int]:
    """How many results a block's product has, to be added, and from one to the next (elements)."""
    matrices = block.matrices[name]
    count = places.kernels.splits(matrices, places.row_bucket)
    return count, min(places.row_bucket, places.batch_rows) * sum(matrix.rows for matrix in matrices)


def product(
    block: VulkanBlock,
    name: str,
    places: Places,
    x: Rows,
    y: View,
    stride: int,
    *,
    first: int = 0,
    sampled: bool = False,
    softcap: float = 0.0,
    columns: bool = True,
    splits: tuple[int, int] = (1, 0),
) -> Iterator[Dispatch]:
    """y[:, first : first + outputs] = x W, rows of y `stride` apart. columns: `first` is in a row. splits: as
    `result_splits` gives them.
    """
    bucket = places.sample_bucket if sampled else places.row_bucket
    for matrix in block.matrices[name]:
        as_float, as_bytes = places.kernels.forms(matrix, bucket)
        quantized = x.quantized if as_bytes else places.step
        source = x.floats if as_float else quantized
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


def wants_bounds(block: VulkanBlock, name: str, places: Places) -> bool:
    """Whether the products with these matrices need to know how large their 8-bit rows are."""
    return any(places.kernels.wants_bounds(matrix, places.row_bucket) for matrix in block.matrices[name])
