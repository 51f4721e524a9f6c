"""The reference device at the seam: its lane, and what it refuses."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from devices.runner import aligned_zeros
from tandem._native import Timeline
from tandem.devices.base import Device, Event, KVGroupSpec, ProgramPlan, StepBuffers
from tandem.devices.batch import Batch, BatchLayout
from tandem.devices.ref import RefDevice
from tandem.devices.spec import AttentionSpec, BlockSpec, EmbedSpec, FFNSpec, HeadSpec, NormSpec, Slice
from tandem.devices.weights_check import expected_shapes
from tandem.errors import DeviceError, ModelFileError
from tandem.weights.tensor import Tensor, TensorType

NORM = NormSpec(1e-6)
EMBED = EmbedSpec(8, 4)
ATTENTION = AttentionSpec(0, 4, 2, 1, 2, 1.0, NORM, None)
FFN = FFNSpec(0, 4, 6, "silu", NORM)
HEAD = HeadSpec(8, 4, NORM)
GROUP = KVGroupSpec(0, (0,), kv_heads=1, head_dim=2, window=None, page_size=4, dtype="f32")


@pytest.fixture
def device() -> Iterator[RefDevice]:
    device = RefDevice()
    yield device
    device.close()


def weights(spec: BlockSpec) -> dict[str, Tensor]:
    random = np.random.default_rng(5)
    return {
        role: Tensor(role, TensorType.F32, shape, random.standard_normal(shape, np.float32).view(np.uint8).reshape(-1))
        for role, shape in expected_shapes(spec).items()
    }


def buffers(rows: int = 4, slices: int = 0, hidden: int = 4, vocab: int = 8) -> StepBuffers:
    return StepBuffers(
        aligned_zeros((rows, hidden)), aligned_zeros((rows, vocab)), aligned_zeros((slices, rows, hidden))
    )


def batch(tokens: list[int], pages: tuple[int, ...] = (0,), start: int = 0, sample: int | None = None) -> Batch:
    """One sequence whose rows are `tokens`, at positions from `start`."""
    filled = Batch(BatchLayout(max_rows=8, max_sequences=1, max_samples=8, max_pages=4, kv_groups=1))
    for row, token in enumerate(tokens):
        filled.rows[row] = (0, start + row, token, 0)
    filled.sequences[0] = (0, len(tokens), start + len(tokens), 0, 0, 0)
    filled.pages[: len(pages)] = pages
    if sample is not None:
        filled.samples[0, 0] = sample
    filled.set_counts(len(tokens), 1, int(sample is not None))
    return filled


def run(device: RefDevice, specs: list[BlockSpec], work: Batch, memory: StepBuffers | None = None) -> StepBuffers:
    memory = memory or buffers()
    pools = [device.allocate_kv(GROUP, 2)]
    program = device.link([device.load(spec, weights(spec)) for spec in specs], rows=4, buffers=memory, kv=pools)
    done = Event(Timeline(), 1)
    program.submit(work, signal=done)
    done.wait()
    return memory


def test_it_is_a_device(device: RefDevice) -> None:
    assert isinstance(device, Device)
    assert device.info.name == device.info.kind == "ref"
    (memory,) = device.info.memory
    assert memory.host_mapped and 0 < memory.bytes_free <= memory.bytes_total


def test_blocks_say_what_they_keep(device: RefDevice) -> None:
    assert device.load(EMBED, weights(EMBED)).bytes == 8 * 4 * 4
    packed = Tensor("embedding", TensorType.BF16, (8, 4), np.zeros(64, np.uint8))
    assert device.load(EMBED, {"embedding": packed}).bytes == 8 * 4 * 4


def test_plans_are_what_loading_keeps(device: RefDevice) -> None:
    blocks: list[tuple[BlockSpec, dict[str, Tensor], Slice | None]] = [
        (spec, weights(spec), part)
        for spec, part in [(EMBED, None), (ATTENTION, None), (FFN, Slice(0, 2, 5)), (HEAD, None)]
    ]
    kept = sum(device.load(spec, given, part).bytes for spec, given, part in blocks)
    assert device.plan_weights(blocks) == kept
    assert device.plan_workspace([ProgramPlan((EMBED,), 4)], 4) == 0


def test_only_sampled_rows_have_logits(device: RefDevice) -> None:
    memory = run(device, [EMBED, ATTENTION, FFN, HEAD], batch([3, 1, 4], sample=2))
    assert memory.logits[0].any() and not memory.logits[1:].any()
    alone = run(device, [EMBED, ATTENTION, FFN, HEAD], batch([3, 1, 4], sample=1))
    assert not np.array_equal(alone.logits[0], memory.logits[0])


def test_copied_pages_hold_the_same(device: RefDevice) -> None:
    pool = device.allocate_kv(GROUP, 3)
    memory = buffers()
    program = device.link(
        [device.load(EMBED, weights(EMBED)), device.load(ATTENTION, weights(ATTENTION))],
        rows=4,
        buffers=memory,
        kv=[pool],
    )
    timeline = Timeline()

    def go(work: Batch, value: int) -> np.ndarray:
        program.submit(work, signal=Event(timeline, value))
        timeline.wait(value)
        return memory.hidden[0].copy()

    go(batch([1, 2, 3], pages=(2,)), 1)
    pool.copy_page(2, 0)
    assert np.array_equal(go(batch([5], pages=(2,), start=3), 2), go(batch([5], pages=(0,), start=3), 3))
    assert not np.array_equal(go(batch([5], pages=(1,), start=3), 4), go(batch([5], pages=(0,), start=3), 5))


def test_work_starts_when_its_events_are_reached(device: RefDevice) -> None:
    program = device.link([device.load(EMBED, weights(EMBED))], rows=4, buffers=buffers())
    host, lane = Timeline(), Timeline()
    program.submit(batch([1]), wait=[Event(host, 1)], signal=Event(lane, 1))
    waiter = threading.Thread(target=lane.wait, args=(1,))
    waiter.start()
    waiter.join(0.05)
    assert waiter.is_alive() and lane.value == 0
    host.signal(1)
    waiter.join(5)
    assert not waiter.is_alive() and lane.value == 1


@pytest.mark.parametrize(
    ("work", "words"),
    [
        (batch([1, 8]), "token 8 is not in the vocabulary of 8"),
        (batch([-1]), "token slot 0 of 0"),
        (batch([1] * 5), "a batch of 5 rows, for a program linked for 4"),
        (batch([1], pages=(2,)), "outside the pool of 2"),
        (batch([1], pages=(-1,)), "outside the pool of 2"),
        (batch([1], start=16), "does not cover positions"),
        (batch([1], sample=1), "a sample names a row outside"),
    ],
    ids=["token", "token slot", "rows", "page", "negative page", "page table", "sample"],
)
def test_a_bad_batch_fails_its_signal(device: RefDevice, work: Batch, words: str) -> None:
    with pytest.raises(DeviceError, match=words):
        run(device, [EMBED, ATTENTION, HEAD], work)
    run(device, [EMBED, ATTENTION, HEAD], batch([1]))


def test_rows_and_sequences_must_agree(device: RefDevice) -> None:
    for field, value, words in ((0, 1, "rows that are not its own"), (2, 7, "do not end at its length 7")):
        work = batch([1, 2])
        work.sequences[0, field] = value
        with pytest.raises(DeviceError, match=words):
            run(device, [EMBED, ATTENTION], work)
    work = batch([1, 2])
    work.set_counts(2, 0, 0)
    with pytest.raises(DeviceError, match="2 rows, but its sequences have 0"):
        run(device, [EMBED, ATTENTION], work)


def test_a_failure_without_a_signal_is_reported_by_the_next_run(device: RefDevice) -> None:
    program = device.link([device.load(EMBED, weights(EMBED))], rows=4, buffers=buffers())
    program.submit(batch([9]))
    failed, fine = Event(Timeline(), 1), Event(Timeline(), 1)
    program.submit(batch([1]), signal=failed)
    program.submit(batch([1]), signal=fine)
    with pytest.raises(DeviceError, match="token 9"):
        failed.wait()
    fine.wait()


def test_a_failed_event_fails_what_waits_for_it(device: RefDevice) -> None:
    program = device.link([device.load(EMBED, weights(EMBED))], rows=4, buffers=buffers())
    first, second = Event(Timeline(), 1), Event(Timeline(), 1)
    program.submit(batch([9]), signal=first)
    program.submit(batch([1]), wait=[first], signal=second)
    with pytest.raises(DeviceError, match="token 9"):
        second.wait()


def test_a_closed_device_takes_no_work() -> None:
    device = RefDevice()
    program = device.link([device.load(EMBED, weights(EMBED))], rows=4, buffers=buffers())
    done = Event(Timeline(), 1)
    program.submit(batch([1]), signal=done)
    device.close()
    device.close()
    done.wait()
    with pytest.raises(DeviceError, match="closed"):
        program.submit(batch([1]))


def test_what_cannot_be_linked(device: RefDevice) -> None:
    def refused(words: str, spec: BlockSpec, memory: StepBuffers, part: Slice | None = None, heads: int = 1) -> None:
        pool = device.allocate_kv(KVGroupSpec(0, (0,), heads, 2, None, 4, "f32"), 1)
        with pytest.raises(DeviceError, match=words):
            device.link([device.load(spec, weights(spec), part)], rows=4, buffers=memory, kv=[pool])

    refused("linked for 4 rows", EMBED, buffers(rows=3))
    refused("embed works on rows of 4, not 5", EMBED, buffers(hidden=5))
    refused("head writes logits of 8, not 9", HEAD, buffers(vocab=9))
    refused("ffn 0 needs `partials` of 2 slices", FFN, buffers(slices=1), Slice(1, 0, 3))
    refused(r"attention 0 needs KV pages of .* \(1, 2, None\), not \(2, 2, None\)", ATTENTION, buffers(), heads=2)
    with pytest.raises(DeviceError, match="attention 0 has no KV pool"):
        device.link([device.load(ATTENTION, weights(ATTENTION))], rows=4, buffers=buffers())


def test_weights_are_checked_at_load(device: RefDevice) -> None:
    with pytest.raises(ModelFileError, match="embed needs a weight 'embedding'"):
        device.load(EMBED, {})
