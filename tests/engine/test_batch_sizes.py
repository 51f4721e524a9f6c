"""Batches of every size: all sequences advance in every step, with the tokens that each gets alone."""

from __future__ import annotations

import msgspec
import pytest
from cpu_rig import CpuRig
from rig import VOCAB, Rig, alone

from paths import SHARED
from tandem.engine.build import EngineConfig
from tandem.engine.sampling_params import SamplingParams

TINY = SHARED / "data" / "models" / "TinyStories-656K"


@pytest.mark.parametrize("size", [*range(1, 34), 48, 63, 64, 65, 100, 128, 200, 255, 256])
def test_every_size_on_the_toy_device(size: int) -> None:
    rig = Rig(rows=4 * size, sequences=size, context=48, window=20)
    params = SamplingParams(max_tokens=20, ignore_eos=True, temperature=0.0)
    names = [rig.submit([k % VOCAB, k % 7, 3], params) for k in range(size)]
    for _ in range(20):
        assert len(rig.step()) == size
    assert rig.ended == set(names)
    for k in {0, size // 2, size - 1}:
        expected = alone([k % VOCAB, k % 7, 3], params, context=48, window=20)
        assert rig.results[names[k]] == expected


def test_sizes_on_the_cpu() -> None:
    config = EngineConfig(threads=2, max_sequences=256, rows=1024, context=64, prefix_cache=False)
    rig = CpuRig(TINY, config)
    params = SamplingParams(max_tokens=5, ignore_eos=True, temperature=1.0, seed=1, logprobs=0)
    tokens: dict[int, object] = {}
    for size in (1, 2, 3, 5, 7, 8, 9, 12, 16, 17, 24, 31, 32, 33, 64, 65, 100, 128, 200, 256):
        rig.logits.clear()
        names = [rig.submit([5 + k, 100, 200], msgspec.structs.replace(params, seed=k)) for k in range(size)]
        for _ in range(5):
            assert len(rig.step()) == size
        for k, name in enumerate(names):
            assert rig.results[name] == tokens.setdefault(k, rig.results[name])
    assert len(tokens) == 256
    rig.close()
