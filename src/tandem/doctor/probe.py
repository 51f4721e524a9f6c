"""What only running code can tell, asked in a process of its own: a driver that crashes or hangs is a finding, too."""

from __future__ import annotations

import json
import platform
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_TIMEOUT = 60.0


def probe_software() -> dict[str, Any]:
    return _ask("software", {"tandem": None, "python": platform.python_version(), "onnxruntime": None}, "native_error")


def probe_vulkan() -> dict[str, Any]:
    """{"devices": …} as `tandem devices --json` gives them, or {"error": one sentence}."""
    return _ask("vulkan", {}, "error")


def _ask(what: str, otherwise: dict[str, Any], error: str) -> dict[str, Any]:
    """The answer of a process, or `otherwise` with how it ended under the key `error`."""
    command = [sys.executable, "-c", f"from tandem.doctor.probe import answer; answer({what!r})"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        return {**otherwise, error: f"asking for it did not end within {_TIMEOUT:.0f} s"}
    try:
        # Drivers may print, too: the last line is ours.
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer
    except (IndexError, ValueError):
        return {**otherwise, error: f"asking for it ended with {_ending(done.returncode, done.stderr)}"}


def _ending(code: int, stderr: str) -> str:
    if code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}: {stderr.strip().splitlines()[-1] if stderr.strip() else 'no message'}"


def answer(what: str) -> None:
    """In the other process: prints one line."""
    answers: dict[str, Callable[[], dict[str, Any]]] = {"software": _software, "vulkan": _vulkan}
    print(f"\n{json.dumps(answers[what]())}")


def _software() -> dict[str, Any]:
    from tandem.devices.onnx.providers import packages

    found: dict[str, Any] = {"tandem": _version("tandem-llm"), "python": platform.python_version()}
    try:
        import tandem._native  # noqa: F401
    except ImportError as error:
        found["native_error"] = str(error)
    found["onnxruntime"] = None
    for name, installed in packages().items():
        found["onnxruntime"] = {"package": name, "version": installed, **_providers()}
    return found


def _providers() -> dict[str, Any]:
    from tandem.devices.onnx.providers import PROVIDERS, processors, runtime

    try:
        here = list(runtime().get_available_providers())
        known = [each for each in PROVIDERS.values() if each.execution_provider in here]
        return {"providers": here, "found": {f"onnx:{each.name}": processors(each) for each in known}}
    except Exception as error:  # whatever a broken installation raises is what is to be told
        return {"error": f"{type(error).__name__}: {error}"}


def _vulkan() -> dict[str, Any]:
    from tandem.devices.vulkan.facts import describe_gpus
    from tandem.errors import DeviceError

    try:
        return {"devices": describe_gpus()}
    except DeviceError as error:
        return {"error": str(error)}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
