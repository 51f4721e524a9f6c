from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--chaos-seconds", default="20", help="how long tests/server/test_chaos.py goes on (20)")
