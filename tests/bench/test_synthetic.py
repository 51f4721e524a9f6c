"""Models without files: every matrix is another part of the pool, and the normal way of loading takes them."""

from __future__ import annotations

import numpy as np
import pytest

from tandem.bench.subject import open_subject
from tandem.bench.synthetic import Shape, synthetic_checkpoint
from tandem.bench.throughput import ThroughputBench, Workload
from tandem.errors import BenchError
from tandem.models.open import model_spec
from tandem.weights.dequantize import dequantize
from tandem.weights.tensor import TensorType

SHAPE = Shape(layers=7, hidden=256, ffn=512, heads=2, kv_heads=1, head_dim=128, window=32, scaling=8.0, vocab=512)


@pytest.mark.parametrize("kind", TensorType)
def test_weights_are_of_a_trained_models_size_and_differ(kind: TensorType) -> None:
    checkpoint = synthetic_checkpoint("test", SHAPE, kind, context=128)
    matrices = [tensor for tensor in checkpoint.tensors.values() if len(tensor.shape) == 2]
    assert len({tensor.data.ctypes.data for tensor in matrices}) == len(matrices) == 1 + 7 * 7
    for tensor in matrices[:3]:
        values = dequantize(tensor)
        assert values.shape == tensor.shape and 0.005 < np.std(values) < 0.06
    assert not np.array_equal(matrices[1].data, matrices[4].data)
    again = synthetic_checkpoint("test", SHAPE, kind, context=128).tensors[matrices[0].name]
    np.testing.assert_array_equal(again.data, matrices[0].data)


def test_an_engine_runs_on_them() -> None:
    workload = Workload(kinds=("decode",), batches=(2,), depths=(0,), prompt_tokens=8, new_tokens=2, rows=16)
    checkpoint = synthetic_checkpoint("test", SHAPE, TensorType.Q4_K, context=128)
    spec = model_spec(checkpoint)
    assert [block.window for block in spec.attention] == [32, 32, 32, 32, 32, None, 32]
    with open_subject(checkpoint, workload.engine_config(spec, threads=1, placement="cpu")) as subject:
        assert ThroughputBench(subject.engine, workload).measure("decode", 2, 0).rows == 4


def test_rows_that_a_type_cannot_hold() -> None:
    odd = Shape(layers=1, hidden=160, ffn=512, heads=2, kv_heads=1, head_dim=64, window=32, scaling=0.0, vocab=512)
    with pytest.raises(BenchError, match=r"rows of 160, which Q4_K cannot hold; take Q4_0 or Q8_0"):
        synthetic_checkpoint("odd", odd, TensorType.Q4_K)
