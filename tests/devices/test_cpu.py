"""The CPU device against the reference, against itself on every instruction set, and in mixed company."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from devices.runner import Runner
from models.cases import CASES, Case, config
from models.tiny import weights, write_hf
from tandem import _native
from tandem.devices.base import Device, Event, KVGroupSpec, ProgramPlan, StepBuffers
from tandem.devices.batch import Batch, BatchLayout
from tandem.devices.cpu import CpuDevice
from tandem.devices.ref import RefDevice
from tandem.devices.spec import EmbedSpec, KVDtype
from tandem.errors import DeviceError, ModelFileError
from tandem.models.load import block_weights
from tandem.models.open import model_spec
from tandem.models.spec import ModelSpec
from tandem.weights.checkpoint import Checkpoint
from tandem.weights.open import open_checkpoint
from tandem.weights.tensor import Tensor, TensorType

GGUF = Path(__file__).parents[2] / "src" / "tandem" / "data" / "tandem-stories-22m.gguf"
SHAPES = [case for case in CASES if case.name in ("gemma3-layer-ropes", "qwen3-biases-layer-types", "mistral-window")]


def supported_isas() -> list[str]:
    found = ["scalar"]
    for isa in ("avx2", "vnni256", "avxvnni", "avx512"):
        try:
            found.append(_native.choose_isa(isa))
        except ValueError:
            continue
    return found


@pytest.fixture(scope="module")
def ref() -> Iterator[RefDevice]:
    device = RefDevice()
    yield device
    device.close()


@pytest.fixture(scope="module")
def cpu() -> Iterator[CpuDevice]:
    device = CpuDevice()
    yield device
    device.close()


@pytest.fixture(scope="module")
def stories() -> tuple[ModelSpec, Checkpoint]:
    checkpoint = open_checkpoint(GGUF)
    return model_spec(checkpoint), checkpoint


def tiny(case: Case, folder: Path) -> tuple[ModelSpec, Checkpoint]:
    checkpoint = open_checkpoint(write_hf(folder / case.name, case.config, weights(case)))
    return model_spec(checkpoint), checkpoint


def whole(spec: ModelSpec, device: Device) -> list[tuple[Device, range]]:
    return [(device, range(len(spec.blocks)))]


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def prompts_for(spec: ModelSpec, *lengths: int) -> list[list[int]]:
    generator = np.random.default_rng(7)
    return [generator.integers(0, spec.vocab, length).tolist() for length in lengths]


@pytest.mark.parametrize("kv_dtype", ["f16", "q8_0"])
def test_instruction_sets_give_the_same_bits(stories: tuple[ModelSpec, Checkpoint], kv_dtype: KVDtype) -> None:
    spec, checkpoint = stories
    prompts = prompts_for(spec, 21, 3)
    results = []
    for isa in supported_isas():
        device = CpuDevice(isa=isa)
        runner = Runner(spec, checkpoint, whole(spec, device), kv_dtype=kv_dtype)
        results.append(np.concatenate(runner.forward(prompts, chunk=9, decode=2)))
        device.close()
    for one, other in pairwise(results):
        np.testing.assert_array_equal(one, other)


def test_a_sequence_does_not_depend_on_its_batch_chunks_pages_or_threads(
    stories: tuple[ModelSpec, Checkpoint],
) -> None:
    spec, checkpoint = stories
    prompts = prompts_for(spec, 300, 40, 1, 77)
    device = CpuDevice(threads=1)
    alone = [
        Runner(spec, checkpoint, whole(spec, device), context=320, seed=5).forward([prompt], chunk=64)[0]
        for prompt in prompts
    ]
    device.close()
    for threads, chunk, decode in ((2, 16, 0), (3, 5, 4), (2, 33, 1)):
        device = CpuDevice(threads=threads)
        runner = Runner(spec, checkpoint, whole(spec, device), context=320, seed=threads)
        for got, expected in zip(runner.forward(prompts, chunk=chunk, decode=decode), alone, strict=True):
            np.testing.assert_array_equal(got, expected)
        device.close()


WIDE_HEADS = Case(
    "gemma3-wide-heads",
    config(
        "gemma3_text", head_dim=64, query_pre_attn_scalar=64, sliding_window=8, rope_theta=1e6, rope_local_base_freq=1e4
    ),
    seed=120,
)


@pytest.mark.parametrize(("kv_dtype", "bound"), [("f16", 2e-3), ("q8_0", 1e-2)])
def test_compact_kv_stays_close_to_float32_kv(kv_dtype: KVDtype, bound: float, tmp_path: Path, cpu: CpuDevice) -> None:
    """With float32 weights, so that nothing but the rounding of keys and values differs."""
    spec, checkpoint = tiny(WIDE_HEADS, tmp_path)
    full, compact = (
        Runner(spec, checkpoint, whole(spec, cpu), kv_dtype=dtype).forward(WIDE_HEADS.prompts, chunk=7, decode=2)[0]
        for dtype in ("f32", kv_dtype)
    )
    assert 0 < relative_error(compact, full) < bound


def test_8_bit_kv_needs_heads_of_whole_blocks(cpu: CpuDevice) -> None:
    with pytest.raises(DeviceError, match="multiple of 32, not 48"):
        cpu.allocate_kv(KVGroupSpec(0, (0,), kv_heads=1, head_dim=48, window=None, dtype="q8_0"), pages=1)


def test_quantized_error_against_the_dequantized_reference(
    stories: tuple[ModelSpec, Checkpoint], cpu: CpuDevice, ref: RefDevice
) -> None:
    """8-bit activations cost about 1 % of the logits' norm on this model; a wrong block costs far more."""
    spec, checkpoint = stories
    prompts = prompts_for(spec, 40)
    got = Runner(spec, checkpoint, whole(spec, cpu)).forward(prompts)[0]
    expected = Runner(spec, checkpoint, whole(spec, ref)).forward(prompts)[0]
    assert relative_error(got, expected) < 0.02


