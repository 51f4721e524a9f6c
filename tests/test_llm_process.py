"""The offline API and the process around it: its end, its memory, its forks."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref

import pytest

from paths import SHARED
from tandem.engine.sampling_params import SamplingParams
from tandem.llm import LLM

TINY = SHARED / "data" / "models" / "TinyStories-656K"
ENDLESS = SamplingParams(max_tokens=None, ignore_eos=True)

_BEGIN = f"""
import os, sys
from tandem.llm import LLM, SamplingParams
from tandem.errors import DeviceError
llm = LLM({str(TINY)!r}, threads=1, max_sequences=2, rows=16)
stream = llm.stream("Once", SamplingParams(max_tokens=None, ignore_eos=True))
next(stream)
"""
_FORK = """
child = os.fork()
if child == 0:
    for use in (lambda: llm.generate("Once"), lambda: list(stream)):
        try:
            use()
        except DeviceError as error:
            assert "before the process forked" in str(error), error
        else:
            raise AssertionError("used after a fork")
    llm.close()
    with LLM(llm_path, threads=1, max_sequences=1, rows=16) as own:
        assert own.generate("Once", SamplingParams(max_tokens=3))[0].error is None
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
assert llm.generate("Once", SamplingParams(max_tokens=3))[0].error is None
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", _BEGIN + program], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("end", "code", "said"), [("", 0, ""), ("sys.exit(3)", 3, ""), ("raise ValueError('mine')", 1, "ValueError: mine")]
)
def test_a_program_may_end_with_a_request_in_flight(end: str, code: int, said: str) -> None:
    done = run(end)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.strip().endswith(said) and ("Traceback" in done.stderr) == bool(said)


def test_a_fork_says_so_and_can_load_its_own() -> None:
    done = run(f"llm_path = {str(TINY)!r}" + _FORK)
    assert done.returncode == 0 and done.stderr == "", done.stderr


def test_dropping_a_model_ends_its_threads_and_frees_it() -> None:
    before = threading.active_count()
    for _ in range(3):
        llm = LLM(TINY, threads=1, max_sequences=2, rows=16)
        stream = llm.stream("Once", ENDLESS)
        next(stream)
        engine = weakref.ref(llm._engine.executor)
        del llm, stream
        gc.collect()
        end = time.monotonic() + 10
        while engine() is not None or threading.active_count() > before:
            assert time.monotonic() < end, "a model that nobody has any more is still there"
            time.sleep(0.005)
