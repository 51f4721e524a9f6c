"""The engine's thread: deltas reach who asked, everything ends, a fault reaches everyone."""

from __future__ import annotations

import queue

import pytest
from rig import VOCAB, Rig, alone

from tandem.engine.loop import EngineLoop
from tandem.engine.request import Delta, Request
from tandem.engine.sampling_params import SamplingParams
from tandem.errors import DeviceError, RequestError

GREEDY = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
ENDLESS = SamplingParams(max_tokens=None, ignore_eos=True)


def request(name: str, prompt: list[int], params: SamplingParams = GREEDY) -> Request:
    return Request(id=name, prompt=prompt, params=params)


def drain(deltas: queue.SimpleQueue[Delta]) -> list[Delta]:
    """All deltas up to the one that ends the request."""
    found = [deltas.get(timeout=20)]
    while not found[-1].ended:
        found.append(deltas.get(timeout=20))
    return found


def test_each_request_gets_its_own_deltas() -> None:
    loop = EngineLoop(Rig().engine)
    queues: dict[str, queue.SimpleQueue[Delta]] = {}
    for k in range(20):
        queues[f"q{k}"] = queue.SimpleQueue()
        loop.submit(request(f"q{k}", [k]), queues[f"q{k}"].put)
    for k in range(20):
        deltas = drain(queues[f"q{k}"])
        assert [token for delta in deltas for token in delta.tokens] == alone([k], GREEDY)[0].tokens
    loop.close()


def test_what_the_engine_would_refuse_is_refused_at_once() -> None:
    loop = EngineLoop(Rig().engine)
    with pytest.raises(RequestError, match="outside the vocabulary"):
        loop.submit(request("x", [VOCAB]), lambda delta: None)
    loop.close()


def test_cancelling_and_closing_end_what_runs() -> None:
    loop = EngineLoop(Rig(context=8192).engine)
    first: queue.SimpleQueue[Delta] = queue.SimpleQueue()
    second: queue.SimpleQueue[Delta] = queue.SimpleQueue()
    loop.submit(request("a", [1], ENDLESS), first.put)
    loop.submit(request("b", [2], ENDLESS), second.put)
    first.get(timeout=20)
    loop.cancel("a")
    assert drain(first)[-1].finish_reason == "cancelled"
    loop.close()
    assert drain(second)[-1].finish_reason == "cancelled"
    with pytest.raises(DeviceError, match="closed"):
        loop.submit(request("c", [1]), first.put)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_of_the_engine_reaches_everyone(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(context=8192)
    loop = EngineLoop(rig.engine)
    deltas: queue.SimpleQueue[Delta] = queue.SimpleQueue()
    loop.submit(request("a", [1], ENDLESS), deltas.put)
    deltas.get(timeout=20)

    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(rig.engine.scheduler, "schedule", broken)
    last = drain(deltas)[-1]
    assert last.finish_reason == "error" and last.error is not None and "a bug" in last.error
    loop._thread.join()
    with pytest.raises(DeviceError, match="a bug"):
        loop.submit(request("b", [1]), deltas.put)
    loop.close()
