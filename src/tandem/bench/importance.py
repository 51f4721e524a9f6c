"""How much each column of a matrix matters: the mean square of the activations that meet it on a text.

The idea is llama.cpp's importance matrix (tools/imatrix): an error in a weight reaches the output times its activation.
"""

from __future__ import annotations

import numpy as np

from tandem.bench.perplexity import cut_windows
from tandem.bench.teacher import Teacher
from tandem.devices.ref.math import Float32Array
from tandem.devices.spec import AttentionSpec, BlockSpec, FFNSpec
from tandem.engine.build import EngineConfig
from tandem.models.names import GGUF_NAMES, block_kind
from tandem.weights.checkpoint import Checkpoint


def gather_importance(
    checkpoint: Checkpoint, text: str, *, length: int = 256, windows: int = 32
) -> dict[str, Float32Array]:
    """By the GGUF name of each matrix, a weight for each of its columns, float32, from reading the text's windows.

    The reference device reads them, with the weights as float32 in memory. A column that never saw an activation
    weighs a little all the same. Raises MemoryPlanError for a model that does not fit so, BenchError for a text of
    less than two windows.
    """
    sums: dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]] = {}

    def observe(block: BlockSpec, role: str, x: Float32Array) -> None:
        layer = block.layer if isinstance(block, AttentionSpec | FFNSpec) else 0
        name = GGUF_NAMES[block_kind(block)][role].format(layer=layer)
        squares = np.square(x, dtype=np.float64).sum(axis=0)
        sums[name] = sums.get(name, 0.0) + squares

    cut = cut_windows(checkpoint, text, length, windows)
    config = EngineConfig(placement="ref", kv_dtype="f32")
    with Teacher(checkpoint, config, length=length, together=min(4, len(cut)), observer=observe) as teacher:
        for _ in teacher.read(cut, length // 2):
            pass
    return {name: _weights(squares) for name, squares in sums.items()}


def _weights(squares: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Float32Array:
    """Of mean 1, and nowhere 0."""
    mean = squares.mean()
    return ((squares / mean if mean else np.ones_like(squares)) + 1e-6).astype(np.float32)
