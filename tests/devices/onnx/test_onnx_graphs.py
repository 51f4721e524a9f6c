"""Graphs of every kind of block against the reference: the specs that architectures write, and random ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devices.onnx.graph_rig import attention_block, normal, reference, run
from devices.vulkan.support import random_weights, relative_error, tiny
from models.cases import CASES
from tandem.devices.onnx.attention_graph import UNSEEN, attention_graph
from tandem.devices.onnx.block_graphs import combine_graph, embed_graph, ffn_graph, head_graph
from tandem.devices.onnx.weights_form import FLOAT32, Blocks, Forms, pack_block
from tandem.devices.slicing import combine_spec, combine_weights
from tandem.devices.spec import (
    AttentionSpec,
    BlockSpec,
    CombineSpec,
    EmbedSpec,
    FFNSpec,
    HeadSpec,
    NormSpec,
    RopeSpec,
    Slice,
)
from tandem.models.load import block_weights
from tandem.weights.dequantize import dequantize
from tandem.weights.tensor import Tensor, TensorType

# As much as sums of float32 in another order differ.
LIMIT = 2e-5
ALL_BLOCKS = frozenset({Blocks(4, 32), Blocks(8, 32), Blocks(8, 16)})
NBITS = Forms(nbits=ALL_BLOCKS)
TYPES = [TensorType.F32, TensorType.F16, TensorType.Q4_0, TensorType.Q8_0, TensorType.Q4_K, TensorType.Q6_K]
LENGTHS = [(37, 1), (0, 6), (70, 3)]
FEW = settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)

GEMMA_NORM, NORM = NormSpec(1e-6, 1.0), NormSpec(1e-5)
LLAMA_ROPE = RopeSpec(5e5, 64, "interleaved", frequency_factors=tuple(np.linspace(1, 8, 32)))
ATTENTION = {
    "gemma3-local": AttentionSpec(
        0, 512, 4, 1, 128, 0.1, GEMMA_NORM, RopeSpec(1e4, 128), GEMMA_NORM, GEMMA_NORM, window=20
    ),
    "gemma3-full": AttentionSpec(
        5, 512, 4, 2, 128, 0.1, GEMMA_NORM, RopeSpec(1e6, 128, linear_factor=8.0), GEMMA_NORM, GEMMA_NORM, softcap=5.0
    ),
    "llama": AttentionSpec(1, 256, 8, 2, 64, 0.125, NORM, LLAMA_ROPE),
    "qwen3": AttentionSpec(1, 256, 4, 4, 64, 0.125, NORM, RopeSpec(1e6, 64), NORM),
    "qwen2": AttentionSpec(1, 256, 6, 2, 128, 0.09, NORM, RopeSpec(1e6, 128), qkv_bias=True, o_bias=True),
}
FFN = {
    "gemma3": FFNSpec(0, 256, 512, "gelu_tanh", GEMMA_NORM, GEMMA_NORM),
    "llama": FFNSpec(0, 512, 768, "silu", NORM),
}


def attend_and_compare(
    spec: AttentionSpec, weights: dict[str, Tensor], forms: Forms, lengths: Sequence[tuple[int, int]] = LENGTHS
) -> None:
    hidden = normal(2, sum(new for _, new in lengths), spec.hidden)
    past = normal(1, sum(before for before, _ in lengths), spec.hidden)
    expected = reference(spec, weights, hidden, lengths, past=past) - hidden
    got = attention_block(pack_block(spec, weights, forms), hidden, lengths, past) - hidden
    assert relative_error(got, expected) < LIMIT


def weights_of(spec: BlockSpec, kind: TensorType, seed: int = 0) -> dict[str, Tensor]:
    return random_weights(np.random.default_rng(seed), spec, kind)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("family", ATTENTION)
def test_attention(family: str, kind: TensorType) -> None:
    attend_and_compare(ATTENTION[family], weights_of(ATTENTION[family], kind), NBITS)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("family", FFN)
def test_ffn(family: str, kind: TensorType) -> None:
    spec, hidden = FFN[family], normal(2, 5, FFN[family].hidden)
    weights = weights_of(spec, kind)
    expected = reference(spec, weights, hidden, [(0, 5)]) - hidden
    got = run(ffn_graph(pack_block(spec, weights, NBITS), 5), {"hidden": hidden})["addend"]
    assert relative_error(got, expected) < LIMIT


@pytest.mark.parametrize(
    "name", ["gemma3-layer-ropes", "llama-llama3-rope", "llama-linear-rope-biases", "qwen3-biases-layer-types"]
)
def test_blocks_that_architectures_write(name: str, tmp_path: Path) -> None:
    """Float32 weights of tiny models, every block of theirs."""
    spec, checkpoint = tiny(next(case for case in CASES if case.name == name), tmp_path)
    for index, block in enumerate(spec.blocks):
        weights = dict(block_weights(checkpoint, spec, index))
        packed = pack_block(block, weights, FLOAT32)
        hidden = normal(index, 10, spec.hidden)
        match block:
            case AttentionSpec():
                attend_and_compare(block, weights, FLOAT32)
                continue
            case FFNSpec():
                got = run(ffn_graph(packed, 10), {"hidden": hidden})["addend"] + hidden
            case HeadSpec():
                samples = np.arange(10, dtype=np.int32)
                got = run(head_graph(packed, 10, 10), {"hidden": hidden, "samples": samples})["logits"]
            case EmbedSpec():
                got = run(embed_graph(packed, 10), {"tokens": np.zeros(10, np.int32)})["hidden"]
        assert relative_error(got, reference(block, weights, hidden, [(0, 10)])) < LIMIT, block


@st.composite
def attention_specs(draw: st.DrawFn) -> AttentionSpec:
    norms = st.builds(NormSpec, st.sampled_from([1e-6, 1e-5]), st.sampled_from([0.0, 1.0]))
    kv_heads, head_dim = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([12, 32, 80]))
    rope = st.builds(
        RopeSpec,
        st.sampled_from([1e4, 1e6]),
        st.sampled_from([head_dim, head_dim // 4 * 2]),
        st.sampled_from(["half", "interleaved"]),
        st.sampled_from([1.0, 8.0]),
    )
    return AttentionSpec(
        layer=3,
        hidden=draw(st.sampled_from([40, 96, 260])),
        heads=kv_heads * draw(st.sampled_from([1, 2, 4])),
        kv_heads=kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        norm=draw(norms),
        rope=draw(st.none() | rope),
        qk_norm=draw(st.none() | norms),
        post_norm=draw(st.none() | norms),
        window=draw(st.sampled_from([None, 5, 33, 70])),
        softcap=draw(st.sampled_from([None, 5.0])),
        qkv_bias=draw(st.booleans()),
        o_bias=draw(st.booleans()),
    )


@FEW
@given(
    attention_specs(),
    st.lists(st.tuples(st.integers(0, 90), st.integers(1, 11)), min_size=1, max_size=3),
    st.sampled_from([TensorType.F32, TensorType.F16, TensorType.BF16]),
)
def test_any_attention(spec: AttentionSpec, lengths: list[tuple[int, int]], kind: TensorType) -> None:
    attend_and_compare(spec, weights_of(spec, kind), FLOAT32, lengths)


@pytest.mark.parametrize("kind", [TensorType.F32, TensorType.Q4_0], ids=lambda kind: kind.name)
@pytest.mark.parametrize("family", ["gemma3-full", "qwen2"])
def test_attention_in_slices(family: str, kind: TensorType) -> None:
    """KV heads shared by two: bare partials, which the owner adds."""
    spec = ATTENTION[family]
    weights = weights_of(spec, kind)
    hidden, past = normal(2, 10, spec.hidden), normal(1, 107, spec.hidden)
    partials = []
    for part in (Slice(0, 0, 1), Slice(1, 1, 2)):
        expected = reference(spec, weights, hidden, LENGTHS, part, past)
        partials.append(attention_block(pack_block(spec, weights, NBITS, part), hidden, LENGTHS, past))
        assert relative_error(partials[-1], expected) < LIMIT
    combined(spec, weights, partials, hidden, reference(spec, weights, hidden, LENGTHS, past=past))


@pytest.mark.parametrize("kind", [TensorType.F32, TensorType.Q8_0], ids=lambda kind: kind.name)
@pytest.mark.parametrize("family", FFN)
def test_ffn_in_slices(family: str, kind: TensorType) -> None:
    spec = FFN[family]
    weights, hidden = weights_of(spec, kind), normal(2, 5, spec.hidden)
    partials = []
    for part in (Slice(0, 0, 128), Slice(1, 128, 224), Slice(2, 224, spec.ffn)):
        graph = ffn_graph(pack_block(spec, weights, NBITS, part), 5)
        partials.append(run(graph, {"hidden": hidden})["partial"])
        assert relative_error(partials[-1], reference(spec, weights, hidden, [(0, 5)], part)) < LIMIT
    combined(spec, weights, partials, hidden, reference(spec, weights, hidden, [(0, 5)]))


def combined(
    spec: AttentionSpec | FFNSpec,
    weights: dict[str, Tensor],
    partials: list[np.ndarray],
    hidden: np.ndarray,
    expected: np.ndarray,
) -> None:
    """The owner's part of a sliced block gives what the whole block does."""
    owner = combine_spec(spec, len(partials))
    graph = combine_graph(pack_block(owner, combine_weights(weights), FLOAT32), len(hidden))
    inputs = {f"partial_{index}": partial for index, partial in enumerate(partials)}
    got = run(graph, inputs)["addend"] + hidden
    assert relative_error(got - hidden, expected - hidden) < LIMIT


