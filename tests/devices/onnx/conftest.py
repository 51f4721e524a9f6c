"""Everything here runs on one provider of ONNX Runtime: TANDEM_TEST_ONNX names it, `cpu` or `openvino`.

The two come in packages that cannot be installed side by side.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

PROVIDER = os.environ.get("TANDEM_TEST_ONNX", "cpu")

# Modules import what they test; without the packages, `pytest -m onnx` finds no test and says so.
if not (find_spec("onnx") and find_spec("onnxruntime")):
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.onnx)
