"""What one dispatch does for few rows and several do for many: the same bits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from devices.runner import Runner
from devices.vulkan.support import bundled, random_weights, relative_error, whole
from devices.vulkan.test_blocks import run
from tandem.devices.ref import RefDevice
from tandem.devices.spec import AttentionSpec, FFNSpec, KVDtype, NormSpec, RopeSpec
from tandem.devices.vulkan import VulkanDevice
from tandem.devices.vulkan.device import Mask
from tandem.devices.vulkan.dispatch import SPLIT_ROWS
from tandem.devices.vulkan.instance import Instance
from tandem.devices.vulkan.tiles import MOST_ROWS
from tandem.devices.vulkan.workspace import TICKETS
from tandem.weights.tensor import TensorType


@pytest.fixture(scope="module", params=[False, True], ids=["dots", "floats"])
def device(request: pytest.FixtureRequest, instance: Instance) -> Iterator[VulkanDevice]:
    opened = VulkanDevice(0, mask=Mask(integer_dot=request.param), instance=instance)
    yield opened
    for name in ("splits", "product"):
        if name in opened._machine.workspace._buffers:
            mapped = opened._machine.workspace.ticketed(name).mapped
            assert mapped is None or not mapped[: 4 * TICKETS].any(), "tickets end as they began"
    opened.close()


@pytest.mark.parametrize(
    ("kind", "width"),
    [(TensorType.Q4_0, 288), (TensorType.Q6_K, 1280)],
    ids=lambda value: getattr(value, "name", value),
)
def test_gate_up_and_activation(kind: TensorType, width: int, device: VulkanDevice) -> None:
    """Sums that 16 lanes share, and that 64 do."""
    post_norm = NormSpec(1e-5, 1.0) if width > 1024 else None
    spec = FFNSpec(1, width, 256, "gelu_tanh" if width > 1024 else "silu", NormSpec(1e-6), post_norm)
    weights = random_weights(np.random.default_rng(5), spec, kind)
    values = np.random.default_rng(2).normal(0, 1, (MOST_ROWS + 4, width)).astype(np.float32)
    apart = run(device, spec, weights, values, [(0, MOST_ROWS + 4)])
    for rows in (1, 7, MOST_ROWS):
        np.testing.assert_array_equal(run(device, spec, weights, values[:rows], [(0, rows)]), apart[:rows])


@pytest.mark.parametrize("ffn", [40, 96])
def test_outputs_that_are_no_whole_blocks(ffn: int, device: VulkanDevice, ref: RefDevice) -> None:
    """Such an FFN stays apart, and one row's norm does what it should where nothing begins at whole quads."""
    spec = FFNSpec(1, 70, ffn, "silu", NormSpec(1e-6), NormSpec(1e-6))
    weights = random_weights(np.random.default_rng(5), spec, TensorType.F32)
    values = np.random.default_rng(2).normal(0, 1, (3, 70)).astype(np.float32)
    for rows in (1, 3):
        got, expected = (run(each, spec, weights, values[:rows], [(0, rows)]) for each in (device, ref))
        assert relative_error(got, expected) < 2e-5


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "window", "pages"),
    [
        (4, 2, 64, None, "f16"),
        (4, 1, 32, 300, "f32"),
        (2, 1, 256, None, "f16"),
        (16, 1, 32, None, "f16"),  # more than one workgroup takes
        (3, 3, 32, 5, "q8_0"),
        (8, 4, 12, None, "f32"),  # no whole blocks of the output product's rows
    ],
)
def test_attention(
    heads: int, kv_heads: int, head_dim: int, window: int | None, pages: KVDtype, device: VulkanDevice
) -> None:
    """Rows with one split and with several, of a sequence each."""
    kind = TensorType.F32 if heads * head_dim % 32 else TensorType.Q4_0
    rope, norm = RopeSpec(1e4, head_dim), NormSpec(1e-6)
    scale = head_dim**-0.5
    spec = AttentionSpec(
        0, 64, heads, kv_heads, head_dim, scale, norm, rope, norm, norm, window, qkv_bias=True, o_bias=True
    )
    weights = random_weights(np.random.default_rng(3), spec, kind)
    count = SPLIT_ROWS + 4
    lengths = [((530, 3, 255, 256, 0, 30)[index] if index < 6 else index % 5, 1) for index in range(count)]
    values = np.random.default_rng(2).normal(0, 1, (count, 64)).astype(np.float32)
    apart = run(device, spec, weights, values, lengths, kv_dtype=pages)
    for rows in (1, 7):
        got = run(device, spec, weights, values[:rows], lengths[:rows], kv_dtype=pages)
        np.testing.assert_array_equal(got, apart[:rows])


@pytest.mark.parametrize(("rows", "most"), [(1, 5), (2, 7), (16, 7)])
def test_a_layer_at_decode(rows: int, most: int, vulkan: VulkanDevice) -> None:
    """Dispatches of a layer."""
    spec, checkpoint = bundled()
    runner = Runner(spec, checkpoint, whole(spec, vulkan), rows=16, sequences=16, context=32)
    runner.step([(runner.start(), [5 + index]) for index in range(rows)])
    ((_, program),) = runner._stages[0]
    counts = Counter(time.block for time in program.profile(runner._batch))
    # Q, K and V of two types are two products.
    extra = {block.work.layer: len(block.matrices["qkv"]) - 1 for block in program._blocks if "qkv" in block.matrices}
    layers = {layer: counts[f"attention {layer}"] + counts[f"ffn {layer}"] - extra[layer] for layer in extra}
    # Before the first layer, or behind the last one, there is a norm more.
    assert sum(layers.values()) == most * len(layers) + 1
    assert sorted(layers.values())[:-1] == [most] * (len(layers) - 1)