def test_combine_adds_in_slice_order() -> None:
    spec = CombineSpec(0, 32, 3, bias=True)
    weights = weights_of(spec, TensorType.F32)
    parts = [np.full((2, 32), value, np.float32) for value in (1e8, -1e8, 1.0)]
    inputs = {f"partial_{index}": part for index, part in enumerate(parts)}
    hidden = normal(1, 2, 32)
    got = run(combine_graph(pack_block(spec, weights, FLOAT32), 2), inputs)["addend"] + hidden
    np.testing.assert_array_equal(got, hidden + (np.float32(1.0) + dequantize(weights["bias"])))


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_head(kind: TensorType) -> None:
    """The rows that are sampled, in the order in which they are asked for, with the cap on logits."""
    spec = HeadSpec(77, 256, NormSpec(1e-6, 1.0), softcap=3.0)
    weights, hidden = weights_of(spec, kind), normal(2, 9, 256)
    chosen = np.array([8, 0, 8, 3], np.int32)
    graph = head_graph(pack_block(spec, weights, NBITS), 9, 4)
    got = run(graph, {"hidden": hidden, "samples": chosen})["logits"]
    assert relative_error(got, reference(spec, weights, hidden, [(0, 9)])[chosen]) < LIMIT


@pytest.mark.parametrize("paged", [True, False], ids=["paged", "gathered"])
def test_half_precision_pages(paged: bool) -> None:
    """What is in the pages is rounded, and nothing else: the result is that of rounded keys and values."""
    spec = replace(ATTENTION["gemma3-local"], rope=None, qk_norm=None)
    weights = weights_of(spec, TensorType.F32)
    lengths = [(30, 2), (0, 1)]
    hidden, past = normal(2, 3, spec.hidden), normal(1, 30, spec.hidden)
    block = pack_block(spec, weights, FLOAT32)
    exact, half = (
        attention_block(block, hidden, lengths, past, paged=paged, kv_dtype=dtype) - hidden for dtype in ("f32", "f16")
    )
    assert relative_error(exact, reference(spec, weights, hidden, lengths, past=past) - hidden) < LIMIT
    assert 1e-6 < relative_error(half, exact) < 1e-3


