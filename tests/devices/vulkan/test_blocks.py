"""Single blocks of random shapes and types against the reference, through the seam: load, link, submit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devices.runner import aligned_zeros
from devices.vulkan.support import random_tensor, random_weights, relative_error
from tandem._native import Timeline
from tandem.devices.base import Device, Event, KVGroupSpec, StepBuffers
from tandem.devices.batch import Batch, BatchLayout
from tandem.devices.cpu import CpuDevice
from tandem.devices.ref import RefDevice
from tandem.devices.spec import AttentionSpec, EmbedSpec, FFNSpec, HeadSpec, KVDtype, NormSpec, RopeSpec
from tandem.devices.vulkan import VulkanDevice
from tandem.devices.vulkan.device import Mask
from tandem.devices.vulkan.instance import Instance
from tandem.devices.vulkan.tiles import MATRIX_ROWS, MOST_ROWS
from tandem.weights.tensor import Tensor, TensorType

# 256 suits every type; lengths that are no multiple of 32 only the unquantized ones.
WIDTHS = {1: [40, 96, 260], 32: [32, 96, 288], 256: [256, 512]}
TYPES = list(TensorType)
FEW = settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def run(
    device: Device,
    spec: Any,
    weights: dict[str, Tensor],
    hidden: np.ndarray,
    lengths: list[tuple[int, int]],
    page_size: int = 16,
    kv_dtype: KVDtype = "f32",
) -> np.ndarray:
    """The block's result on sequences of (positions so far, new rows), one step for what is past and one for the new.

    The residual stream is `hidden` [rows, width] in the last step; logits for a head.
    """
    rows = len(hidden)
    vocab = spec.vocab if isinstance(spec, HeadSpec) else 1
    most = max(rows, sum(past for past, _ in lengths), 1)
    buffers = StepBuffers(aligned_zeros((most, spec.hidden)), aligned_zeros((most, vocab)), aligned_zeros((0, most, 1)))
    pools = []
    if isinstance(spec, AttentionSpec):
        group = KVGroupSpec(0, (spec.layer,), spec.kv_heads, spec.head_dim, spec.window, page_size, kv_dtype)
        each = -(-max(past + new for past, new in lengths) // page_size)
        pools = [device.allocate_kv(group, each * len(lengths))]
    program = device.link([device.load(spec, weights)], rows=most, buffers=buffers, kv=pools)
    batch = Batch(BatchLayout(most, len(lengths), most, 4096, 1))
    timeline, value = Timeline(), 0
    past = np.random.default_rng(1).normal(0, 1, (most, spec.hidden)).astype(np.float32)
    for part, values in ((0, past), (1, hidden)):
        row = page = 0
        for index, (before, new) in enumerate(lengths):
            count, start = (before, 0) if part == 0 else (new, before)
            pages = -(-(start + count) // page_size)
            batch.sequences[index] = (row, count, start + count, index, page, 0)
            # Pages of the sequences alternate.
            batch.pages[page : page + pages] = np.arange(pages) * len(lengths) + index
            page += pages
            for position in range(start, start + count):
                batch.rows[row] = (index, position, (row * 7) % vocab_of(spec), 0)
                batch.samples[row] = (row, row, 0, 0)
                row += 1
        if row == 0:
            continue
        buffers.hidden[:row] = values[:row]
        batch.set_counts(row, len(lengths), row)
        value += 1
        program.submit(batch, signal=Event(timeline, value))
        Event(timeline, value).wait()
    return (buffers.logits if isinstance(spec, HeadSpec) else buffers.hidden)[:rows].copy()


def vocab_of(spec: Any) -> int:
    return spec.vocab if isinstance(spec, EmbedSpec | HeadSpec) else 1


def compare(
    vulkan: VulkanDevice,
    ref: RefDevice,
    spec: Any,
    weights: dict[str, Tensor],
    lengths: list[tuple[int, int]],
    page_size: int = 16,
    limit: float = 2e-5,
) -> None:
    hidden = np.random.default_rng(2).normal(0, 1, (sum(new for _, new in lengths), spec.hidden)).astype(np.float32)
    expected = run(ref, spec, weights, hidden, lengths, page_size)
    got = run(vulkan, spec, weights, hidden, lengths, page_size)
    if isinstance(spec, AttentionSpec | FFNSpec):
        # What the block adds; the residual stream alone would hide an error in it.
        got, expected = got - hidden, expected - hidden
    assert relative_error(got, expected) < limit


@pytest.fixture(scope="module")
def exact(instance: Instance) -> Iterator[VulkanDevice]:
    """Without integer dots: every product in float32."""
    device = VulkanDevice(0, mask=Mask(integer_dot=True), instance=instance)
    yield device
    device.close()


@pytest.fixture(scope="module")
def fast_exact(instance: Instance) -> Iterator[VulkanDevice]:
    """Tiles for many rows, in float32."""
    device = VulkanDevice(0, deterministic=False, mask=Mask(integer_dot=True), instance=instance)
    yield device
    device.close()


@pytest.fixture(scope="module")
def fast(instance: Instance) -> Iterator[VulkanDevice]:
    """Tiles for many rows."""
    device = VulkanDevice(0, deterministic=False, instance=instance)
    yield device
    device.close()


@st.composite
def norms(draw: st.DrawFn) -> NormSpec:
    return NormSpec(draw(st.sampled_from([1e-6, 1e-5])), draw(st.sampled_from([0.0, 1.0])))


@st.composite
def sequences(draw: st.DrawFn) -> list[tuple[int, int]]:
    return draw(st.lists(st.tuples(st.integers(0, 90), st.integers(1, 11)), min_size=1, max_size=3))


@FEW
@given(st.data())
def test_attention(exact: VulkanDevice, ref: RefDevice, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(TYPES))
    kv_heads = data.draw(st.sampled_from([1, 2, 3]))
    # A product's rows must be whole blocks: of the hidden size, and of all heads together.
    head_dim = {1: 12, 32: 32, 256: 256}[kind.block] if data.draw(st.booleans()) else 128
    heads = kv_heads * data.draw(st.sampled_from([1, 2, 4]))
    if heads * head_dim % kind.block:
        heads *= 2
    spec = AttentionSpec(
        layer=3,
        hidden=data.draw(st.sampled_from(WIDTHS[kind.block])),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        norm=data.draw(norms()),
        rope=data.draw(
            st.none()
            | st.builds(
                RopeSpec,
                st.sampled_from([1e4, 1e6]),
                st.sampled_from([head_dim, head_dim // 2 // 2 * 2]),
                st.sampled_from(["half", "interleaved"]),
                st.sampled_from([1.0, 8.0]),
            )
        ),
        qk_norm=data.draw(st.none() | norms()),
        post_norm=data.draw(st.none() | norms()),
        window=data.draw(st.sampled_from([None, 5, 33, 70])),
        softcap=data.draw(st.sampled_from([None, 5.0])),
        qkv_bias=data.draw(st.booleans()),
        o_bias=data.draw(st.booleans()),
    )
    weights = random_weights(np.random.default_rng(data.draw(st.integers(0, 9))), spec, kind)
    compare(exact, ref, spec, weights, data.draw(sequences()), data.draw(st.sampled_from([16, 4])))


@pytest.mark.parametrize("window", [None, 300], ids=["full", "window"])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(2, 1, 32), (6, 2, 64), (5, 1, 256)])
def test_attention_over_splits(
    heads: int, kv_heads: int, head_dim: int, window: int | None, vulkan: VulkanDevice, ref: RefDevice
) -> None:
    """Long sequences: 700 positions written by a step that takes the splits of a row in turn, then a few rows that
    take them side by side.
    """
    spec = AttentionSpec(
        0, 40, heads, kv_heads, head_dim, head_dim**-0.5, NormSpec(1e-6), RopeSpec(1e4, head_dim), window=window
    )
    weights = random_weights(np.random.default_rng(3), spec, TensorType.F32)
    compare(vulkan, ref, spec, weights, [(700, 3), (250, 7), (0, 1)])
    compare(vulkan, ref, spec, weights, [(520, 90), (30, 10)])


@pytest.mark.parametrize("dtype", ["f16", "q8_0"])
@pytest.mark.parametrize("window", [None, 70, 300], ids=["full", "narrow", "window"])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(2, 1, 32), (12, 2, 96), (3, 1, 128), (4, 1, 256)])
def test_attention_of_many_rows(
    heads: int, kv_heads: int, head_dim: int, window: int | None, dtype: str, fast: VulkanDevice, vulkan: VulkanDevice
) -> None:
    """With cooperative matrices where the driver has them: within float16 of what float32 gives."""
    spec = AttentionSpec(
        *(0, 64, heads, kv_heads, head_dim, head_dim**-0.5, NormSpec(1e-6), RopeSpec(1e4, head_dim)),
        window=window,
        softcap=30.0 if window == 70 else None,
    )
    weights = random_weights(np.random.default_rng(3), spec, TensorType.F32)
    for lengths, page_size in (([(600, 80), (3, 61), (63, 2), (0, 1)], 16), ([(0, 130)], 4)):
        rows = sum(new for _, new in lengths)
        hidden = np.random.default_rng(2).normal(0, 1, (rows, spec.hidden)).astype(np.float32)
        got, expected = (
            run(device, spec, weights, hidden, lengths, page_size, dtype) - hidden for device in (fast, vulkan)
        )
        assert relative_error(got, expected) < 2e-3


@pytest.mark.parametrize("head_dim", [32, 64, 96])
def test_8_bit_pages_hold_what_the_cpus_do(head_dim: int, vulkan: VulkanDevice) -> None:
    """With float32 weights, so that keys and values alone are rounded; one on the edge may round the other way."""
    spec = AttentionSpec(0, 40, 3, 3, head_dim, head_dim**-0.5, NormSpec(1e-6), RopeSpec(1e4, head_dim), window=70)
    weights = random_weights(np.random.default_rng(3), spec, TensorType.F32)
    hidden = np.random.default_rng(2).normal(0, 1, (80, 40)).astype(np.float32)
    cpu = CpuDevice(threads=1)
    lengths = [(60, 70), (3, 10)]
    expected, got = (run(device, spec, weights, hidden, lengths, 16, "q8_0") - hidden for device in (cpu, vulkan))
    exact = run(cpu, spec, weights, hidden, lengths) - hidden
    cpu.close()
    error = relative_error(expected, exact)
    assert error > 1e-4 and relative_error(got, expected) < 0.2 * error


@FEW
@given(st.data())
def test_ffn(exact: VulkanDevice, ref: RefDevice, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(TYPES))
    spec = FFNSpec(
        layer=1,
        hidden=data.draw(st.sampled_from(WIDTHS[kind.block])),
        ffn=data.draw(st.sampled_from(WIDTHS[kind.block])),
        activation=data.draw(st.sampled_from(["silu", "gelu_tanh"])),
        norm=data.draw(norms()),
        post_norm=data.draw(st.none() | norms()),
    )
    weights = random_weights(np.random.default_rng(data.draw(st.integers(0, 9))), spec, kind)
    compare(exact, ref, spec, weights, [(0, data.draw(st.integers(1, 70)))])


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_every_type_unpacks_exactly(kind: TensorType, vulkan: VulkanDevice, ref: RefDevice) -> None:
    """An embedding is nothing but unpacking; K-quants round once less where the GPU fuses."""
    spec = EmbedSpec(vocab=31, hidden=WIDTHS[kind.block][-1], scale=1.0)
    weights = random_weights(np.random.default_rng(4), spec, kind)
    hidden = np.zeros((31, spec.hidden), np.float32)
    expected, got = (run(device, spec, weights, hidden, [(0, 31)]) for device in (ref, vulkan))
    np.testing.assert_allclose(got, expected, rtol=2e-6, atol=1e-8)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("rows", [1, 3, 13])
def test_head(kind: TensorType, rows: int, exact: VulkanDevice, ref: RefDevice) -> None:
    """A float32 product in a few row-count buckets, with the cap on logits."""
    spec = HeadSpec(vocab=77, hidden=WIDTHS[kind.block][-1], norm=NormSpec(1e-6, 1.0), softcap=3.0)
    compare(exact, ref, spec, random_weights(np.random.default_rng(5), spec, kind), [(0, rows)])


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_float_tiles(kind: TensorType, fast_exact: VulkanDevice, ref: RefDevice) -> None:
    spec = HeadSpec(vocab=77, hidden=WIDTHS[kind.block][-1], norm=NormSpec(1e-6, 1.0), softcap=3.0)
    weights = random_weights(np.random.default_rng(5), spec, kind)
    halves = kind in (TensorType.F16, TensorType.BF16)
    limit = 1e-3 if halves and fast_exact._machine.kernels.matrices else 2e-5
    compare(fast_exact, ref, spec, weights, [(0, 75)], limit=limit)


@pytest.mark.parametrize("kind", [TensorType.BF16, TensorType.Q5_K], ids=lambda kind: kind.name)
def test_long_sums(kind: TensorType, vulkan: VulkanDevice, exact: VulkanDevice, ref: RefDevice) -> None:
    """Few outputs of many columns: more lanes share a sum, in one order for every row count."""
    spec = HeadSpec(vocab=13, hidden=17 * 256, norm=NormSpec(1e-6))
    weights = random_weights(np.random.default_rng(5), spec, kind)
    compare(exact, ref, spec, weights, [(0, 20)])
    hidden = np.random.default_rng(2).normal(0, 1, (20, spec.hidden)).astype(np.float32)
    together = run(vulkan, spec, weights, hidden, [(0, 20)])
    for rows in (1, 2, 5, 11):
        np.testing.assert_array_equal(run(vulkan, spec, weights, hidden[:rows], [(0, rows)]), together[:rows])


@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind.block > 1], ids=lambda kind: kind.name)
@pytest.mark.parametrize("rows", [1, 3, 13, 20, 40, 75])
def test_integer_product(kind: TensorType, rows: int, vulkan: VulkanDevice, fast: VulkanDevice) -> None:
    """8-bit activations and integer dots are the CPU's; an activation on the edge may round the other way."""
    # More than 16 blocks: sums of fewer have one order by any kernel.
    spec = HeadSpec(vocab=77, hidden=768, norm=NormSpec(1e-6, 1.0))
    weights = random_weights(np.random.default_rng(5), spec, kind)
    hidden = np.random.default_rng(2).normal(0, 1, (rows, spec.hidden)).astype(np.float32)
    cpu = CpuDevice(threads=1)
    expected, got, tiled = (run(device, spec, weights, hidden, [(0, rows)]) for device in (cpu, vulkan, fast))
    cpu.close()
    assert relative_error(got, expected) < 1e-3
    # Few rows take the same kernel; more take tiles: of float16 where there are cooperative matrices.
    few = MATRIX_ROWS - 1 if fast._machine.kernels.matrices else MOST_ROWS
    assert (rows <= few) == np.array_equal(got, tiled)
    assert relative_error(tiled, expected) < 1e-3