@pytest.mark.parametrize("case", SHAPES, ids=lambda case: case.name)
def test_mixed_placement_agrees_with_the_reference(case: Case, tmp_path: Path, cpu: CpuDevice, ref: RefDevice) -> None:
    """Attention on one device, FFN on the other, embed and head on either: every block is handed over."""
    spec, checkpoint = tiny(case, tmp_path)
    expected = Runner(spec, checkpoint, whole(spec, ref)).forward(case.prompts)
    for owners in ((cpu, ref), (ref, cpu)):
        placement = [(owners[index % 2], range(index, index + 1)) for index in range(len(spec.blocks))]
        got = Runner(spec, checkpoint, placement).forward(case.prompts, chunk=6, decode=2)
        for one, other in zip(got, expected, strict=True):
            assert relative_error(one, other) < 1e-4


def test_slices_add_up(stories: tuple[ModelSpec, Checkpoint], cpu: CpuDevice, ref: RefDevice) -> None:
    """FFN columns and KV heads shared between the devices, and between two lanes of the CPU."""
    spec, checkpoint = stories
    prompts = prompts_for(spec, 40, 9)
    expected = Runner(spec, checkpoint, whole(spec, ref)).forward(prompts)
    second = CpuDevice(threads=1)
    for left, right in ((cpu, ref), (ref, cpu), (cpu, second)):
        slices = {2: [(left, 0, 512), (right, 512, 1536)], 3: [(left, 0, 1), (right, 1, 2)]}
        got = Runner(spec, checkpoint, whole(spec, left), slices=slices).forward(prompts, chunk=11)
        for one, other in zip(got, expected, strict=True):
            assert relative_error(one, other) < 0.02
    second.close()


def test_a_bad_batch_fails_its_step_and_leaves_the_lane_working(
    stories: tuple[ModelSpec, Checkpoint], cpu: CpuDevice
) -> None:
    spec, checkpoint = stories
    runner = Runner(spec, checkpoint, whole(spec, cpu))
    before = runner.forward([[5, 6, 7]])[0]
    with pytest.raises(DeviceError, match=r"row 0 has token 8192, the vocabulary has 8192"):
        runner.step([(runner.start(), [spec.vocab])])
    np.testing.assert_array_equal(runner.forward([[5, 6, 7]])[0], before)


def test_an_unknown_page_is_refused(stories: tuple[ModelSpec, Checkpoint], cpu: CpuDevice) -> None:
    spec, checkpoint = stories
    attention = spec.attention[0]
    block = cpu.load(spec.blocks[1], block_weights(checkpoint, spec, 1))
    pool = cpu.allocate_kv(KVGroupSpec(0, (0,), attention.kv_heads, attention.head_dim, attention.window), pages=2)
    zeros = np.zeros((4, spec.hidden), np.float32)
    buffers = StepBuffers(zeros, np.zeros((1, 1), np.float32), np.zeros((0, 4, spec.hidden), np.float32))
    program = cpu.link([block], rows=4, buffers=buffers, kv=[pool])
    batch = Batch(BatchLayout(4, 1, 1, 4, 1))
    batch.rows[0] = (0, 0, 0, 0)
    batch.sequences[0] = (0, 1, 1, 0, 0, 0)
    batch.pages[0] = 2
    batch.set_counts(1, 1, 0)
    timeline = _native.Timeline()
    program.submit(batch, signal=Event(timeline, 1))
    with pytest.raises(DeviceError, match="names page 2 of a pool with 2"):
        Event(timeline, 1).wait()


def test_kv_pages_are_planned_exactly_and_copied(cpu: CpuDevice) -> None:
    for dtype in ("f32", "f16", "q8_0"):
        group = KVGroupSpec(0, (0, 3), kv_heads=2, head_dim=64, window=None, dtype=dtype)
        pool = cpu.allocate_kv(group, pages=5)
        assert pool.bytes == 5 * group.page_bytes
    with pytest.raises(ValueError, match="pages 0 to 4"):
        pool.native.copy_page(0, 5)


