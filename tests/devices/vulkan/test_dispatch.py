"""Barriers derived from what dispatches read and write; profiles; the shipped SPIR-V against its sources."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from devices.runner import Runner
from devices.vulkan.support import bundled, whole
from tandem.devices.vulkan import VulkanDevice
from tandem.devices.vulkan.dispatch import Dispatch, Grid, Use, barriers
from tandem.devices.vulkan.memory import Buffer, View

REPO = Path(__file__).parents[3]
A, B = (Buffer(handle=None, memory=None, size=1024, mapped=None) for _ in range(2))


def step(*uses: tuple[Buffer, int, int, Literal["read", "write", "both"]]) -> Dispatch:
    views = [Use(i, View(buffer, start, stop - start), access) for i, (buffer, start, stop, access) in enumerate(uses)]
    return Dispatch("none", (), tuple(views), b"", Grid(1))


def test_barriers_stand_where_bytes_meet_and_nowhere_else() -> None:
    chain = [
        step((A, 0, 512, "write")),
        step((A, 512, 1024, "write")),  # beside it
        step((A, 0, 512, "read"), (B, 0, 512, "write")),  # reads the first
        step((A, 512, 1024, "read"), (B, 512, 1024, "write")),  # that barrier stood for the second, too
        step((A, 0, 100, "write")),  # overwrites what the third reads
        step((A, 100, 512, "both")),  # read before the last barrier only
        step((B, 0, 1024, "read")),  # written before it
        step((A, 90, 110, "read")),
    ]
    assert barriers(chain) == [False, False, True, False, True, False, False, True]


def test_columns_of_one_matrix_do_not_meet() -> None:
    view = View(A, 0, 1024)
    q, k, again = (
        Dispatch("none", (), (Use(0, view, "write", columns),), b"", Grid(1)) for columns in ((0, 8), (8, 12), (7, 9))
    )
    assert barriers([q, k, again]) == [False, False, True]


def test_the_shipped_shaders_are_what_the_sources_compile_to() -> None:
    if shutil.which("glslangValidator") is None:
        pytest.fail("glslangValidator is missing: pip install '.[shaders]'")
    command = [sys.executable, str(REPO / "tools" / "compile_shaders.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_profile_times_every_dispatch_and_computes_the_same(vulkan: VulkanDevice) -> None:
    spec, checkpoint = bundled()
    runner = Runner(spec, checkpoint, whole(spec, vulkan), rows=8, sequences=1, context=32)
    logits = runner.step([(runner.start(), [5, 6, 7])])[0]
    ((_, program),) = runner._stages[0]
    times = program.profile(runner._batch)
    np.testing.assert_array_equal(runner.buffers.logits[:3], logits)
    kernels = Counter(time.kernel for time in times)
    layers = len(spec.attention)
    assert kernels["attention_split"] == kernels["heads"] == kernels["product_int_gated"] == layers
    # One norm before each block, which also adds what the block before left; and the last block's.
    assert kernels["norm"] == 2 * layers + 2
    # Q, K and V are one product where they are of one type.
    products = kernels["product_int"] + kernels["product_int_gated"]
    assert products == sum(len(each) for block in program._blocks[1:] for each in block.matrices.values())
    assert sum(kernels.values()) <= 9 * layers + 4
    matrices = {id(m): m for block in program._blocks[1:] for each in block.matrices.values() for m in each}
    weights = sum(matrix.rows * matrix.row_words * 4 for matrix in matrices.values())
    assert sum(time.bytes for time in times if time.kernel.startswith("product_int")) == weights
