"""Python, the native module, and ONNX Runtime where it is installed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tandem.doctor.finding import Finding


def check_software(probe: Mapping[str, Any] | None) -> Iterator[Finding]:
    """Of the installation that asks: a root elsewhere has none that could be asked."""
    if probe is None:
        return
    versions = {"tandem": probe["tandem"], "python": probe["python"]}
    text = f"Tandem {probe['tandem'] or 'from a source tree'}, Python {probe['python']}"
    if "native_error" in probe:
        text = f"{text}: the native module does not load: {probe['native_error']}"
        fix = "install Tandem again for this Python: pip install --force-reinstall --no-deps ."
        yield Finding("software", "tandem", "problem", text, fix, versions)
    else:
        yield Finding("software", "tandem", "ok", text, facts=versions)
    onnx = probe["onnxruntime"]
    if onnx is None:
        text = "ONNX Runtime is not installed; it is what reaches NPUs: `tandem devices` says by which package"
        yield Finding("software", "onnxruntime", "note", text)
    elif "error" in onnx:
        text = f"ONNX Runtime {onnx['version']} does not load: {onnx['error']}"
        yield Finding("software", "onnxruntime", "warning", text, "pip install --force-reinstall onnxruntime", onnx)
    else:
        text = f"ONNX Runtime {onnx['version']}: {', '.join(onnx['providers'])}"
        for name, found in onnx.get("found", {}).items():
            text += f"; {name} finds {', '.join(found) or 'nothing'}"
        yield Finding("software", "onnxruntime", "note", text, facts=onnx)
