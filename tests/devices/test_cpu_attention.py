"""Attention of the CPU device: long contexts, whose segments threads share, and every shape of a tile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from devices.runner import Runner
from devices.test_cpu import prompts_for, relative_error, supported_isas, tiny, whole
from models.cases import Case, config
from tandem.devices.cpu import CpuDevice
from tandem.devices.ref import RefDevice
from tandem.devices.spec import KVDtype

LONG = 1100  # five segments


def case(heads: int, kv_heads: int, head_dim: int, window: int, seed: int = 130) -> Case:
    """One sliding layer and one full one."""
    settings = config(
        "gemma3_text",
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        query_pre_attn_scalar=head_dim,
        sliding_window=window,
        layer_types=["sliding_attention", "full_attention"],
        rope_theta=1e6,
        rope_local_base_freq=1e4,
        max_position_embeddings=2048,
    )
    return Case(f"gemma3-{heads}-{kv_heads}-{head_dim}-{window}", settings, seed)


SHAPES = [case(4, 1, 32, 300), case(7, 1, 80, 64), case(4, 2, 12, 17), case(3, 3, 128, 1000), case(16, 1, 32, 40)]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_long_contexts_agree_with_the_reference(shape: Case, tmp_path: Path) -> None:
    spec, checkpoint = tiny(shape, tmp_path)
    prompts = prompts_for(spec, LONG, 70)
    results = []
    for device in (CpuDevice(threads=2), RefDevice()):
        runner = Runner(spec, checkpoint, whole(spec, device), rows=512, context=LONG + 100)
        results.append(runner.forward(prompts, chunk=400, decode=3))
        device.close()
    for got, expected in zip(*results, strict=True):
        assert relative_error(got, expected) < 1e-5


@pytest.mark.parametrize("kv_dtype", ["f16", "q8_0"])
@pytest.mark.parametrize("heads", [1, 4, 16])
def test_threads_that_share_a_sequence_give_the_bits_of_one(heads: int, kv_dtype: KVDtype, tmp_path: Path) -> None:
    """One KV head, so that a long sequence alone, or beside short ones, must be cut for the threads to share it."""
    spec, checkpoint = tiny(case(heads, 1, 32, 300), tmp_path)
    prompts = prompts_for(spec, LONG, 30, 260)
    results = []
    for threads, chunk, decode in ((1, LONG, 0), (2, 190, 20), (3, 500, 9)):
        device = CpuDevice(threads=threads)
        runner = Runner(
            spec, checkpoint, whole(spec, device), rows=LONG, context=LONG + 100, kv_dtype=kv_dtype, seed=threads
        )
        # The longest runs last, when the short ones decode or are done.
        results.append(runner.forward(prompts[::-1], chunk=chunk, decode=decode))
        device.close()
    for other in results[1:]:
        for one, expected in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(one, expected)


@pytest.mark.parametrize("kv_dtype", ["f16", "q8_0"])
def test_instruction_sets_give_the_same_bits_over_segments(kv_dtype: KVDtype, tmp_path: Path) -> None:
    spec, checkpoint = tiny(case(7, 1, 96, 270), tmp_path)
    prompts = prompts_for(spec, 600, 50)
    results = []
    for isa in supported_isas():
        device = CpuDevice(threads=2, isa=isa)
        runner = Runner(spec, checkpoint, whole(spec, device), rows=512, context=700, kv_dtype=kv_dtype)
        results.append(np.concatenate(runner.forward(prompts, chunk=300, decode=2)))
        device.close()
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])
