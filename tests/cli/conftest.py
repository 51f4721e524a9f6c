"""The bundled model, loaded once, and no configuration but what a test writes."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tandem.llm import LLM

os.environ["TANDEM_CONFIG"] = os.devnull


@pytest.fixture(scope="package")
def llm() -> Iterator[LLM]:
    with LLM(max_sequences=1) as llm:
        yield llm
