"""Agreement between placements, as between devices: see tests/devices/vulkan/test_agreement.py."""

from __future__ import annotations

import numpy as np

from tandem.devices.base import Float32Array


def check_agreement(exact: Float32Array, cpu: Float32Array, got: Float32Array, what: str) -> None:
    """exact: of the float32 reference; cpu: of the CPU alone; got: of a placement that mixes devices or slices."""
    largest = np.abs(got - cpu).max()
    second, best = np.partition(exact, -2)[:, -2:].T
    clear = best - second > 2 * largest
    assert clear.mean() > 0.4, what
    np.testing.assert_array_equal(got.argmax(axis=-1)[clear], cpu.argmax(axis=-1)[clear], what)
    assert divergence(cpu, got) < 1e-4, what
    assert np.linalg.norm(got - exact) <= 1.5 * np.linalg.norm(cpu - exact), what


def divergence(expected: Float32Array, got: Float32Array) -> float:
    """Kullback and Leibler's, mean over all positions."""
    p, q = (_log_softmax(each) for each in (expected, got))
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())


def _log_softmax(logits: Float32Array) -> np.ndarray:
    shifted = (logits - logits.max(axis=-1, keepdims=True)).astype(np.float64)
    normal: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normal
