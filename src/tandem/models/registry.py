"""The architectures that Tandem knows. A new one is one file and one entry here."""

from __future__ import annotations

from tandem.errors import UnsupportedModelError
from tandem.models.architecture import Architecture
from tandem.models.gemma3 import GEMMA3
from tandem.models.llama import LLAMA
from tandem.models.metadata import Metadata
from tandem.models.mistral import MISTRAL
from tandem.models.qwen2 import QWEN2
from tandem.models.qwen3 import QWEN3
from tandem.weights.checkpoint import Checkpoint

ARCHITECTURES = (GEMMA3, LLAMA, MISTRAL, QWEN2, QWEN3)


def find_architecture(checkpoint: Checkpoint) -> tuple[Architecture, Metadata]:
    """The checkpoint's architecture and the metadata that it reads.

    Raises UnsupportedModelError, listing what there is, where Tandem does not have it.
    """
    return _gguf(checkpoint) if checkpoint.format == "gguf" else _hf(checkpoint)


def _gguf(checkpoint: Checkpoint) -> tuple[Architecture, Metadata]:
    source = str(checkpoint.path)
    name = Metadata(checkpoint.metadata, source).text("general.architecture")
    for architecture in ARCHITECTURES:
        if architecture.gguf == name:
            metadata = Metadata(checkpoint.metadata, source, prefix=f"{name}.")
            experts = metadata.integer("expert_count", low=0, high=1 << 20, default=0)
            if experts:
                raise metadata.unsupported("expert_count", experts, "supported: dense models")
            return architecture, metadata
    raise _unknown(source, "general.architecture", name)


def _hf(checkpoint: Checkpoint) -> tuple[Architecture, Metadata]:
    source = str(checkpoint.path)
    top = Metadata(checkpoint.metadata, source)
    classes = top.get("architectures") or []
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise top.invalid("architectures", classes, "a list of class names")
    model_type = top.text("model_type")
    for architecture in ARCHITECTURES:
        if model_type not in architecture.model_types:
            continue
        if classes and not set(classes) & set(architecture.classes):
            raise top.unsupported("architectures", classes, f"for this model type: {', '.join(architecture.classes)}")
        if "quantization_config" in top:
            method = (top.table("quantization_config") or top).get("quant_method")
            raise top.unsupported("quantization_config", method, "use a GGUF file or an unquantized checkpoint")
        text = top.table("text_config")
        return architecture, (text or top).with_defaults(architecture.defaults)
    raise _unknown(source, "model_type", model_type)


def _unknown(source: str, key: str, name: str) -> UnsupportedModelError:
    known = ", ".join(architecture.name for architecture in ARCHITECTURES)
    return UnsupportedModelError(
        f"{source}: '{key}' is {name!r}, an architecture that Tandem does not have; it has: {known}"
    )
