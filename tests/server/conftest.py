from __future__ import annotations

from collections.abc import Iterator

import pytest
from served import Server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The bundled model, served."""
    running = Server("--context", "512", "--max-sequences", "16", "--rows", "64")
    try:
        running.wait_ready()
        yield running
    finally:
        assert running.stop() == 0, running.log
