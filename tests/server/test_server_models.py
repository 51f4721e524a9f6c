"""Several models in one server: loaded when asked for, unloaded when their memory is needed or nobody asks."""

from __future__ import annotations

import json
import time

import pytest
from served import Server

from tandem.errors import ModelFileError
from tandem.llm import BUNDLED_MODEL
from tandem.server.hub import name_sources


def test_names(tmp_path) -> None:  # type: ignore[no-untyped-def]
    for name in ("a.gguf", "b.GGUF", "notes.txt"):
        (tmp_path / name).touch()
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").touch()
    assert list(name_sources([str(tmp_path)])) == ["a", "b", "folder"]
    assert name_sources(["x=/m/y.gguf", "/m/y.gguf", "hf:owner/name"]) == {
        "x": "/m/y.gguf", "y": "/m/y.gguf", "name": "hf:owner/name",
    }  # fmt: skip
    with pytest.raises(ModelFileError, match="two models are called y"):
        name_sources(["/m/y.gguf", "/n/y.gguf"])


@pytest.mark.server
def test_one_goes_where_two_do_not_fit() -> None:
    server = Server(
        f"one={BUNDLED_MODEL}", f"two={BUNDLED_MODEL}", "--max-sequences", "2",
        "--memory-budget", "45MiB", "--cors-origin", "https://page.example",
    )  # fmt: skip

    def states() -> dict[str, str]:
        return {model["id"]: model["state"] for model in server.get("/v1/models")[1]["data"]}

    def ask(model: str | None) -> tuple[int, object]:
        return server.post("/v1/completions", {"model": model, "prompt": "Once", "max_tokens": 2, "temperature": 0})

    def wait_for_samples(count: int) -> None:
        deadline = time.monotonic() + 20
        while server.metric("tandem_live_samples") != count:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    try:
        server.wait_ready()
        assert states() == {"one": "ready", "two": "unloaded"}
        assert ask("two")[0] == 200
        assert states() == {"one": "unloaded", "two": "ready"}
        # Whoever is at work is not sent away; this is work for longer than loading takes.
        long = {"model": "two", "prompt": "Once", "max_tokens": 1900, "ignore_eos": True}
        connections = [server.connect() for _ in range(10)]
        for connection in connections:
            connection.request("POST", "/v1/completions", json.dumps(long), {"Content-Type": "application/json"})
        wait_for_samples(10)
        status, answer = ask("one")
        assert status == 503 and answer["error"]["code"] == "no_memory" and "MiB" in answer["error"]["message"]
        for connection in connections:
            connection.close()
        wait_for_samples(0)
        assert ask(None)[0] == 200
        assert states() == {"one": "ready", "two": "unloaded"}
        _, _, headers = server.request("GET", "/v1/models", headers={"Origin": "https://page.example"})
        assert headers["Access-Control-Allow-Origin"] == "https://page.example"
    finally:
        server.stop()


@pytest.mark.server
def test_an_idle_model_is_unloaded() -> None:
    server = Server("--context", "256", "--idle-unload", "1")
    try:
        server.wait_ready()
        deadline = time.monotonic() + 10
        while server.get("/v1/models")[1]["data"][0]["state"] != "unloaded":
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert server.post("/v1/completions", {"prompt": "Once", "max_tokens": 1})[0] == 200
    finally:
        server.stop()