def test_weights_and_workspace_are_planned_exactly(stories: tuple[ModelSpec, Checkpoint], cpu: CpuDevice) -> None:
    spec, checkpoint = stories
    given = [block_weights(checkpoint, spec, index) for index in range(len(spec.blocks))]
    blocks = [cpu.load(block, weights) for block, weights in zip(spec.blocks, given, strict=True)]
    # The head's matrix is the embedding, and is kept once.
    resident = sum(block.bytes for block in blocks) - blocks[0].bytes
    assert cpu.plan_weights([(b, w, None) for b, w in zip(spec.blocks, given, strict=True)]) == resident
    pools = [
        cpu.allocate_kv(KVGroupSpec(layer.layer, (layer.layer,), layer.kv_heads, layer.head_dim, layer.window), 4)
        for layer in spec.attention
    ]
    buffers = StepBuffers(
        np.zeros((32, spec.hidden), np.float32),
        np.zeros((2, spec.vocab), np.float32),
        np.zeros((0, 32, spec.hidden), np.float32),
    )
    program = cpu.link(blocks, rows=32, buffers=buffers, kv=pools)
    assert cpu.plan_workspace([ProgramPlan(spec.blocks, 32)], 2) == program.workspace_bytes


def test_a_head_takes_more_samples_than_rows(stories: tuple[ModelSpec, Checkpoint], cpu: CpuDevice) -> None:
    """One row may be sampled for several sequences; the plan has room for all its copies."""
    spec, checkpoint = stories
    head = spec.blocks[-1]
    samples = 9
    hidden = np.random.default_rng(0).standard_normal((1, spec.hidden)).astype(np.float32)
    buffers = StepBuffers(
        hidden, np.zeros((samples, spec.vocab), np.float32), np.zeros((0, 1, spec.hidden), np.float32)
    )
    program = cpu.link([cpu.load(head, block_weights(checkpoint, spec, len(spec.blocks) - 1))], rows=1, buffers=buffers)
    assert cpu.plan_workspace([ProgramPlan((head,), 1)], samples) == program.workspace_bytes
    assert program.workspace_bytes > cpu.plan_workspace([ProgramPlan((head,), 1)], 1)
    batch = Batch(BatchLayout(1, 1, samples, 1, 0))
    batch.sequences[0] = (0, 1, 1, 0)
    batch.set_counts(1, 1, samples)
    done = Event(_native.Timeline(), 1)
    program.submit(batch, signal=done)
    done.wait()
    assert buffers.logits[0].any()
    np.testing.assert_array_equal(buffers.logits, np.tile(buffers.logits[0], (samples, 1)))


@pytest.mark.parametrize(
    ("isa", "message"),
    [("avx9", "unknown kernels 'avx9'"), ("AVX2", "expected scalar, avx2, vnni256, avxvnni or avx512")],
)
def test_unknown_kernels_are_refused(isa: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_CPU_ISA", isa)
    with pytest.raises(DeviceError, match=message):
        CpuDevice()


def test_a_closed_device_refuses_work(stories: tuple[ModelSpec, Checkpoint]) -> None:
    spec, checkpoint = stories
    device = CpuDevice(threads=1)
    runner = Runner(spec, checkpoint, whole(spec, device))
    device.close()
    device.close()
    with pytest.raises(DeviceError, match="closed"):
        runner.forward([[1, 2]])


def test_weights_at_a_reused_address_are_not_taken_for_the_old_ones(cpu: CpuDevice) -> None:
    """Cut columns are copies that die after loading; the next copy often gets their address."""
    memory = np.zeros((64, 32), np.float32)
    spec = EmbedSpec(vocab=64, hidden=32)
    kept = []
    for value in (1.0, 2.0):
        memory[:] = value
        tensor = Tensor("embedding", TensorType.F32, (64, 32), memory.reshape(-1).view(np.uint8))
        kept.append(cpu.load(spec, {"embedding": tensor}))
    first, second = (block.matrices["embedding"].matrix.dequantize() for block in kept)
    assert (first == 1.0).all()
    assert (second == 2.0).all()


def test_a_file_that_was_cut_short_after_it_was_opened_is_a_clear_error(cpu: CpuDevice, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(GGUF.read_bytes())
    checkpoint = open_checkpoint(path)
    spec = model_spec(checkpoint)
    last = max(range(len(spec.blocks)), key=lambda i: max(_end(t) for t in block_weights(checkpoint, spec, i).values()))
    weights = {role: t for role, t in block_weights(checkpoint, spec, last).items() if len(t.shape) == 2}
    os.truncate(path, min(_end(t) for t in weights.values()) - 10)
    with pytest.raises(ModelFileError, match=r"model\.gguf ends at byte [0-9]+: something shortened it"):
        cpu.load(spec.blocks[last], block_weights(checkpoint, spec, last))


def _end(tensor: Tensor) -> int:
    assert tensor.file is not None
    return tensor.file.offset + tensor.nbytes
