"""The sealed pool, natively: an interposed allocator counts what a real engine takes from the system while it decodes.

Counted are allocations of 4 KiB and more, by any thread and any library of the process, Python included: its objects
come from malloc here, so that nothing hides in arenas. A sequence's own array of token ids is the one thing that grows
with an answer; it reaches 4 KiB at 1,024 tokens, and is moved once per sixteenth of its length from there on.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from paths import SHARED
from tandem import _native
from tandem.engine.build import EngineConfig, plan_engine
from tandem.engine.request import Request
from tandem.engine.sampling_params import SamplingParams
from tandem.weights.open import open_checkpoint

MODEL = SHARED / "models" / "tandem-stories-22m"
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def interposed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "the interposed allocator needs a C compiler: install gcc"
    library = tmp_path_factory.mktemp("allocator") / "interposed_allocator.so"
    source = HERE / "interposed_allocator.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


def decode(interposed: Path, sequences: int, steps: int, control: str = "none") -> dict[str, Any]:
    environment = {**os.environ, "LD_PRELOAD": str(interposed), "PYTHONMALLOC": "malloc"}
    command = [sys.executable, HERE / "counted_steps.py", MODEL, str(sequences), str(steps), control]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("sequences", [1, 8, 32])
def test_steady_steps_allocate_nothing(interposed: Path, sequences: int) -> None:
    # Across page boundaries, so that pages are taken, published and, where attention slides, given back.
    found = decode(interposed, sequences, steps=120)
    assert found["allocations"] == 0, found["first"]
    assert found["counted_by_engine"] == 0
    assert found["bytes_copied"] == 0


@pytest.mark.parametrize("control", ["malloc", "numpy", "native", "mmap"])
def test_one_allocation_in_one_step_is_seen(interposed: Path, control: str) -> None:
    assert decode(interposed, sequences=2, steps=4, control=control)["allocations"] > 0


def test_the_engine_counts_what_native_code_allocates_in_a_step() -> None:
    before = _native.allocations()
    pool = _native.KvPool(group=0, layers=[0], kv_heads=1, head_dim=64, dtype="f16", pages=4)
    assert _native.allocations() == before + 1
    assert pool.bytes >= 4096
    engine = plan_engine(open_checkpoint(MODEL), EngineConfig(threads=1, max_sequences=1, context=64)).load([])
    engine.submit(Request(id="a", prompt=[5, 6], params=SamplingParams(max_tokens=40, temperature=1.0)))
    for _ in range(3):
        engine.step()
    before = engine.counters.allocations
    for _ in range(5):
        engine.step()
    assert engine.counters.allocations == before
    sample = engine._sampler.sample

    def wasteful(*arguments: Any, **options: Any) -> Any:
        _native.Sampler(30_000, 1)
        return sample(*arguments, **options)

    engine._sampler.sample = wasteful  # type: ignore[method-assign]
    engine.step()
    assert engine.counters.allocations > before
    engine.executor.close()
