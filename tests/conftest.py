"""What holds for all tests."""

from __future__ import annotations

import os

import pytest

# `auto` is the CPU, whatever GPU this machine has, and nothing is measured for it. Tests of `auto` say otherwise.
os.environ["TANDEM_DEVICES"] = "cpu"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--chaos-seconds", default="20", help="how long tests/server/test_chaos.py goes on (20)")
    parser.addoption("--screenshots", metavar="FOLDER", help="where tests/server/test_browser.py leaves pictures")
