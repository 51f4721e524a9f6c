"""Asking a provider which packed weights it computes with: tiny graphs are run in packed form and in float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from tandem.devices.onnx.block_graphs import embed_graph, head_graph
from tandem.devices.onnx.graph import Array, Graph
from tandem.devices.onnx.weights_form import FLOAT32, Blocks, Forms, pack_block
from tandem.devices.spec import EmbedSpec, HeadSpec, NormSpec
from tandem.errors import DeviceError
from tandem.weights.tensor import Tensor, TensorType

# Runs a graph once on the provider alone, nothing of it elsewhere; its outputs by name, in arrays that last.
# DeviceError where it refuses.
Run = Callable[[Graph, Mapping[str, Array]], Mapping[str, Array]]

# For each kind of blocks a type that has them, and where in its blocks the scale is.
_PROBES = {
    Blocks(4, 32): (TensorType.Q4_0, 0),
    Blocks(8, 32): (TensorType.Q8_0, 0),
    Blocks(8, 16): (TensorType.Q6_K, 208),
}
# What a processor that computes in half precision, or with 8-bit activations, may differ from float32.
_TOLERANCE = 0.03
_ROWS, _OUTPUTS, _COLUMNS = 3, 48, 256


def probe_forms(run: Run, accuracy_level: int = 1) -> Forms:
    """The forms that the provider behind `run` computes with. Raises DeviceError where it refuses even float32."""
    nbits, dequantize, gather = set(), set(), set()
    for blocks, (type, scale_at) in _PROBES.items():
        only = frozenset({blocks})
        tensor = _tensor(type, scale_at)
        if _agrees(_multiplied, run, tensor, Forms(nbits=only, accuracy_level=accuracy_level)):
            nbits.add(blocks)
        if blocks.bits == 8 and _agrees(_multiplied, run, tensor, Forms(dequantize=only)):
            dequantize.add(blocks)
        if _agrees(_gathered, run, tensor, Forms(gather=only)):
            gather.add(blocks)
    return Forms(frozenset(nbits), frozenset(dequantize), frozenset(gather), accuracy_level)


def _agrees(compute: Callable[[Run, Tensor, Forms], Array], run: Run, tensor: Tensor, forms: Forms) -> bool:
    expected = compute(run, tensor, FLOAT32)
    try:
        got = compute(run, tensor, forms)
    except DeviceError:
        return False
    return bool(np.linalg.norm(got - expected) <= _TOLERANCE * np.linalg.norm(expected))


def _multiplied(run: Run, tensor: Tensor, forms: Forms) -> Array:
    ones = Tensor("norm", TensorType.F32, (_COLUMNS,), np.ones(_COLUMNS, np.float32).view(np.uint8))
    spec = HeadSpec(_OUTPUTS, _COLUMNS, NormSpec(1e-6))
    graph = head_graph(pack_block(spec, {"norm": ones, "output": tensor}, forms), _ROWS, _ROWS)
    hidden = np.random.default_rng(1).normal(0, 1, (_ROWS, _COLUMNS)).astype(np.float32)
    return run(graph, {"hidden": hidden, "samples": np.arange(_ROWS, dtype=np.int32)})["logits"]


def _gathered(run: Run, tensor: Tensor, forms: Forms) -> Array:
    graph = embed_graph(pack_block(EmbedSpec(_OUTPUTS, _COLUMNS), {"embedding": tensor}, forms), _ROWS)
    return run(graph, {"tokens": np.array([0, 7, _OUTPUTS - 1], np.int32)})["hidden"]


def _tensor(type: TensorType, scale_at: int) -> Tensor:
    data = np.random.default_rng(2).integers(0, 256, (_OUTPUTS, type.row_bytes(_COLUMNS)), dtype=np.uint8)
    blocks = data.reshape(-1, type.block_bytes)
    scales = np.linspace(0.001, 0.02, len(blocks), dtype=np.float16)
    blocks[:, scale_at : scale_at + 2] = scales[:, None].view(np.uint8)
    return Tensor("probe", type, (_OUTPUTS, _COLUMNS), data.reshape(-1))