def test_rows_that_see_nothing_stay_finite() -> None:
    """A batch's padding attends to masked keys alone."""
    spec = ATTENTION["llama"]
    graph = attention_graph(spec, 2, 3, 16)
    q, keys, values = normal(1, 6, 8, 64), normal(2, 2, 2, 16, 64), normal(3, 2, 2, 16, 64)
    mask = np.full((2, 3, 16), UNSEEN, np.float32)
    attended = run(graph, {"q": 40 * q, "keys": keys, "values": values, "mask": mask})["attended"]
    assert np.isfinite(attended).all()


def test_a_masked_key_weighs_nothing() -> None:
    """Not even one whose score is far above the others': exactly the same result without it."""
    spec = replace(ATTENTION["llama"], heads=1, kv_heads=1, rope=None)
    q, keys, values = normal(1, 1, 1, 64), normal(2, 1, 1, 16, 64), normal(3, 1, 1, 16, 64)
    mask = np.zeros((1, 1, 16), np.float32)
    mask[..., 9] = UNSEEN
    results = []
    for factor in (1.0, 1000.0):
        keys[0, 0, 9], values[0, 0, 9] = factor * q[0, 0], factor
        inputs = {"q": q, "keys": keys, "values": values, "mask": mask}
        results.append(run(attention_graph(spec, 1, 1, 16), inputs)["attended"])
    np.testing.assert_array_equal(results[0], results[1])
