"""Candidates that the shaders pick, bit for bit against numpy, and engines that sample from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from devices.candidates_model import answer, buffers_for, noise
from devices.runner import Runner, aligned_zeros
from devices.vulkan.conftest import Open
from devices.vulkan.support import bundled, whole
from tandem._native import DRAWN_CANDIDATES, MAX_CANDIDATES, MAX_DRAWN, Timeline
from tandem.devices.base import Event, StepBuffers
from tandem.devices.batch import Batch, BatchLayout
from tandem.devices.candidates import (
    ANSWER_HEAD,
    BY_SCORE,
    COUNTED,
    NOISE,
    RAW_TOTAL,
    STOP,
    TAKEN,
    TAKES_SLOT,
    TOTAL,
    CandidateBuffers,
    candidate_shapes,
)
from tandem.devices.spec import HeadSpec, NormSpec
from tandem.devices.vulkan import VulkanDevice
from tandem.devices.vulkan import device as vulkan_device
from tandem.devices.vulkan.program import VulkanProgram
from tandem.engine.sampling_params import SamplingParams
from tandem.errors import DeviceError
from tandem.llm import LLM
from tandem.weights.tensor import Tensor, TensorType

_NO_FLOOR = int(np.float32(-np.inf).view(np.int32))
PICKING = {"adjust", "select", "mass", "answer", "rows"}
HIDDEN = 32
Floats = np.ndarray
Words = np.ndarray


class Picker(VulkanProgram):
    """A head without its product: it picks from the logits that the test wrote."""

    def _dispatches(self, *key: Any) -> Any:
        return [dispatch for dispatch in super()._dispatches(*key) if dispatch.shader in PICKING]


class Bench:
    """Steps of up to `samples` rows of logits on a device."""

    def __init__(self, device: VulkanDevice, vocab: int, samples: int) -> None:
        spec = HeadSpec(vocab, HIDDEN, NormSpec(1e-6))
        weights = {
            "norm": Tensor("norm", TensorType.F32, (HIDDEN,), np.zeros(4 * HIDDEN, np.uint8)),
            "output": Tensor("output", TensorType.F32, (vocab, HIDDEN), np.zeros(4 * vocab * HIDDEN, np.uint8)),
        }
        shapes = candidate_shapes(samples, samples, vocab)
        self.asked = CandidateBuffers(**{name: aligned_zeros(shape).view(np.int32) for name, shape in shapes.items()})
        self.buffers = StepBuffers(
            aligned_zeros((samples, HIDDEN)),
            aligned_zeros((samples, vocab)),
            aligned_zeros((0, samples, HIDDEN)),
            aligned_zeros((1, samples)).view(np.int32)[0],
            (self.asked,),
        )
        self.device = device
        block = device.load(spec, weights)
        self.program = Picker(device._machine, (block,), samples, self.buffers, {})
        self.batch = Batch(BatchLayout(samples, samples, samples, samples, 0))
        for i in range(samples):
            self.batch.rows[i] = (i, 0, 0, 0)
            self.batch.samples[i] = (i, samples - 1 - i, 0, 0)

    def step(self, logits: Floats) -> None:
        """Answers what `asked` asks of these rows."""
        count = len(logits)
        self.batch.set_counts(count, count, count)
        head = self.program._head
        assert head is not None
        if head._apart:
            self.device._machine.memory.write(head.logits, [logits])
            self.buffers.logits[:] = np.nan
        else:
            self.buffers.logits[:count] = logits
            head._shared.push(0, count)
        done = Event(Timeline(), 1)
        self.program.submit(self.batch, signal=done)
        done.wait()

    def check(self, logits: Floats) -> None:
        """Runs a step and compares it with the model."""
        expected = buffers_for(*self.asked.asks.shape[:1], len(self.asked.masks), logits.shape[1])
        for name in ("asks", "adjustments", "masks"):
            getattr(expected, name)[:] = getattr(self.asked, name)
        answer(logits, expected)
        self.step(logits)
        for i, (got, want) in enumerate(zip(self.asked.answers, expected.answers[: len(logits)], strict=False)):
            assert got[1] == want[1]
            assert not want[0] or got[TAKEN] == want[TAKEN], self.asked.asks[i]
            # Of a row that is drawn from as a whole, and that has no token, there is nothing but that.
            assert got[0] == want[0] or (self.asked.asks[i, 1] & BY_SCORE and want[0] == 1)
            if not want[0]:
                np.testing.assert_array_equal(self.buffers.logits[i].view(np.int32), logits[i].view(np.int32))
            elif not want[1]:
                used = ANSWER_HEAD + 2 * want[0]
                np.testing.assert_array_equal(got[:used], want[:used], err_msg=str(self.asked.asks[i]))


def random_logits(random: np.random.Generator, count: int, vocab: int) -> Floats:
    """Smooth rows, rows with many ties and zeros of both signs, masked tokens, rows that are not finite."""
    x = random.standard_normal((count, vocab)) * random.choice([0.5, 3.0, 20.0], (count, 1))
    for row in x:
        if random.random() < 0.4:
            row[:] = np.rint(row) * -1
        if random.random() < 0.3:
            row[random.random(vocab) < 0.5] = -np.inf
        if random.random() < 0.1:
            row[random.integers(vocab)] = random.choice([np.nan, -np.nan, np.inf])
    return x.astype(np.float32)


def random_asks(random: np.random.Generator, asked: CandidateBuffers, count: int, vocab: int) -> None:
    at = masks = 0
    for ask in asked.asks[:count]:
        k = int(random.choice([0, 1, 1, 2, 20, MAX_CANDIDATES]))
        listed = int(random.choice([0, 0, 1, min(vocab, 300)]))
        tokens = random.choice(vocab, listed, replace=False)
        entries = asked.adjustments[at : at + listed]
        entries[:, 0] = tokens
        entries[:, 1] = random.choice([0, COUNTED, COUNTED, STOP, COUNTED | STOP], listed)
        entries[:, 2] = np.where(entries[:, 1] & COUNTED, random.integers(0, 4, listed), 0)
        entries[:, 3] = random.choice([0.0, 0.0, 1.7, -100.0], listed).astype(np.float32).view(np.int32)
        mask = -1
        if random.random() < 0.3 and masks < len(asked.masks):
            mask = masks
            asked.masks[mask] = random.integers(-(2**31), 2**31, asked.masks.shape[1])
            masks += 1
        ask[:6] = (min(k, vocab), random.choice([0, TOTAL, RAW_TOTAL, TOTAL | RAW_TOTAL]), 0, mask, at, listed)
        ask[2] = random.choice(np.float32([0.01, 0.7, 1.0, 1.3, 40.0])).view(np.int32)
        ask[6:9] = random.choice(np.float32([0.3, 0.9, 1.1, 1.7, -0.4]), 3).view(np.int32)
        ask[6] = random.choice(np.float32([0.01, 0.77, 1.0, 1.1, 1.3, 3.0])).view(np.int32)
        ask[9:13] = random.integers(-(2**31), 2**31, 4)
        choose(random, ask, vocab)
        at += listed


def choose(random: np.random.Generator, ask: Words, vocab: int) -> None:
    """Who chooses the token for the slot: the highest logit, noise among candidates, or noise among all tokens."""
    how = random.choice([0, TAKES_SLOT, TAKES_SLOT | NOISE, TAKES_SLOT | NOISE | BY_SCORE])
    if not ask[0] or (how & BY_SCORE and vocab < DRAWN_CANDIDATES):
        how = 0
    ask[1] |= how
    top_p = random.choice(np.float32([1.0, 0.95, 0.8, 0.4, 1e-9]))
    ask[13:16] = random.integers(1, ask[0] + 1) if ask[0] else 0, top_p.view(np.int32), _NO_FLOOR
    if how & BY_SCORE:
        ask[0], ask[13] = DRAWN_CANDIDATES, 0
        ask[1] = ask[1] & ~TOTAL | (TOTAL if top_p < 1 else 0)
    elif random.random() < 0.3:
        ask[15] = np.float32(-0.5).view(np.int32)


@pytest.mark.parametrize("vocab", [1, 3, 63, 64, 65, 1000, 4096, 4097, 20_000])
def test_answers_are_those_of_the_model(vocab: int, vulkan: VulkanDevice) -> None:
    random = np.random.default_rng(vocab)
    bench = Bench(vulkan, vocab, 12)
    for count in (1, 5, 12, 12):
        random_asks(random, bench.asked, count, vocab)
        bench.check(random_logits(random, count, vocab))


@pytest.mark.parametrize(
    "hidden", [{"external_host_memory": True}, {"unified": True}, {"unified": True, "external_host_memory": True}]
)
def test_answers_across_a_bus_or_through_mirrors(hidden: dict[str, bool], opened: Open) -> None:
    random = np.random.default_rng(1)
    device = opened(**hidden)
    bench = Bench(device, 5000, 6)
    for count in (6, 2, 6):
        random_asks(random, bench.asked, count, 5000)
        logits = random_logits(random, count, 5000)
        bench.check(logits)
        picked = np.flatnonzero(bench.asked.asks[:count, 0]).tolist()
        bench.program.fetch(picked)
        np.testing.assert_array_equal(bench.buffers.logits[:count].view(np.int32), logits.view(np.int32))


def test_a_large_vocabulary(vulkan: VulkanDevice) -> None:
    """Greedy, 64 candidates of a smooth row, and of one whose logits are all equal."""
    vocab = 262_144
    bench = Bench(vulkan, vocab, 3)
    logits = np.zeros((3, vocab), np.float32)
    logits[:2] = np.random.default_rng(0).standard_normal((2, vocab)) * 3
    for ask, k in zip(bench.asked.asks, (1, MAX_CANDIDATES, MAX_CANDIDATES), strict=True):
        ask[:4] = (k, TOTAL | RAW_TOTAL, np.float32(0.8).view(np.int32), -1)
    bench.check(logits)
    for number, (ask, flags) in enumerate(zip(bench.asked.asks, (0, TOTAL, TOTAL), strict=True)):
        ask[:2] = (DRAWN_CANDIDATES, flags | TAKES_SLOT | NOISE | BY_SCORE)
        ask[9:13] = number
        ask[14] = np.float32(0.9 if flags else 1.0).view(np.int32)
    bench.check(logits)


def test_noise_is_the_hosts_within_what_the_host_allows(vulkan: VulkanDevice) -> None:
    """Of the whole range: tokens whose logits make up for their noise, but for steps of 4e-5 in another order."""
    vocab, count, each = 100_000, 64, 6
    bench = Bench(vulkan, vocab, count)
    logits = np.full((count, vocab), -60.0, np.float32)
    random = np.random.default_rng(9)
    best = []
    for row, ask in enumerate(bench.asked.asks):
        ask[:4] = (DRAWN_CANDIDATES, TAKES_SLOT | NOISE | BY_SCORE, np.float32(1).view(np.int32), -1)
        ask[9:13] = (row, 7 * row, row % 3, 1000 + row)
        ask[14] = np.float32(1).view(np.int32)
        drawn = noise(ask, vocab)
        by_noise = np.argsort(drawn)
        ends = by_noise[[row, -1 - row]]
        tokens = random.permutation([*ends, *random.choice(by_noise[64:-64], each - 2, replace=False)])
        logits[row, tokens] = 10.0 - drawn[tokens] + 4e-5 * np.arange(each)
        best.append(tokens[: -1 - MAX_DRAWN : -1].tolist())
    bench.check(logits)
    pairs = bench.asked.answers[:, ANSWER_HEAD : ANSWER_HEAD + 2 * (1 + MAX_DRAWN)].reshape(count, -1, 2)
    assert pairs[:, 1:, 0].tolist() == best


def test_penalties_are_rounded_as_on_the_host(vulkan: VulkanDevice) -> None:
    """Divisions above all, which GLSL leaves to 2.5 units in the last place."""
    vocab, random = 4000, np.random.default_rng(5)
    bench = Bench(vulkan, vocab, 64)
    logits = (random.uniform(-1, 1, (64, vocab)) * 10.0 ** random.integers(-20, 20, (64, vocab))).astype(np.float32)
    for i, ask in enumerate(bench.asked.asks):
        tokens = slice(i * 64, i * 64 + 64)
        bench.asked.adjustments[tokens] = [(t, COUNTED, t % 3, 0, 0) for t in range(64)]
        # Only those may be chosen, so that all of them are compared.
        bench.asked.masks[i] = 0
        bench.asked.masks[i, :2] = -1
        penalties = random.uniform([0.01, -2, -2], [100, 2, 2]).astype(np.float32).view(np.int32)
        ask[:9] = (64, 0, 0, i, i * 64, 64, *penalties)
    bench.check(logits)


def test_a_greedy_token_goes_to_its_slot(vulkan: VulkanDevice) -> None:
    bench = Bench(vulkan, 5000, 4)
    logits = np.random.default_rng(0).standard_normal((4, 5000)).astype(np.float32)
    logits[3, 9] = np.nan
    bench.buffers.slots[:] = -5
    bench.asked.asks[:, 0] = (1, 0, 1, 1)
    bench.asked.asks[:, 1] = TAKES_SLOT
    bench.asked.asks[:, 3] = -1
    bench.check(logits)
    # The sample's slots are 3, 2, 1, 0; the last row is not finite.
    best = logits.argmax(axis=1)
    assert bench.buffers.slots.tolist() == [-5, best[2], -5, best[0]]


@pytest.mark.parametrize("kind", [0, COUNTED, STOP])
def test_an_adjustment_hides_no_logit_that_is_not_finite(kind: int, vulkan: VulkanDevice) -> None:
    bench = Bench(vulkan, 300, 3)
    logits = np.zeros((3, 300), np.float32)
    logits[:, 70] = (np.nan, np.inf, -np.inf)
    bench.asked.asks[:, :7] = [(2, RAW_TOTAL, 0, -1, row, 1, np.float32(2).view(np.int32)) for row in range(3)]
    bench.asked.adjustments[:3] = (70, kind, 0, np.float32(-1).view(np.int32), 0)
    bench.check(logits)
    assert bench.asked.answers[:, 1].tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda asked: asked.asks[0].__setitem__(0, 65), "more than 64 candidates"),
        (lambda asked: asked.asks[0].__setitem__(1, BY_SCORE), "drawn from as a whole asks for 1 candidates"),
        (lambda asked: asked.asks[0].__setitem__(3, 2), "a mask outside the 2"),
        (lambda asked: asked.asks[0].__setitem__(5, 201), "adjustments outside the 200"),
        (lambda asked: asked.asks[:2].__setitem__((1, slice(2)), (1, TAKES_SLOT)), "a slot outside the 2"),
        (lambda asked: asked.adjustments[0].__setitem__(0, 100), "a token outside the vocabulary of 100"),
    ],
)
def test_asks_that_point_outside_are_refused(
    spoil: Callable[[CandidateBuffers], None], message: str, vulkan: VulkanDevice
) -> None:
    bench = Bench(vulkan, 100, 2)
    bench.asked.asks[0, :6] = (1, 0, 0, -1, 0, 1)
    bench.batch.samples[1, 1] = 2
    spoil(bench.asked)
    with pytest.raises(DeviceError, match=message):
        bench.step(np.zeros((2, 100), np.float32))


def test_copies_are_the_step_and_the_candidates(opened: Open) -> None:
    """Where nothing is imported, so that all that moves is copied, and counted."""
    device = opened(external_host_memory=True)
    vocab, samples = 5000, 4
    bench = Bench(device, vocab, samples)
    logits = np.random.default_rng(0).standard_normal((samples, vocab)).astype(np.float32)
    head = bench.program._head
    assert head is not None

    def copied(k: int) -> int:
        bench.asked.asks[:, :4] = (k, RAW_TOTAL, 0, -1)
        bench.step(logits)
        before = device.counters.copied, device.counters.allocations
        bench.step(logits)
        assert device.counters.allocations == before[1]
        return device.counters.copied - before[0] - logits.nbytes  # which the test itself pushes

    hidden = bench.buffers.hidden.nbytes  # comes to a program that begins with a head
    asks = bench.asked.asks.nbytes
    tables = copied(1) - bench.batch.data.nbytes - hidden - asks - samples * 4 * (ANSWER_HEAD + 2)
    assert 0 < tables < 256
    assert copied(40) - copied(1) == samples * 4 * 2 * 39
    whole = device.counters.whole_rows
    assert copied(0) == bench.batch.data.nbytes + hidden + asks + tables + logits.nbytes
    assert device.counters.whole_rows - whole == 2 * samples


@pytest.mark.parametrize("mirrored", [False, True], ids=["imported", "mirrored"])
def test_a_step_takes_the_token_that_the_step_before_it_chose(mirrored: bool, opened: Open) -> None:
    """The host submits it before it knows that token."""
    device = opened(unified=mirrored, external_host_memory=mirrored)
    spec, checkpoint = bundled()
    runner = Runner(spec, checkpoint, whole(spec, device), rows=8, sequences=2, context=32, candidates=True)
    (asked,) = runner.buffers.candidates
    known = runner.start()
    asked.asks[:] = 0
    token = int(runner.step([(known, [5, 6, 7])])[0][-1].argmax())
    expected = runner.step([(known, [token])])[0]

    guessing = runner.start()
    asked.asks[2, :4] = (1, TAKES_SLOT, 0, -1)
    # The runner names a sample's slot by its row.
    runner.step([(guessing, [5, 6])])
    runner.buffers.slots[:] = -1
    asked.asks[0, :4] = (1, TAKES_SLOT, 0, -1)
    asked.asks[1:] = 0
    runner.step([(guessing, [7])])
    assert runner.buffers.slots[0] == token
    asked.asks[:] = 0
    np.testing.assert_array_equal(runner.step([(guessing, [-1])])[0], expected)
    with pytest.raises(DeviceError, match="row 0 names token slot 2 of 2"):
        runner.step([(guessing, [-3])])


OPTIONS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.0, "logprobs": 4},
    {"temperature": 0.0, "repetition_penalty": 1.3, "presence_penalty": 0.4, "logit_bias": {11: 3.0}},
    {"temperature": 0.9, "top_k": 30, "top_p": 0.9, "seed": 5},
    {"temperature": 0.8, "top_p": 0.8, "seed": 6, "logprobs": 0},
    {"temperature": 1.2, "min_p": 0.1, "seed": 7},
    {"seed": 8},
    {"temperature": 0.0, "prompt_logprobs": 2},
]


def outputs(options: list[dict[str, Any]]) -> tuple[list[Any], Any]:
    """What requests of these options get together, and the engine's counters."""
    with LLM(None, placement="vulkan:0", max_sequences=8, rows=32, context=64) as model:
        params = [SamplingParams(max_tokens=8, ignore_eos=True, **each) for each in options]
        results = model.generate([f"Once upon a time there were {i} cats" for i in range(len(options))], params)
        counters = model.counters
        return [(each.outputs, each.prompt_logprobs) for each in results], counters


def test_an_engine_gives_the_same_from_candidates_as_from_whole_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    picked, counters = outputs(OPTIONS)
    monkeypatch.setattr(vulkan_device, "MAX_CANDIDATES", 0)
    rows, without = outputs(OPTIONS)
    assert picked == rows
    assert without.whole_rows == 0
    assert 8 < counters.whole_rows < 40


def test_an_engine_of_greedy_and_top_k_requests_sees_no_row() -> None:
    _, counters = outputs(OPTIONS[:4])
    assert counters.whole_rows == 0
    assert counters.sampled == 32
