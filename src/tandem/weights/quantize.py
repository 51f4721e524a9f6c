"""Weights to stored types: float casts, Q8_0, Q4_0, Q4_1, Q5_0 and Q5_1 bit for bit as ggml's reference rounds, and
K-quants by llama.cpp's search.

The arithmetic is native (native/kernels/weight_blocks.h, weight_search.h); whatever the number of threads and the
instruction set, the bytes are the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from tandem._native import Quantizer
from tandem.errors import ModelFileError
from tandem.weights.dequantize import Bytes, Floats
from tandem.weights.tensor import Tensor, TensorType

# Of what is written at a time, and of what rows in another order are gathered into: what bounds memory.
_STRIP_BYTES = 8 << 20
_OUTCOMES = {
    1: "tensor '{name}' holds infinities or NaN; its file is damaged, or its training diverged",
    2: "tensor '{name}' holds values too large for {type}; choose BF16 or F32",
}


def quantize(name: str, values: npt.NDArray[np.floating], type: TensorType) -> Tensor:
    """A tensor of `values`, which have a float type that float32 holds exactly; rows are last.

    Floats are rounded to nearest, ties to even. ModelFileError: rows that are no multiple of the block, or values that
    the type cannot hold (not finite, or beyond float16 where it stores values or scales as that).
    """
    floats = np.ascontiguousarray(values, np.float32)
    source = Tensor(name, TensorType.F32, values.shape, floats.reshape(-1).view(np.uint8))
    strips = list(convert(source, type, Quantizer(1)))
    return Tensor(name, type, values.shape, strips[0] if len(strips) == 1 else np.concatenate(strips))


def convert(
    source: Tensor,
    type: TensorType,
    quantizer: Quantizer,
    *,
    order: npt.NDArray[np.int64] | None = None,
    importance: Floats | None = None,
) -> Iterator[Bytes]:
    """The bytes of `source` as `type`, in strips of whole rows. Blocks that have the type already stay as they are.

    order: which row of the source stands where. importance: for each column how much an error in it matters, float32;
    types that search (all but floats and Q8_0) minimize the weighted error. ModelFileError as `quantize` says.
    """
    columns = source.shape[-1] if source.shape else 1
    check_rows(source.name, columns, type)
    rows = source.elements // columns
    row_bytes, source_row = type.row_bytes(columns), source.type.row_bytes(columns)
    step = max(1, _STRIP_BYTES // max(row_bytes, source_row))
    data = source.data.reshape(rows, source_row)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        strip = data[start:stop] if order is None else data[order[start:stop]]
        if type is source.type and type.block > 1:
            yield strip.reshape(-1)
            continue
        out = np.empty((stop - start) * row_bytes, np.uint8)
        outcome = quantizer.run(
            source.type.ggml_id, strip.reshape(-1), type.ggml_id, stop - start, columns, out, importance
        )
        if outcome:
            raise ModelFileError(_OUTCOMES[outcome].format(name=source.name, type=type.name))
        yield out


def check_rows(name: str, columns: int, type: TensorType) -> None:
    """ModelFileError where rows of so many columns are not whole blocks of the type."""
    if columns % type.block:
        raise ModelFileError(
            f"tensor '{name}' has rows of {columns:,}; {type.name} needs a multiple of {type.block}, "
            "choose another type"
        )