@pytest.mark.parametrize(
    "kind", [TensorType.F16, TensorType.BF16, TensorType.Q4_0, TensorType.Q6_K], ids=lambda kind: kind.name
)
@pytest.mark.parametrize("rows", [9, 30, 50, 150])
def test_large_activations_in_tiles(kind: TensorType, rows: int, vulkan: VulkanDevice, fast: VulkanDevice) -> None:
    """Beyond float16's range: what goes into a half-precision product is scaled first. Sums are cut into splits."""
    spec = FFNSpec(1, 256, 512, "silu", NormSpec(1e-6))
    weights = random_weights(np.random.default_rng(5), spec, kind)
    weights["norm"] = Tensor("norm", TensorType.F32, (256,), np.full(256, 3e4, np.float32).view(np.uint8))
    hidden = np.random.default_rng(2).normal(0, 1, (rows, 256)).astype(np.float32)
    expected, got = (run(device, spec, weights, hidden, [(0, rows)]) for device in (vulkan, fast))
    assert np.abs(expected).max() > 65_504
    # Float16's rounding moves some of the 8-bit activations of the second product by one.
    assert relative_error(got, expected) < 5e-3


@pytest.mark.parametrize("rows", [5, 20, 50])
def test_attention_with_tiles(rows: int, vulkan: VulkanDevice, fast: VulkanDevice) -> None:
    """Queries, keys and values come in splits to be added, and so does what the output product leaves."""
    spec = AttentionSpec(0, 512, 4, 2, 64, 0.125, NormSpec(1e-6), RopeSpec(1e4, 64), post_norm=NormSpec(1e-6))
    weights = random_weights(np.random.default_rng(3), spec, TensorType.Q4_0)
    hidden = np.random.default_rng(2).normal(0, 1, (rows, 512)).astype(np.float32)
    expected, got = (run(device, spec, weights, hidden, [(9, rows)]) - hidden for device in (vulkan, fast))
    assert relative_error(got, expected) < 5e-3


