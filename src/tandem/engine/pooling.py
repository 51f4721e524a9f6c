"""Embeddings: a prompt's hidden states behind the final norm, pooled over its tokens.

One definition for every device, in float64 on the host: each row x of the residual stream that leaves the last
block becomes x / sqrt(mean(x^2) + eps) * (offset + w). Rows are added one by one in the order of their positions, so
that the sum does not depend on how the prompt was cut into steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from tandem.devices.base import Float32Array
from tandem.devices.spec import NormSpec

# mean: over all tokens of the prompt. last: the last token's.
PoolingKind = Literal["mean", "last"]


@dataclass(frozen=True, slots=True)
class FinalNorm:
    """The norm before a model's head. weight: float32 [hidden]."""

    spec: NormSpec
    weight: Float32Array

    def __call__(self, hidden: Float32Array) -> npt.NDArray[np.float64]:
        """Of rows [rows, hidden], each by itself."""
        rows = hidden.astype(np.float64)
        root = np.sqrt(np.mean(np.square(rows), axis=1, keepdims=True) + self.spec.eps)
        scaled: npt.NDArray[np.float64] = rows / root * (self.spec.offset + self.weight.astype(np.float64))
        return scaled


@dataclass(slots=True)
class Pool:
    """What has been pooled of one prompt. rows: positions so far; those are not added again when they are computed
    again.
    """

    kind: PoolingKind
    rows: int = 0
    _sum: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))

    def add(self, start: int, hidden: Float32Array, norm: FinalNorm) -> None:
        """Takes the rows of positions [start, start + rows), which follow those before, or repeat them."""
        new = hidden[max(0, self.rows - start) :]
        if not len(new):
            return
        self.rows = start + len(hidden)
        if self.kind == "last":
            self._sum = norm(new[-1:])[0]
            return
        with np.errstate(invalid="ignore"):  # what is not finite is told at the end
            for row in norm(new):
                self._sum = self._sum + row

    def embedding(self) -> Float32Array:
        """[hidden], little-endian."""
        pooled = self._sum / self.rows if self.kind == "mean" else self._sum
        embedding: Float32Array = pooled.astype("<f4")
        return embedding
