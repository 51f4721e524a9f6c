"""How a model's makers want it sampled, where its files say so."""

from __future__ import annotations

from tandem.models.metadata import Metadata
from tandem.weights.checkpoint import Checkpoint

_FROM_GGUF = {"temperature": "temp", "top_p": "top_p", "min_p": "min_p", "repetition_penalty": "penalty_repeat"}
_LARGEST = {"temperature": 100.0, "top_p": 1.0, "min_p": 1.0, "repetition_penalty": 100.0}
_MAX_TOP_K = 2**31 - 1


def sampling_defaults(checkpoint: Checkpoint) -> dict[str, float | int]:
    """The sampling parameters that the files name, by the names of `SamplingParams`: temperature, top_k, top_p, min_p,
    repetition_penalty. From GGUF's `general.sampling.*`, or from `generation_config.json`.

    Raises ModelFileError for a value that no sampler takes.
    """
    gguf = checkpoint.format == "gguf"
    if gguf:
        metadata = Metadata(checkpoint.metadata, str(checkpoint.path), prefix="general.sampling.")
    else:
        source = str(checkpoint.path / "generation_config.json")
        metadata = Metadata(checkpoint.files.get("generation_config.json") or {}, source)
    found: dict[str, float | int] = {}
    for name, high in _LARGEST.items():
        key = _FROM_GGUF[name] if gguf else name
        if key in metadata:
            value = metadata.number(key, low=0.0, high=high)
            # GGUF holds float32: 0.6 as its decimal again, so that both forms of a model sample alike.
            found[name] = float(f"{value:.7g}") if gguf else value
    if "top_k" in metadata:
        found["top_k"] = metadata.integer("top_k", low=-1, high=_MAX_TOP_K)
    return found
