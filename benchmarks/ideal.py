"""What a model's prefill and decode must compute and read, and the least time that this takes on a machine."""

from __future__ import annotations

from typing import Any

from engines import Work
from tandem.bench.ceilings import Ceilings
from tandem.models.open import model_spec
from tandem.weights.checkpoint import Checkpoint

FLOATS = ("F32", "F16", "BF16")


class CostModel:
    """Multiply-adds and bytes of one model. The embedding is looked up, so that it costs nothing; the head is computed
    for sampled rows only. Keys and values are float16.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.spec = model_spec(checkpoint)
        self.body = {"int8": 0, "f32": 0}  # multiply-adds of a row by unit, all blocks but the head
        self.head = {"int8": 0, "f32": 0}
        self.weight_bytes = 0
        by_type: dict[str, int] = {}
        for block, names in zip(self.spec.blocks[1:], self.spec.tensors[1:], strict=True):
            for name in names.values():
                tensor = checkpoint.tensors[name]
                self.weight_bytes += tensor.nbytes
                if len(tensor.shape) == 2:
                    of = self.head if block is self.spec.blocks[-1] else self.body
                    of["f32" if tensor.type.name in FLOATS else "int8"] += tensor.elements
                    by_type[tensor.type.name] = by_type.get(tensor.type.name, 0) + tensor.elements
        self.weights = sum(by_type.values())
        self.type = max(by_type, key=lambda name: by_type[name])

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.spec.name,
            "type": self.type,
            "weights": self.weights,
            "weight_bytes_per_step": self.weight_bytes,
        }

    def ideal(self, cell: str, work: Work, ceilings: Ceilings) -> tuple[float, str] | None:
        """The least seconds for a cell's measured tokens, and what binds: "macs" or "read". None for other cells.

        Products run on int8 dots (float weights: float32), attention on bf16 dots; the weights are read once a step.
        """
        if cell == "prefill":
            n = work.prefill
            products, attention = self._seconds(n, 1, ceilings), self._attention(0, n, 1)
            return max(
                (products + attention / ceilings.peak("bf16"), "macs"), (self.weight_bytes / ceilings.read, "read")
            )
        if not cell.startswith("decode "):
            return None
        batch = int(cell.removeprefix("decode "))
        products = work.new * self._seconds(batch, batch, ceilings)
        attention = self._attention(work.prompt, work.new, batch)
        keys = sum(
            4 * block.kv_heads * block.head_dim * min(work.prompt + i + 1, block.window or 1 << 40)
            for block in self.spec.attention
            for i in range(work.new)
        )
        moved = work.new * self.weight_bytes + batch * keys
        return max((products + attention / ceilings.peak("bf16"), "macs"), (moved / ceilings.read, "read"))

    def turn_seconds(self, work: Work, ceilings: Ceilings) -> float:
        """The least time for all that one turn computes, warm-up and prompts included."""
        cells = [f"decode {batch}" for batch in work.batches]
        ideals = [
            self.ideal(cell, work, ceilings) for cell in cells + ["prefill"] * (1 + work.repeats if work.prefill else 0)
        ]
        prompts = sum(self._seconds(batch * work.prompt, batch, ceilings) for batch in work.batches)
        return prompts + sum(ideal[0] for ideal in ideals if ideal)

    def _seconds(self, rows: int, sampled: int, ceilings: Ceilings) -> float:
        """Of all products for so many rows."""
        return sum(
            (rows * self.body[unit] + sampled * self.head[unit]) / ceilings.peak(unit) for unit in ("int8", "f32")
        )

    def _attention(self, first: int, rows: int, sequences: int) -> float:
        """Multiply-adds of queries at positions [first, first + rows) against keys and values, all layers."""
        seen = (
            2 * block.heads * block.head_dim * min(position + 1, block.window or position + 1)
            for block in self.spec.attention
            for position in range(first, first + rows)
        )
        return float(sequences * sum(seen))
