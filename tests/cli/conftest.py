"""The bundled model, loaded once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tandem.llm import LLM


@pytest.fixture(scope="package")
def llm() -> Iterator[LLM]:
    with LLM(max_sequences=1) as llm:
        yield llm
