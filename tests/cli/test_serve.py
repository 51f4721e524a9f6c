"""`tandem serve` as a command: what it refuses to start with. What it serves is tried in tests/server."""

from __future__ import annotations

import socket
from pathlib import Path

from commands import error_of, tandem


def test_what_cannot_start_says_why(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert "another program listens there" in error_of(tandem("serve", "--port", other.getsockname()[1]))
    (tmp_path / "keys").write_text("# none yet\n")
    assert "there is no API key in" in error_of(tandem("serve", "--api-key-file", tmp_path / "keys"))
    assert "cannot be read" in error_of(tandem("serve", "--api-key-file", tmp_path / "nothing"))
    assert "two models are called a" in error_of(tandem("serve", "a=/x.gguf", "a=/y.gguf"))
    assert "not a memory size" in error_of(tandem("serve", "--memory-budget", "much"))


def test_a_model_that_is_missing(tmp_path: Path) -> None:
    assert "there is no model at" in error_of(tandem("serve", "--port", "0", tmp_path / "model.gguf"))
