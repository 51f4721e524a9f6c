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

    def broken(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(rig.engine.scheduler, "schedule", broken)
    last = drain(deltas)[-1]
    assert last.finish_reason == "error" and last.error is not None and "a bug" in last.error
    loop._thread.join()
    with pytest.raises(DeviceError, match="a bug"):
        loop.submit(request("b", [1]), deltas.put)
    loop.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_sink_that_raises_ends_only_its_own_request() -> None:
    rig = Rig(context=8192)
    loop = EngineLoop(rig.engine)
    deltas: queue.SimpleQueue[Delta] = queue.SimpleQueue()

    def broken(delta: Delta) -> None:
        raise ZeroDivisionError("a reader's bug")

    loop.submit(request("a", [1], ENDLESS), broken)
    loop.submit(request("b", [2]), deltas.put)
    assert [token for delta in drain(deltas) for token in delta.tokens] == alone([2], GREEDY)[0].tokens
    loop.submit(request("a", [1]), deltas.put)
    assert drain(deltas)[-1].finish_reason == "length", "the name is free again"
    loop.close()
    assert rig.engine.idle


def test_a_request_that_the_engine_fails_to_take_ends_alone() -> None:
    loop = EngineLoop(Rig(context=8192).engine)
    running: queue.SimpleQueue[Delta] = queue.SimpleQueue()
    refused: queue.SimpleQueue[Delta] = queue.SimpleQueue()
    loop.submit(request("a", [1], ENDLESS), running.put)
    loop.submit(request("a", [1]), refused.put)
    assert "is running already" in str(drain(refused)[-1].error)
    loop.submit(Request(id="b", prompt=[1], params=GREEDY, cache_salt=5), refused.put)  # type: ignore[arg-type]
    assert "the request failed: AttributeError" in str(drain(refused)[-1].error)
    loop.cancel("a")
    assert drain(running)[-1].finish_reason == "cancelled"
    loop.close()


def test_what_is_asked_for_while_the_engine_closes_ends_too() -> None:
    loop = EngineLoop(Rig(context=8192).engine)
    first: queue.SimpleQueue[Delta] = queue.SimpleQueue()
    second: queue.SimpleQueue[Delta] = queue.SimpleQueue()

    def close_meanwhile(delta: Delta) -> None:
        if not loop._closing:
            loop.submit(request("b", [2]), second.put)
            loop.close()  # on the engine's own thread, as the garbage collector may
        first.put(delta)

    loop.submit(request("a", [1], ENDLESS), close_meanwhile)
    assert drain(first)[-1].finish_reason == drain(second)[-1].finish_reason == "cancelled"
    loop.close()


@pytest.mark.parametrize("priority", ["x", None, 1.5])
def test_a_priority_must_be_a_number(priority: object) -> None:
    loop = EngineLoop(Rig().engine)
    with pytest.raises(RequestError, match="priority must be a whole number"):
        loop.submit(Request(id="a", prompt=[1], params=GREEDY, priority=priority), print)  # type: ignore[arg-type]
    loop.close()
