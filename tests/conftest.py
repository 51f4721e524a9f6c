"""What holds for all tests."""

from __future__ import annotations

import os

import pytest

# `auto` is the CPU, whatever GPU this machine has, and nothing is measured for it. Tests of `auto` say otherwise.
os.environ["TANDEM_DEVICES"] = "cpu"
# Kernels are those of the rules, the same in every run, whatever GPU this machine has. Tests of tuning say otherwise.
os.environ["TANDEM_VULKAN_TUNE"] = "off"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--chaos-seconds", default="20", help="how long tests/server/test_chaos.py goes on (20)")
    parser.addoption("--screenshots", metavar="FOLDER", help="where tests/server/test_browser.py leaves pictures")
