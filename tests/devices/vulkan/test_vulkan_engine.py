"""The whole engine on the Vulkan device: text of a real model, batches, prefix cache, mixed placements, commands."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices.runner import Runner
from devices.vulkan.support import whole
from paths import SHARED
from tandem.devices.vulkan import VulkanDevice
from tandem.engine.sampling_params import SamplingParams
from tandem.llm import LLM
from tandem.models.open import model_spec
from tandem.text.grammar import Grammar
from tandem.weights.open import open_checkpoint

TINY = SHARED / "data" / "models" / "TinyStories-656K"
STORIES = json.loads((Path(__file__).parents[2] / "golden" / "tinystories_greedy.json").read_text())
PROMPTS = ["Once upon a time", "The little dog", "One day, a girl named Lily"]


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story["text"])
def test_greedy_text_is_that_of_transformers(story: dict[str, Any], vulkan: VulkanDevice) -> None:
    """In one pass over transformers' own text: every token is the likeliest after those before it."""
    checkpoint = open_checkpoint(str(TINY))
    spec = model_spec(checkpoint)
    path = [*story["prompt"], *story["tokens"]]
    logits = Runner(spec, checkpoint, whole(spec, vulkan), context=256).forward([path[:-1]], chunk=64, decode=4)[0]
    np.testing.assert_array_equal(logits.argmax(axis=-1)[len(story["prompt"]) - 1 :], story["tokens"])


def test_results_do_not_depend_on_batch_chunks_or_cache() -> None:
    params = SamplingParams(max_tokens=12, temperature=1.0, seed=3, logprobs=3, ignore_eos=True)
    prompts = ["Once upon a time", "The fox and the wolf " * 12, "Once upon a time, there", *PROMPTS]
    results = []
    for placement, sequences, rows, prefix_cache in [
        ("vulkan:0", 1, 64, False),
        ("vulkan:0", 5, 17, True),
    ]:
        with LLM(
            TINY, placement=placement, max_sequences=sequences, rows=rows, prefix_cache=prefix_cache, context=128
        ) as model:
            results.append([output.outputs for output in model.generate(prompts, params)])
            # Once more, over the prefixes that are cached now.
            results.append([output.outputs for output in model.generate(prompts, params)])
    assert all(result == results[0] for result in results[1:])


def test_attention_and_ffn_on_different_devices() -> None:
    greedy = SamplingParams(max_tokens=8, temperature=0.0)
    texts = []
    for placement in ("cpu", "attn=vulkan:0,ffn=cpu", "attn=cpu,ffn=vulkan:0,m=2", "ffn=vulkan:0+vulkan:0/1,ratio=0.5"):
        with LLM(TINY, placement=placement, threads=1, max_sequences=3, context=64) as model:
            texts.append([output.outputs[0].text for output in model.generate(PROMPTS, greedy)])
    assert all(text == texts[0] for text in texts)


def test_the_commands() -> None:
    def tandem(*arguments: str) -> str:
        command = [sys.executable, "-c", "from tandem.cli import main; main()", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    facts = json.loads(tandem("devices", "--json"))
    assert [device["name"] for device in facts["devices"]][:2] == ["cpu", "vulkan:0"]
    gpu = facts["devices"][1]
    assert gpu["usable"] and gpu["lacks"] == [] and gpu["memory"][0]["bytes_total"] > 0
    assert f"vulkan:0  {gpu['description']}" in tandem("devices")
    # Four tokens: after the fifth the best two are nearly equal.
    common = ("--max-tokens", "4", "--temperature", "0", "--context", "64")
    on_cpu, on_gpu = (tandem("run", "Once upon a time", *common, "--placement", name) for name in ("cpu", "vulkan:0"))
    assert on_gpu == on_cpu


@pytest.mark.parametrize("placement", ["vulkan:0", "attn=vulkan:0,ffn=cpu", "attn=cpu,ffn=vulkan:0"])
def test_embeddings_are_those_of_the_cpu(placement: str) -> None:
    found = []
    for each in ("cpu", placement):
        with LLM(TINY, placement=each, threads=1, max_sequences=3, context=64, rows=8) as model:
            found.append([output.embedding for output in model.embed(PROMPTS) + model.embed(PROMPTS, pooling="last")])
    for expected, embedding in zip(*found, strict=True):
        assert expected is not None and embedding is not None
        assert np.linalg.norm(embedding - expected) < 0.02


@pytest.mark.parametrize("top_k", [65, 20])
def test_grammars_are_followed_whether_the_gpu_applies_the_masks_or_the_host(top_k: int) -> None:
    grammar = Grammar(kind="regex", text="[a-z ]{5,20}[.]")
    params = [SamplingParams(max_tokens=30, top_k=top_k, temperature=t, seed=1, grammar=grammar) for t in (0.0, 1.0)]
    with LLM(placement="vulkan:0", max_sequences=3, context=64) as model:
        for output in model.generate(["Once upon a time"] * 2, params):
            assert output.error is None
            assert re.fullmatch(grammar.text, output.outputs[0].text), output.outputs[0].text
        assert (model.counters.whole_rows == 0) == (top_k == 20)
