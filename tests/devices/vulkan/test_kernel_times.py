"""The profile of a program: every dispatch has a time, and every weight is counted where it is read."""

from __future__ import annotations

import json
from pathlib import Path

from cli.commands import tandem
from devices.runner import Runner
from devices.vulkan.support import bundled, whole
from tandem.devices.base import MeasuredDevice, ProfiledProgram
from tandem.devices.vulkan import VulkanDevice


def test_kernels_read_each_weight_once(vulkan: VulkanDevice) -> None:
    spec, checkpoint = bundled()
    runner = Runner(spec, checkpoint, whole(spec, vulkan), rows=16, sequences=2, context=64)
    first, second = runner.start(), runner.start()
    runner.step([(first, list(range(12))), (second, [1, 2])])
    ((program_of_all,),) = runner._stages
    program = program_of_all[1]
    assert isinstance(program, ProfiledProgram)
    kernels = program.profile(runner._batch)
    assert all(kernel.seconds >= 0 for kernel in kernels) and sum(kernel.seconds for kernel in kernels) > 0
    # Across a bus, what carries hidden rows belongs to no block.
    labels = list(dict.fromkeys(kernel.block for kernel in kernels if kernel.block))
    assert labels[:3] == ["embed", "attention 0", "ffn 0"] and labels[-1] == "head"
    for block in program._blocks[1:3]:
        label = f"{'ffn' if 'gate_up' in block.matrices else 'attention'} 0"
        macs = sum(kernel.macs for kernel in kernels if kernel.block == label)
        read = sum(kernel.bytes for kernel in kernels if kernel.block == label)
        matrices = [matrix for each in block.matrices.values() for matrix in each]
        weights = sum(matrix.rows * matrix.row_words * 4 for matrix in matrices)
        products = 14 * sum(matrix.rows * matrix.columns for matrix in matrices)
        attention = next(each for each in spec.attention if each.layer == 0)
        width = attention.heads * attention.head_dim
        scores = 2 * width * (sum(range(1, 13)) + 1 + 2) if label == "attention 0" else 0
        pages = 14 * 2 * attention.kv_heads * attention.head_dim * 4 if label == "attention 0" else 0
        assert (read, macs) == (weights + pages, products + scores)


def test_ceilings_are_measured(vulkan: VulkanDevice) -> None:
    assert isinstance(vulkan, MeasuredDevice)
    live = len(vulkan._machine.memory._live)
    ceilings = vulkan.measure_ceilings()
    assert ceilings.read_bytes_per_s and ceilings.copy_bytes_per_s and ceilings.int8_macs_per_s
    assert len(vulkan._machine.memory._live) == live


def test_the_command(tmp_path: Path) -> None:
    trace, result = tmp_path / "trace.json", tmp_path / "result.json"
    sizes = ("--batch", 1, "--prompt-tokens", 16, "--new-tokens", 1)
    done = tandem("bench", "--profile", "--placement", "vulkan:0", *sizes, "--trace", trace, "--json", result)
    assert done.exit_code == 0, done.stderr
    assert "GB/s read" in done.stdout and "product" in done.stdout
    lanes = {each["args"]["name"] for each in json.loads(trace.read_text())["traceEvents"] if each["ph"] == "M"}
    assert lanes == {"vulkan:0", "vulkan:0 kernels"}
    decode = json.loads(result.read_text())["results"][1]
    assert decode["kind"] == "decode" and decode["kernels"][0]["seconds_per_step"] > 0