def test_rope_far_out(vulkan: VulkanDevice, ref: RefDevice) -> None:
    """Angles of a hundred thousand radians, where GLSL's own sine would be noise."""
    random = np.random.default_rng(6)
    spec = AttentionSpec(0, 64, 2, 1, 32, 0.2, NormSpec(1e-6), RopeSpec(1e6, 32), window=4)
    weights = {
        **random_weights(random, spec, TensorType.F32),
        "norm": random_tensor(random, "norm", TensorType.F32, (64,)),
    }
    start = 131_000
    results = []
    for device in (ref, vulkan):
        buffers = StepBuffers(aligned_zeros((6, 64)), aligned_zeros((6, 1)), aligned_zeros((0, 6, 64)))
        pool = device.allocate_kv(KVGroupSpec(0, (0,), 1, 32, 4, 16, "f32"), 2)
        program = device.link([device.load(spec, weights)], rows=6, buffers=buffers, kv=[pool])
        batch = Batch(BatchLayout(6, 1, 6, 4, 1))
        first = start // 16
        batch.sequences[0] = (0, 6, start + 6, 0, 0, first)
        batch.pages[:2] = (1, 0)
        for row in range(6):
            batch.rows[row] = (0, start + row, 0, 0)
        batch.set_counts(6, 1, 0)
        buffers.hidden[:] = np.random.default_rng(8).normal(0, 1, (6, 64))
        # The keys before these rows are zeros, and visible: positions behind the window's start are the pool's own.
        timeline = Timeline()
        program.submit(batch, signal=Event(timeline, 1))
        Event(timeline, 1).wait()
        results.append(buffers.hidden.copy())
    assert relative_error(results[1], results[0]) < 1e-5
