"""What a provider is given for each packed type, how many bytes that is, and how a provider is asked."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from devices.onnx.conftest import PROVIDER
from devices.onnx.graph_rig import normal, reference, run, session
from devices.vulkan.support import random_weights, relative_error
from tandem.devices.onnx.block_graphs import embed_graph, ffn_graph, head_graph
from tandem.devices.onnx.graph import Array, Graph
from tandem.devices.onnx.probe_forms import probe_forms
from tandem.devices.onnx.weights_form import FLOAT32, Blocks, Forms, pack_block, packed_bytes
from tandem.devices.slicing import headers
from tandem.devices.spec import AttentionSpec, BlockSpec, EmbedSpec, FFNSpec, HeadSpec, NormSpec, Slice
from tandem.errors import DeviceError
from tandem.weights.dequantize import dequantize
from tandem.weights.tensor import TensorType

NORM = NormSpec(1e-6)
ALL = frozenset({Blocks(4, 32), Blocks(8, 32), Blocks(8, 16)})
WIDE = ALL - {Blocks(4, 32)}
FORMS = {
    "float32": FLOAT32,
    "nbits": Forms(nbits=ALL, gather=ALL),
    "wide": Forms(nbits=WIDE, gather=WIDE),
    "dequantize": Forms(dequantize=WIDE),
}
SPECS: dict[str, tuple[BlockSpec, Slice | None]] = {
    "attention": (AttentionSpec(0, 256, 4, 2, 128, 0.1, NORM, None, NORM, NORM, qkv_bias=True, o_bias=True), None),
    "heads": (AttentionSpec(0, 256, 4, 2, 128, 0.1, NORM, None, NORM, NORM, qkv_bias=True), Slice(0, 1, 2)),
    "ffn": (FFNSpec(0, 256, 768, "silu", NORM, NORM), None),
    "columns": (FFNSpec(0, 256, 768, "silu", NORM, NORM), Slice(1, 256, 512)),
    "embed": (EmbedSpec(31, 256), None),
    "head": (HeadSpec(31, 256, NORM), None),
}


@pytest.mark.parametrize("kind", list(TensorType), ids=lambda kind: kind.name)
@pytest.mark.parametrize("forms", FORMS)
@pytest.mark.parametrize("block", SPECS)
def test_bytes_are_known_beforehand(block: str, forms: str, kind: TensorType) -> None:
    spec, part = SPECS[block]
    weights = random_weights(np.random.default_rng(0), spec, kind)
    ((work, cut),) = headers([(spec, weights, part)])
    assert packed_bytes(work, cut, FORMS[forms]) == pack_block(spec, weights, FORMS[forms], part).nbytes


@pytest.mark.parametrize("kind", list(TensorType), ids=lambda kind: kind.name)
@pytest.mark.parametrize("forms", FORMS)
def test_every_type_in_every_form(forms: str, kind: TensorType) -> None:
    """The same values whichever way a provider takes them."""
    spec = HeadSpec(77, 512, NORM)
    weights, hidden = random_weights(np.random.default_rng(5), spec, kind), normal(2, 3, 512)
    block = pack_block(spec, weights, FORMS[forms])
    got = run(head_graph(block, 3, 3), {"hidden": hidden, "samples": np.arange(3, dtype=np.int32)})["logits"]
    assert relative_error(got, reference(spec, weights, hidden, [(0, 3)])) < 2e-5


@pytest.mark.parametrize("kind", list(TensorType), ids=lambda kind: kind.name)
@pytest.mark.parametrize("forms", ["float32", "nbits", "wide"] if PROVIDER == "cpu" else ["float32"])
def test_every_type_gathered(forms: str, kind: TensorType) -> None:
    """GatherBlockQuantized is ONNX Runtime's own; OpenVINO has none."""
    spec = EmbedSpec(31, 512, scale=3.0)
    weights = random_weights(np.random.default_rng(5), spec, kind)
    tokens = np.array([30, 0, 7, 7], np.int32)
    got = run(embed_graph(pack_block(spec, weights, FORMS[forms]), 4), {"tokens": tokens})["hidden"]
    np.testing.assert_allclose(got, 3 * dequantize(weights["embedding"])[tokens], rtol=1e-5, atol=1e-6)


def test_what_is_said() -> None:
    spec = FFNSpec(0, 256, 512, "silu", NORM)
    weights = random_weights(np.random.default_rng(0), spec, TensorType.Q4_K)
    assert pack_block(spec, weights, FORMS["nbits"]).said["gate"] == "Q4_K as 4-bit blocks of 32 (MatMulNBits)"
    assert pack_block(spec, weights, FORMS["dequantize"]).said["up"] == "Q4_K as 8-bit blocks of 32 (DequantizeLinear)"
    assert pack_block(spec, weights, FLOAT32).said == dict.fromkeys(("gate", "up", "down"), "Q4_K as float32 (MatMul)")


def test_graphs_share_what_was_packed() -> None:
    """Graphs for other numbers of rows name the same arrays; and a model that holds its bytes itself is the same."""
    spec = FFNSpec(0, 256, 512, "silu", NORM)
    block = pack_block(spec, random_weights(np.random.default_rng(0), spec, TensorType.Q4_0), FORMS["nbits"])
    few, many = ffn_graph(block, 2), ffn_graph(block, 64)
    assert few.initializers and all(many.initializers[name] is array for name, array in few.initializers.items())
    assert few.weight_bytes <= block.nbytes and len(few.model) < 16_384
    hidden = normal(1, 2, 256)
    (expected,) = session(few).run(None, {"hidden": hidden})
    (got,) = session(few, inline=True).run(None, {"hidden": hidden})
    assert relative_error(got, expected) < 1e-6


def test_asking_the_provider() -> None:
    forms = probe_forms(run)
    assert forms == EXPECTED[PROVIDER]


EXPECTED = {"cpu": Forms(ALL, WIDE, ALL), "openvino": Forms(ALL, WIDE)}


def test_a_provider_that_refuses_or_is_wrong() -> None:
    """Nobody's word is taken: what raises is not used, nor what comes out otherwise."""

    def refuses(graph: Graph, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        if b"MatMulNBits" in graph.model:
            raise DeviceError("no such operator")
        outputs = run(graph, inputs)
        wrong = 1.1 if b"GatherBlockQuantized" in graph.model else 1.0
        return {name: wrong * value for name, value in outputs.items()}

    forms = probe_forms(refuses)
    assert forms.nbits == frozenset() == forms.gather
    with pytest.raises(DeviceError, match="float32 refused"):
        probe_forms(_refuses_all)


def _refuses_all(graph: Graph, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
    raise DeviceError("float32 refused")
